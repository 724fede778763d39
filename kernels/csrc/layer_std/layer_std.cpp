#include "layer_std/layer_std.hpp"

#include <algorithm>
#include <atomic>

#include "common/threads.hpp"
#include "layer_std/driver.hpp"

namespace modelassay {
namespace {

class MemoryReader : public TileReader {
 public:
  explicit MemoryReader(std::span<const Matrix> matrices) : matrices_(matrices) {}
  Located locate(const Place& place, const Shape& shape) override {
    const std::int64_t element = place.row * shape.row_stride + place.col;
    const std::byte* data = matrices_[static_cast<std::size_t>(place.matrix)].data;
    return {data + element * element_size(shape.dtype), shape.row_stride};
  }

 private:
  std::span<const Matrix> matrices_;
};

}  // namespace

void layer_std(std::span<const Matrix> matrices, const LayerStdOptions& options, std::span<double> out) {
  std::vector<Job> jobs;
  for (const Matrix& matrix : matrices) jobs.push_back(make_job(matrix.shape, matrix.scale));
  run_jobs(jobs, options, [&] { return std::make_unique<MemoryReader>(matrices); }, out);
}

std::uint64_t read_bytes(const std::byte* data, std::int64_t num_bytes, const LayerStdOptions& options,
                         ReadPattern pattern) {
  const TileCode& code = find_tile_code(options.instruction_set);
  const std::int64_t num_tiles = (num_bytes + kTileBytes - 1) / kTileBytes;
  std::atomic<std::uint64_t> digest{0};
  for_each_item(num_tiles, options.num_threads, [&]() -> Worker {
    return [&](std::int64_t tile) {
      const std::int64_t first = tile * kTileBytes;
      digest.fetch_xor(code.read_tile(data + first, std::min(kTileBytes, num_bytes - first), pattern));
    };
  });
  return digest.load();
}

}  // namespace modelassay
