// Tiles of files: read with pread into buffers of the thread that needs them.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <stdexcept>

#include "layer_std/driver.hpp"

namespace modelassay {
namespace {

// A row further than this from the one before is read by a call of its own; nearer, the gap is read with it: a call costs
// about as much as copying this many bytes.
constexpr std::int64_t kLargestGapBytes = 16 * 1024;

class File {
 public:
  explicit File(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw std::runtime_error(path + ": cannot be opened: " + std::strerror(errno));
#if defined(POSIX_FADV_SEQUENTIAL)
    ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(descriptor_); }

  void read(std::byte* to, std::int64_t num_bytes, std::int64_t offset) const {
    const std::int64_t end = offset + num_bytes;
    while (offset < end) {
      const ::ssize_t got = ::pread(descriptor_, to, static_cast<std::size_t>(end - offset), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        throw std::runtime_error(path_ + ": cannot read at byte " + std::to_string(offset) + ": " + std::strerror(errno));
      }
      if (got == 0) {
        throw std::runtime_error(path_ + ": ends at byte " + std::to_string(offset) + ", but bytes up to " +
                                 std::to_string(end) + " are needed; the file is shorter than its header says");
      }
      to += got;
      offset += got;
    }
  }

 private:
  std::string path_;
  int descriptor_;
};

class FileReader : public TileReader {
 public:
  FileReader(std::span<const FileMatrix> matrices, const std::map<std::string, File>& files)
      : matrices_(matrices), files_(files), tile_(kTileBytes) {}

  Located locate(const Place& place, const Shape& shape) override {
    const FileMatrix& matrix = matrices_[static_cast<std::size_t>(place.matrix)];
    const File& file = files_.at(matrix.path);
    const std::int64_t size = element_size(shape.dtype);
    const std::int64_t row_bytes = place.num_cols * size;
    const std::int64_t stride_bytes = shape.row_stride * size;
    const std::int64_t offset = matrix.offset + (place.row * shape.row_stride + place.col) * size;
    if (place.num_rows == 1 || row_bytes == stride_bytes) {
      file.read(tile_.data(), place.num_rows * row_bytes, offset);
    } else if (stride_bytes - row_bytes > kLargestGapBytes || stride_bytes < row_bytes) {
      for (std::int64_t row = 0; row < place.num_rows; ++row) {
        file.read(tile_.data() + row * row_bytes, row_bytes, offset + row * stride_bytes);
      }
    } else {
      read_through_gaps(file, offset, place.num_rows, row_bytes, stride_bytes);
    }
    return {tile_.data(), place.num_cols};
  }

 private:
  void read_through_gaps(const File& file, std::int64_t offset, std::int64_t num_rows, std::int64_t row_bytes,
                         std::int64_t stride_bytes) {
    constexpr std::int64_t kBatchBytes = kTileBytes + kLargestGapBytes;
    batch_.resize(kBatchBytes);
    const std::int64_t rows_per_batch = 1 + (kBatchBytes - row_bytes) / stride_bytes;
    std::byte* to = tile_.data();
    for (std::int64_t first = 0; first < num_rows; first += rows_per_batch) {
      const std::int64_t rows = std::min(rows_per_batch, num_rows - first);
      file.read(batch_.data(), (rows - 1) * stride_bytes + row_bytes, offset + first * stride_bytes);
      for (std::int64_t row = 0; row < rows; ++row, to += row_bytes) {
        std::memcpy(to, batch_.data() + row * stride_bytes, static_cast<std::size_t>(row_bytes));
      }
    }
  }

  std::span<const FileMatrix> matrices_;
  const std::map<std::string, File>& files_;
  std::vector<std::byte> tile_;
  std::vector<std::byte> batch_;
};

}  // namespace

void layer_std_file(std::span<const FileMatrix> matrices, const LayerStdOptions& options, std::span<double> out) {
  std::map<std::string, File> files;
  std::vector<Job> jobs;
  for (const FileMatrix& matrix : matrices) {
    files.try_emplace(matrix.path, matrix.path);
    jobs.push_back(make_job(matrix.shape, matrix.scale));
  }
  run_jobs(jobs, options, [&] { return std::make_unique<FileReader>(matrices, files); }, out);
}

}  // namespace modelassay
