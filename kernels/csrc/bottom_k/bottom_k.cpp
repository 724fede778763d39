#include "bottom_k/bottom_k.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "bottom_k/isa.hpp"
#include "bottom_k/select.hpp"
#include "common/instruction_sets.hpp"
#include "common/threads.hpp"

namespace modelassay {
namespace {

// Designs, each adding to the one before: microseconds a row of bf16 and of fp32 (unsorted, k = 2000, 151,936 columns, one
// thread of a Zen 4 with AVX-512; 8 rows, which stay in the last-level cache: reading them takes 3 and 7)
//   limit from a sample, positions compressed from every 16 lanes, the k-th by histograms   38   42
//   four positions of a word of 64 written whatever it holds, keys made by vectors          25   29
//   the k-th entry by counting those that are not above a guess                             20   24
// Without a sample, with the limit only the buffer itself gives, the last takes 2 to 3 times as long. A histogram of the whole
// row's upper 11 bits takes 82 by itself, and would need a second read to gather.
constexpr std::int64_t kSample = 4096;  // elements of a row, as cache lines spread evenly
constexpr std::int64_t kLineBytes = 64;
constexpr std::int64_t kFewLines = 8;  // fewer are no sample: rows so short are taken in whole
constexpr std::int64_t kRowGroup = 4;  // neighbours given to one thread
constexpr std::int64_t kPauseCols = 512 * kBlock;  // of a long row, a fraction of a millisecond

const KeyScan& find_key_scan(const std::string& instruction_set) {
  switch (find_instruction_set(instruction_set)) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512Bf16:
    case InstructionSet::kAvx512:
      return avx512::key_scan;
    case InstructionSet::kAvx2:
      return avx2::key_scan;
#endif
    default:
      return portable::key_scan;
  }
}

// The bytes of all rows.
std::int64_t size_bytes(const Rows& rows) { return rows.num_rows * rows.num_cols * element_size(rows.dtype); }

// Which columns may be chosen, a bit each; empty: all.
struct Allowed {
  std::vector<std::uint64_t> words;
  std::int64_t count = 0;

  Allowed(const std::uint8_t* valid, std::int64_t num_cols) : count(num_cols) {
    if (valid == nullptr) return;
    words.resize(static_cast<std::size_t>((num_cols + 63) / 64));
    count = 0;
    for (std::int64_t i = 0; i < num_cols; ++i) {
      if (i % kPauseCols == 0) pause();
      const std::uint64_t bit = valid[i] != 0 ? 1 : 0;
      words[static_cast<std::size_t>(i / 64)] |= bit << (i % 64);
      count += static_cast<std::int64_t>(bit);
    }
  }
  const std::uint64_t* from(std::int64_t col) const { return words.empty() ? nullptr : words.data() + col / 64; }
  bool has(std::int64_t col) const {
    return words.empty() || (words[static_cast<std::size_t>(col / 64)] >> (col % 64) & 1) != 0;
  }
};

// Entries of one row, whoever owns their memory.
struct Buffer {
  std::uint64_t* entries;
  std::int64_t capacity;
  std::int64_t count;
  std::int64_t limit;  // keys not above it become entries; those that are have at most the key after it
};

// What one thread needs to choose from rows of one type.
class Chooser {
 public:
  Chooser(const Rows& rows, const BottomKOptions& options, const Allowed& allowed, std::int64_t capacity)
      : rows_(rows),
        allowed_(allowed),
        format_(key_format(rows.dtype, options.largest)),
        scan_(find_key_scan(options.instruction_set)),
        size_(element_size(rows.dtype)),
        k_(options.k),
        scratch_(static_cast<std::size_t>(capacity)) {}

  // The elements of a row as neighbours; strided ones are copied.
  const std::byte* elements(std::int64_t row) {
    const std::byte* data = rows_.data + row * rows_.row_stride * size_;
    if (rows_.col_stride == 1 || rows_.num_cols < 2) return data;
    copy_.resize(static_cast<std::size_t>(rows_.num_cols * size_));
    for (std::int64_t i = 0; i < rows_.num_cols; ++i) {
      if (i % kPauseCols == 0) pause();
      std::memcpy(copy_.data() + i * size_, data + i * rows_.col_stride * size_, static_cast<std::size_t>(size_));
    }
    return copy_.data();
  }

  // Asks for what sampled_limit reads, so that it comes while the row before is finished.
  void prefetch_sample(std::int64_t row) const {
    const std::byte* data = rows_.data + row * rows_.row_stride * size_;
    if (rows_.col_stride != 1 || num_sample_lines() < kFewLines) return;
    for (std::int64_t line = 0; line < num_sample_lines(); ++line) {
      __builtin_prefetch(data + sample_col(line) * size_);
    }
  }

