#include "layer_std/driver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "common/instruction_sets.hpp"
#include "common/threads.hpp"

namespace modelassay {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Grid {
  std::int64_t rows_per_tile;
  std::int64_t cols_per_tile;
  std::int64_t tiles_per_row;
  std::int64_t num_tiles;
};

Grid make_grid(const Shape& shape) {
  if (shape.num_rows == 0 || shape.num_cols == 0) return {0, 0, 0, 0};
  const std::int64_t elements = kTileBytes / element_size(shape.dtype);
  const std::int64_t rows = std::max<std::int64_t>(1, elements / shape.num_cols);
  const std::int64_t cols = std::min(elements, shape.num_cols);
  const std::int64_t per_row = ceil_div(shape.num_cols, cols);
  return {rows, cols, per_row, ceil_div(shape.num_rows, rows) * per_row};
}

Place place_of(std::int64_t matrix, const Shape& shape, const Grid& grid, std::int64_t tile) {
  const std::int64_t row = tile / grid.tiles_per_row * grid.rows_per_tile;
  const std::int64_t col = tile % grid.tiles_per_row * grid.cols_per_tile;
  return {matrix, row, col, std::min(grid.rows_per_tile, shape.num_rows - row),
          std::min(grid.cols_per_tile, shape.num_cols - col)};
}

Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  const double share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// A job and the power of two its elements are multiplied by.
struct Task {
  std::int64_t job;
  double unit;
};

std::vector<Moments> reduce(const std::vector<Job>& jobs, const std::vector<Task>& tasks, const LayerStdOptions& options,
                            const std::function<std::unique_ptr<TileReader>()>& make_reader) {
  std::vector<Grid> grids;
  std::vector<std::int64_t> first_tile{0};
  std::int64_t num_bytes = 0;
  for (const Task& task : tasks) {
    const Shape& shape = jobs[static_cast<std::size_t>(task.job)].shape;
    grids.push_back(make_grid(shape));
    first_tile.push_back(first_tile.back() + grids.back().num_tiles);
    num_bytes += shape.num_rows * shape.num_cols * element_size(shape.dtype);
  }
  std::vector<Moments> tiles(static_cast<std::size_t>(first_tile.back()));
  const TileCode& code = find_tile_code(options.instruction_set);
  const int num_threads = threads_for(num_bytes, options.num_threads);
  for_each_item(first_tile.back(), num_threads, [&]() -> Worker {
    return [&, reader = std::shared_ptr<TileReader>(make_reader())](std::int64_t tile) {
      const auto after = std::upper_bound(first_tile.begin(), first_tile.end(), tile);
      const auto index = static_cast<std::size_t>(after - first_tile.begin() - 1);
      const Task& task = tasks[index];
      const Job& job = jobs[static_cast<std::size_t>(task.job)];
      const Place place = place_of(task.job, job.shape, grids[index], tile - first_tile[index]);
      const Located at = reader->locate(place, job.shape);
      const Shape shape = {job.shape.dtype, place.num_rows, place.num_cols, at.row_stride};
      tiles[static_cast<std::size_t>(tile)] =
          code.tile_moments({shape, job.scale, at.data, place.row, place.col, task.unit});
    };
  });
  std::vector<Moments> merged(tasks.size(), Moments{0, 0, 0});
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    for (std::int64_t tile = first_tile[i]; tile < first_tile[i + 1]; ++tile) {
      merged[i] = merge(merged[i], tiles[static_cast<std::size_t>(tile)]);
    }
  }
  return merged;
}

double deviation(const Moments& moments, int correction, double unit) {
  const double degrees = moments.count - correction;
  return degrees > 0 ? std::sqrt(moments.m2 / degrees) / unit : kNaN;
}

}  // namespace

Job make_job(Shape shape, Scale scale) {
  if (scale.data == nullptr && (shape.row_stride == shape.num_cols || shape.num_rows == 1)) {
    shape.num_cols *= shape.num_rows;
    shape.num_rows = std::min<std::int64_t>(shape.num_rows, 1);
    shape.row_stride = shape.num_cols;
  }
  return {shape, scale};
}

void run_jobs(const std::vector<Job>& jobs, const LayerStdOptions& options,
              const std::function<std::unique_ptr<TileReader>()>& make_reader, std::span<double> out) {
  if (out.size() != jobs.size()) throw std::invalid_argument("one output per matrix is needed");
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < jobs.size(); ++i) tasks.push_back({static_cast<std::int64_t>(i), 1.0});
  const std::vector<Moments> moments = reduce(jobs, tasks, options, make_reader);
  std::vector<Task> again;  // doubles whose squares left the range of double: once more, brought nearer to 1
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    out[i] = deviation(moments[i], options.correction, 1.0);
    if (jobs[i].shape.dtype != DType::kF64 || moments[i].count == 0) continue;
    constexpr double kLargest = 1e300;
    constexpr double kSmallest = 1e-280;
    const double m2 = moments[i].m2;
    if (!(m2 < kLargest)) again.push_back({static_cast<std::int64_t>(i), 0x1p-600});
    if (m2 < kSmallest * moments[i].count) again.push_back({static_cast<std::int64_t>(i), 0x1p+600});
  }
  if (again.empty()) return;
  const std::vector<Moments> rescaled = reduce(jobs, again, options, make_reader);
  for (std::size_t i = 0; i < again.size(); ++i) {
    const double result = deviation(rescaled[i], options.correction, again[i].unit);
    // A constant of ordinary size overflows when it is magnified, and its first result, zero, was right.
    if (again[i].unit < 1 || std::isfinite(result)) out[static_cast<std::size_t>(again[i].job)] = result;
  }
}

const TileCode& find_tile_code(const std::string& instruction_set) {
  switch (find_instruction_set(instruction_set)) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512Bf16:
      return avx512_bf16::tile_code;
    case InstructionSet::kAvx512:
      return avx512::tile_code;
    case InstructionSet::kAvx2:
      return avx2::tile_code;
#endif
    default:
      return portable::tile_code;
  }
}

}  // namespace modelassay
