// Standard deviation of many matrices in one pass over memory or over files. No Python here.
//
// A matrix is cut into tiles of 256 KiB by its shape alone. A tile gives (count, mean, M2), where M2 is the sum of squared
// distances from the mean; the tiles of a matrix are merged in their order, in double (Chan, Golub, LeVeque 1979). So the
// result depends neither on the number of threads nor on which thread took which tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/dtype.hpp"

namespace modelassay {

// Rows of `num_cols` neighbouring elements, `row_stride` elements apart (0 repeats one row).
struct Shape {
  DType dtype;
  std::int64_t num_rows;
  std::int64_t num_cols;
  std::int64_t row_stride;
};

// One factor per block of block_rows x block_cols elements; ragged at the right and lower edges. `data` null: none.
struct Scale {
  const float* data = nullptr;
  std::int64_t num_cols = 0;
  std::int64_t block_rows = 0;
  std::int64_t block_cols = 0;
};

struct Matrix {
  Shape shape;
  Scale scale;
  const std::byte* data;
};

struct FileMatrix {
  Shape shape;
  Scale scale;
  std::string path;
  std::int64_t offset;  // byte of the first element
};

struct LayerStdOptions {
  int correction = 1;
  int num_threads = 1;
  std::string instruction_set;  // one of instruction_sets(), or empty for the best
};

// out[i] = sqrt(M2 / (count - correction)) over all elements of matrix i, each multiplied by its scale.
// NaN where an element is NaN or infinite, and where count <= correction.
void layer_std(std::span<const Matrix> matrices, const LayerStdOptions& options, std::span<double> out);

// The same of byte ranges of files, read in pieces by the worker threads (512 KiB of buffers each), never mapped.
// Throws std::runtime_error naming the path when a file cannot be opened, read, or ends too early.
void layer_std_file(std::span<const FileMatrix> matrices, const LayerStdOptions& options, std::span<double> out);

// How the bytes of a tile are read: which is the fastest depends on the processor, so that a ceiling is the best of all.
enum class ReadPattern { kPlain, kPrefetch512, kPrefetch2048, kFourStreams, kFourStreamsPrefetch };
constexpr int kNumReadPatterns = 5;

// Reads every byte once, with the same tiles and threads as layer_std, and does almost nothing with it: the
// denominator of "share of the read bandwidth". Returns a digest so that the reads cannot be optimised away.
std::uint64_t read_bytes(const std::byte* data, std::int64_t num_bytes, const LayerStdOptions& options,
                         ReadPattern pattern = ReadPattern::kPlain);

}  // namespace modelassay