  // Entries of all elements that can be among the k, in the order of their ids, given those of the columns before.
  void fold(const std::byte* data, std::int64_t first_id, Buffer& buffer) {
    for (std::int64_t col = 0; col < rows_.num_cols; col += kBlock) {
      if (buffer.count + kBlock > buffer.capacity) reduce(buffer);
      if (buffer.limit < format_.first_number()) return;
      if (col % kPauseCols == 0) pause();
      const KeySet set = format_.not_above(static_cast<std::uint32_t>(buffer.limit));
      const std::byte* block = data + col * size_;
      const std::int64_t num_cols = std::min(kBlock, rows_.num_cols - col);
      const auto scan = format_.wide ? scan_.scan32 : scan_.scan16;
      std::uint64_t* to = buffer.entries + buffer.count;
      buffer.count += scan(block, num_cols, set, allowed_.from(col), format_, first_id + col, to);
    }
  }

  // Leaves the k smallest entries, and lets nothing in that ties with the largest of them: its id would be larger.
  void reduce(Buffer& buffer) {
    if (buffer.count <= k_) return;
    const auto highest = static_cast<std::uint32_t>(std::min<std::int64_t>(format_.last(), buffer.limit + 1));
    const std::int64_t last_key = keep_smallest(buffer.entries, buffer.count, k_, highest, format_, scan_);
    buffer.count = k_;
    buffer.limit = std::min(buffer.limit, last_key - 1);
  }

  // A limit that a few more than k_ elements of the row pass, and seldom fewer: the key of that rank in a sample, `caution`
  // standard deviations above the rank that k_ would have.
  std::int64_t sampled_limit(const std::byte* data, double caution) {
    if (num_sample_lines() < kFewLines) return format_.last();
    const std::int64_t num = take_sample(data);
    const double expected = static_cast<double>(k_) / static_cast<double>(allowed_.count) * static_cast<double>(num);
    const auto rank = static_cast<std::int64_t>(expected + caution * std::sqrt(expected + 1) + caution);
    std::uint32_t low = format_.first_number() - 1;  // fewer than `rank` are not above it
    std::uint32_t high = format_.last_number();
    if (num_below(high) < rank) return format_.last();
    while (high - low > 1) {
      const std::uint32_t middle = low + (high - low) / 2;
      const std::int64_t passed = num_below(middle);
      (passed < rank ? low : high) = middle;
      if (passed >= rank && passed <= rank + rank / 16) break;
    }
    return high;
  }

  std::uint64_t* sorted(Buffer& buffer) { return sort_entries(buffer.entries, buffer.count, scratch_.data()); }
  const KeyFormat& format() const { return format_; }

 private:
  std::int64_t num_sample_lines() const { return std::min(kSample, rows_.num_cols / 16) * size_ / kLineBytes; }
  std::int64_t sample_col(std::int64_t line) const {  // two lines or more
    return line * (rows_.num_cols - kLineBytes / size_) / (num_sample_lines() - 1);
  }

  // Copies lines of the row to sample_ and returns the number of elements that may be chosen; the others become NaN.
  std::int64_t take_sample(const std::byte* data) {
    const std::int64_t num_lines = num_sample_lines();
    const std::int64_t per_line = kLineBytes / size_;
    std::int64_t num = num_lines * per_line;
    const std::uint32_t nan = format_.infinity | (format_.infinity >> 1);
    for (std::int64_t line = 0; line < num_lines; ++line) {
      const std::int64_t col = sample_col(line);
      std::byte* to = sample_.data() + line * kLineBytes;
      std::memcpy(to, data + col * size_, kLineBytes);
      if (allowed_.words.empty()) continue;
      for (std::int64_t i = 0; i < per_line; ++i) {
        if (allowed_.has(col + i)) continue;
        std::memcpy(to + i * size_, &nan, static_cast<std::size_t>(size_));  // little end first
        --num;
      }
    }
    sample_elements_ = num_lines * per_line;
    return num;
  }

  // Elements of the sample whose keys are not above the limit.
  std::int64_t num_below(std::uint32_t limit) const {
    const auto count = format_.wide ? scan_.count32 : scan_.count16;
    return count(sample_.data(), sample_elements_, format_.not_above(limit));
  }

