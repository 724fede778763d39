// What layer_std in memory and layer_std_file share: matrices cut into tiles, tiles given to threads, moments merged.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "layer_std/isa.hpp"
#include "layer_std/layer_std.hpp"

namespace modelassay {

constexpr std::int64_t kTileBytes = 256 * 1024;  // stays in a core's second-level cache

// Where a tile lies in its matrix, in elements.
struct Place {
  std::int64_t matrix;
  std::int64_t row;
  std::int64_t col;
  std::int64_t num_rows;
  std::int64_t num_cols;
};

// The first element of a tile and the elements from one of its rows to the next.
struct Located {
  const std::byte* data;
  std::int64_t row_stride;
};

// Brings tiles to memory; one per thread, so that it may own buffers.
class TileReader {
 public:
  virtual ~TileReader() = default;
  virtual Located locate(const Place& place, const Shape& shape) = 0;
};

struct Job {
  Shape shape;
  Scale scale;
};

// Rows that follow each other without a gap become one row, unless their blocks are scaled apart.
Job make_job(Shape shape, Scale scale);

const TileCode& find_tile_code(const std::string& instruction_set);  // empty: the best

void run_jobs(const std::vector<Job>& jobs, const LayerStdOptions& options,
              const std::function<std::unique_ptr<TileReader>()>& make_reader, std::span<double> out);

}  // namespace modelassay
