// The k smallest (or largest) elements of each row with their ids: exact, in one read of the row. No Python here.
//
// An element is its *key*, an unsigned integer in the order of the result (-0.0 and +0.0 share one, NaN has the last), and
// an *entry* is key << 32 | id: no two are equal, and their order is the order of the result, ties by the smaller id.
// A row is read in blocks; elements whose key is not above a limit become entries of a buffer. When it is full, the k
// smallest entries stay and the limit falls below the largest of them: ids rise along the row, so what ties with it
// later has lost. So one read is exact with any limit to start from that lets k elements pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/dtype.hpp"

namespace modelassay {

// Rows of bf16, fp16 or fp32 elements; strides in elements. Needs num_cols <= 2^32 - 1.
struct Rows {
  DType dtype;
  std::int64_t num_rows;
  std::int64_t num_cols;
  std::int64_t row_stride;
  std::int64_t col_stride;
  const std::byte* data;
};

struct BottomKOptions {
  std::int64_t k = 0;
  bool largest = false;
  bool sort = true;                     // else the k are given in no promised order
  const std::uint8_t* valid = nullptr;  // one byte per column, zero: never chosen; null: all may be
  int num_threads = 1;
  std::string instruction_set;  // one of instruction_sets(), or empty for the best
};

// values[num_rows, k] (of the rows' type, the very elements) and ids[num_rows, k]. Throws std::invalid_argument where k is
// more than the columns that may be chosen.
void bottom_k(const Rows& rows, const BottomKOptions& options, std::byte* values, std::int64_t* ids);

// The same of rows that come in pieces, by rising ids: entries[num_rows, capacity] of which counts[row] are there, and the
// limit of every row. To start: counts 0, limits 2^32 - 1.
struct Running {
  std::uint64_t* entries;
  std::int64_t capacity;
  std::int64_t* counts;
  std::int64_t* limits;
};

// The least capacity, and one with which a row that comes in random order is reduced few times.
std::int64_t running_capacity(std::int64_t k);

// Takes in rows whose first element has id `first_id`; `options.valid` is of these columns, `options.sort` unused.
void bottom_k_fold(const Rows& rows, std::int64_t first_id, const BottomKOptions& options, const Running& running);

// values[num_rows, k] in fp32, rebuilt from the keys (-0.0 has become +0.0), and ids; counts must not be below k.
void bottom_k_finish(const Running& running, std::int64_t num_rows, const BottomKOptions& options, float* values,
                     std::int64_t* ids);

}  // namespace modelassay