  const Rows& rows_;
  const Allowed& allowed_;
  KeyFormat format_;
  const KeyScan& scan_;
  std::int64_t size_;
  std::int64_t k_;
  std::int64_t sample_elements_ = 0;
  std::vector<std::uint64_t> scratch_;
  std::vector<std::byte> copy_;
  alignas(kLineBytes) std::array<std::byte, kSample * 4> sample_;
};

// The ids of entries, and the very elements they stand for: looked up only where the key does not tell their bits.
template <class Element>
void give(const std::uint64_t* entries, std::int64_t row, std::int64_t k, const KeyFormat& format, const std::byte* data,
          std::byte* values, std::int64_t* ids) {
  ids += row * k;
  values += row * k * static_cast<std::int64_t>(sizeof(Element));
  for (std::int64_t i = 0; i < k; ++i) {
    const std::uint64_t id = entries[i] & 0xffffffffu;
    const std::uint32_t key = key_of(entries[i]);
    auto bits = static_cast<Element>(format.bits(key));
    if (key == format.sign || key == format.last()) std::memcpy(&bits, data + id * sizeof bits, sizeof bits);
    ids[i] = static_cast<std::int64_t>(id);
    std::memcpy(values + i * static_cast<std::int64_t>(sizeof bits), &bits, sizeof bits);
  }
}

void choose_row(Chooser& chooser, const BottomKOptions& options, std::int64_t row, bool has_next, Buffer& buffer,
                std::byte* values, std::int64_t* ids) {
  const std::byte* data = chooser.elements(row);
  for (double caution = 3; buffer.count < options.k; caution *= 8) {
    buffer.count = 0;
    buffer.limit = caution < 256 ? chooser.sampled_limit(data, caution) : chooser.format().last();
    chooser.fold(data, 0, buffer);
  }
  if (has_next) chooser.prefetch_sample(row + 1);
  if (!options.sort || buffer.count > 2 * options.k) chooser.reduce(buffer);
  const std::uint64_t* chosen = options.sort ? chooser.sorted(buffer) : buffer.entries;
  if (chooser.format().wide) {
    give<std::uint32_t>(chosen, row, options.k, chooser.format(), data, values, ids);
  } else {
    give<std::uint16_t>(chosen, row, options.k, chooser.format(), data, values, ids);
  }
}

}  // namespace

std::int64_t running_capacity(std::int64_t k) { return 2 * k + 2 * kBlock; }

void bottom_k(const Rows& rows, const BottomKOptions& options, std::byte* values, std::int64_t* ids) {
  const Allowed allowed(options.valid, rows.num_cols);
  if (options.k < 0 || options.k > allowed.count) {
    throw std::invalid_argument("k is not in 0 ... columns that may be chosen");
  }
  if (options.k == 0 || rows.num_rows == 0) return;
  const int num_threads = threads_for(size_bytes(rows), options.num_threads);
  const std::int64_t capacity = running_capacity(options.k);
  const std::int64_t group = std::clamp<std::int64_t>(rows.num_rows / (8 * num_threads), 1, kRowGroup);
  for_each_item((rows.num_rows + group - 1) / group, num_threads, [&]() -> Worker {
    const auto chooser = std::make_shared<Chooser>(rows, options, allowed, capacity);
    const auto memory = std::make_shared<std::vector<std::uint64_t>>(static_cast<std::size_t>(capacity));
    return [&, chooser, memory, group](std::int64_t item) {
      const std::int64_t end = std::min(rows.num_rows, (item + 1) * group);
      for (std::int64_t row = item * group; row < end; ++row) {
        Buffer buffer = {memory->data(), static_cast<std::int64_t>(memory->size()), 0, 0};
        choose_row(*chooser, options, row, row + 1 < end, buffer, values, ids);
      }
    };
  });
}

void bottom_k_fold(const Rows& rows, std::int64_t first_id, const BottomKOptions& options, const Running& running) {
  const Allowed allowed(options.valid, rows.num_cols);
  if (running.capacity < options.k + kBlock) throw std::invalid_argument("the capacity is too small for k");
  const int num_threads = threads_for(size_bytes(rows), options.num_threads);
  for_each_item(rows.num_rows, num_threads, [&]() -> Worker {
    const auto chooser = std::make_shared<Chooser>(rows, options, allowed, running.capacity);
    return [&, chooser](std::int64_t row) {
      Buffer buffer = {running.entries + row * running.capacity, running.capacity, running.counts[row],
                       running.limits[row]};
      chooser->fold(chooser->elements(row), first_id, buffer);
      running.counts[row] = buffer.count;
      running.limits[row] = buffer.limit;
    };
  });
}

void bottom_k_finish(const Running& running, std::int64_t num_rows, const BottomKOptions& options, float* values,
                     std::int64_t* ids) {
  const Rows rows = {DType::kF32, num_rows, 0, 0, 1, nullptr};
  const Allowed allowed(nullptr, 0);
  const auto entry_bytes = static_cast<std::int64_t>(sizeof(std::uint64_t));
  const int num_threads = threads_for(num_rows * running.capacity * entry_bytes, options.num_threads);
  for_each_item(num_rows, num_threads, [&]() -> Worker {
    const auto chooser = std::make_shared<Chooser>(rows, options, allowed, running.capacity);
    return [&, chooser](std::int64_t row) {
      Buffer buffer = {running.entries + row * running.capacity, running.capacity, running.counts[row], 0};
      if (buffer.count < options.k) throw std::invalid_argument("fewer than k elements were taken in");
      if (!options.sort) chooser->reduce(buffer);
      const std::uint64_t* chosen = options.sort ? chooser->sorted(buffer) : buffer.entries;
      for (std::int64_t i = 0; i < options.k; ++i) {
        ids[row * options.k + i] = static_cast<std::int64_t>(chosen[i] & 0xffffffffu);
        const std::uint32_t bits = chooser->format().bits(key_of(chosen[i]));
        std::memcpy(values + row * options.k + i, &bits, sizeof bits);
      }
    };
  });
}

}  // namespace modelassay
