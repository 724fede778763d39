#include "bottom_k_select.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

namespace modelassay {
namespace {

struct KeyRange {
  std::uint32_t lowest;
  std::uint32_t highest;
};

KeyRange range_of(const std::uint64_t* entries, std::int64_t count) {
  const auto [lowest, highest] = std::minmax_element(entries, entries + count);
  return {key_of(*lowest), key_of(*highest)};
}

}  // namespace

KeyFormat key_format(DType dtype, bool largest) {
  switch (dtype) {
    case DType::kBF16:
      return {0x8000u, 0x7f80u, largest ? 0x8000u : 0u, false};
    case DType::kF16:
      return {0x8000u, 0x7c00u, largest ? 0x8000u : 0u, false};
    case DType::kF32:
      return {0x80000000u, 0x7f800000u, largest ? 0x80000000u : 0u, true};
    default:
      throw std::invalid_argument("bottom_k: only BF16, F16 and F32 are supported");
  }
}

std::uint32_t KeyFormat::bits(std::uint32_t key) const {
  if (key == last()) return infinity | (infinity >> 1);  // a quiet NaN
  if (key == sign) return 0;
  return ((key & sign) != 0 ? key ^ sign : key ^ last()) ^ flip;
}

KeySet KeyFormat::not_above(std::uint32_t limit) const {
  if (limit >= last()) return {{0, 0}, {last(), last()}};
  if (limit == sign - 1) --limit;  // no element has this key: -0.0 would, and has the next
  if (limit < sign) {
    const std::uint32_t first = limit ^ last();
    const std::uint32_t width = (sign | infinity) - first;
    return {{first ^ flip, first ^ flip}, {width, width}};
  }
  return {{sign ^ flip, flip}, {infinity, std::min(limit - sign, infinity)}};
}

std::uint32_t keep_smallest(std::uint64_t* entries, std::int64_t count, std::int64_t k, std::uint64_t* scratch) {
  constexpr int kDigit = 11;
  std::uint32_t counts[1 << kDigit];
  const std::uint64_t* left = entries;
  std::int64_t num_left = count;
  std::int64_t rank = k;  // of the k-th entry among those left
  KeyRange range = range_of(entries, count);
  while (range.lowest != range.highest) {
    const int width = std::bit_width(range.highest - range.lowest);
    const int shift = std::max(0, width - kDigit);
    std::fill(counts, counts + (std::size_t{1} << std::min(width, kDigit)), 0u);
    for (std::int64_t i = 0; i < num_left; ++i) ++counts[(key_of(left[i]) - range.lowest) >> shift];
    std::uint32_t digit = 0;
    for (; rank > counts[digit]; ++digit) rank -= counts[digit];
    std::int64_t num = 0;
    for (std::int64_t i = 0; i < num_left; ++i) {
      const std::uint64_t entry = left[i];
      scratch[num] = entry;
      num += (key_of(entry) - range.lowest) >> shift == digit ? 1 : 0;
    }
    left = scratch;
    num_left = num;
    range = range_of(left, num_left);
  }
  const std::uint64_t last = left[rank - 1];  // all that are left have one key: in the order of their ids
  std::int64_t num = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t entry = entries[i];
    entries[num] = entry;
    num += entry <= last ? 1 : 0;
  }
  return key_of(last);
}

std::uint64_t* sort_entries(std::uint64_t* entries, std::int64_t count, std::uint64_t* scratch) {
  constexpr int kMaxDigit = 11;
  constexpr int kMaxPasses = 3;
  if (count < 2) return entries;
  const KeyRange range = range_of(entries, count);
  const int width = std::bit_width(range.highest - range.lowest);
  const int most = count < 256 ? 8 : kMaxDigit;
  const int passes = (width + most - 1) / most;
  if (passes == 0) return entries;
  const int digit = (width + passes - 1) / passes;
  const std::uint32_t mask = (1u << digit) - 1;
  std::uint32_t starts[4][1 << kMaxDigit];
  static_assert(kMaxPasses * kMaxDigit >= 32 && 4 * 8 >= 32);
  for (int pass = 0; pass < passes; ++pass) std::fill(starts[pass], starts[pass] + mask + 1, 0u);
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t key = key_of(entries[i]) - range.lowest;
    for (int pass = 0; pass < passes; ++pass, key >>= digit) ++starts[pass][key & mask];
  }
  for (int pass = 0; pass < passes; ++pass) {
    std::uint32_t start = 0;
    for (std::uint32_t i = 0; i <= mask; ++i) start += std::exchange(starts[pass][i], start);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint64_t entry = entries[i];
      scratch[starts[pass][((key_of(entry) - range.lowest) >> (pass * digit)) & mask]++] = entry;
    }
    std::swap(entries, scratch);
  }
  return entries;
}

}  // namespace modelassay
