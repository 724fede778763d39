#include "bottom_k/select.hpp"

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
  std::uint64_t lowest = entries[0];
  std::uint64_t highest = entries[0];
  for (std::int64_t i = 1; i < count; ++i) {
    lowest = std::min(lowest, entries[i]);
    highest = std::max(highest, entries[i]);
  }
  return {key_of(lowest), key_of(highest)};
}

// For a place in (low, high] that has k of the sorted entries before or at it: low has num_low < k, high num_high >= k.
struct Search {
  std::int64_t low;
  std::int64_t high;
  std::int64_t num_low;
  std::int64_t num_high;
  std::int64_t k;

  bool narrow(std::int64_t place, std::int64_t num) {
    const bool enough = num >= k;
    (enough ? high : low) = place;
    (enough ? num_high : num_low) = num;
    return enough;
  }

  // Ends at the first such place, or at any that has exactly k.
  template <class Count>
  void run(Count count) {
    for (bool halve = false; high - low > 1 && num_high != k; halve = !halve) {
      // Where the k-th would be if all were spread evenly, and the middle, in turns: few steps, and never many.
      const double share = halve ? 0.5 : static_cast<double>(k - num_low) / static_cast<double>(num_high - num_low);
      const auto step = static_cast<std::int64_t>(static_cast<double>(high - low) * share);
      const std::int64_t place = low + std::clamp<std::int64_t>(step, 1, high - low - 1);
      narrow(place, count(place));
    }
  }
};

}  // namespace

KeyFormat key_format(DType dtype, bool largest) {
  switch (dtype) {
    case DType::kBF16:
      return {{0x8000u, 0x7f80u, largest ? 0x8000u : 0u}, false};
    case DType::kF16:
      return {{0x8000u, 0x7c00u, largest ? 0x8000u : 0u}, false};
    case DType::kF32:
      return {{0x80000000u, 0x7f800000u, largest ? 0x80000000u : 0u}, true};
    default:
      throw std::invalid_argument("only BF16, F16 and F32 are supported");
  }
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

std::uint32_t keep_smallest(std::uint64_t* entries, std::int64_t count, std::int64_t k, std::uint32_t highest,
                            const KeyFormat& format, const KeyScan& scan) {
  Search keys = {-1, highest, 0, count, k};
  const auto count_keys = [&](std::int64_t key) {
    return scan.count_entries(entries, count, static_cast<std::uint64_t>(key) << 32 | 0xffffffffu);
  };
  // The limit lies a little above the k-th key when it comes from a sample: from there down, in growing steps.
  for (std::int64_t step = format.wide ? 1 << 16 : 1; keys.high - step > keys.low; step *= 4) {
    const std::int64_t key = keys.high - step;
    if (!keys.narrow(key, count_keys(key))) break;
  }
  keys.run(count_keys);
  const auto last_key = static_cast<std::uint64_t>(keys.high);
  std::uint64_t last = last_key << 32 | 0xffffffffu;
  if (keys.num_high != k) {  // several have the last key: the smallest ids of them stay
    const auto id_of = [](std::uint64_t entry) { return static_cast<std::int64_t>(entry & 0xffffffffu); };
    Search ids = {id_of(entries[0]) - 1, id_of(entries[count - 1]), keys.num_low, keys.num_high, k};
    ids.run([&](std::int64_t id) {
      return scan.count_entries(entries, count, last_key << 32 | static_cast<std::uint64_t>(id));
    });
    last = last_key << 32 | static_cast<std::uint64_t>(ids.high);
  }
  scan.keep_entries(entries, count, last);
  return static_cast<std::uint32_t>(last_key);
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
