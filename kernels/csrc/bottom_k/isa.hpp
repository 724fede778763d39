// The seam between bottom_k and the code compiled once per instruction set (see common/instruction_sets.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelassay {

// The elements, as unsigned integers of their own width, whose key is not above some limit: those with
// x - first <= width in either of two intervals. Any limit gives such a set, NaN and both zeros included, so formats of
// one width need no code of their own.
struct KeySet {
  std::uint32_t first[2];
  std::uint32_t width[2];
};

// How elements become keys (see KeyFormat).
struct KeyOrder {
  std::uint32_t sign;      // the sign bit
  std::uint32_t infinity;  // the bits of +inf
  std::uint32_t flip;      // the sign bit where the largest come first, else 0
};

constexpr std::int64_t kBlock = 2048;  // elements looked at in one go: they and their positions stay in the first cache

struct KeyScan {
  // How many of `count` elements are in the set.
  std::int64_t (*count16)(const std::byte* data, std::int64_t count, const KeySet& set);
  std::int64_t (*count32)(const std::byte* data, std::int64_t count, const KeySet& set);
  // Writes the entries of those of `count` <= kBlock elements that are in the set and whose bit is set in `allowed` (null:
  // all), by rising ids, and returns their number.
  std::int64_t (*scan16)(const std::byte* data, std::int64_t count, const KeySet& set, const std::uint64_t* allowed,
                         const KeyOrder& order, std::int64_t first_id, std::uint64_t* entries);
  std::int64_t (*scan32)(const std::byte* data, std::int64_t count, const KeySet& set, const std::uint64_t* allowed,
                         const KeyOrder& order, std::int64_t first_id, std::uint64_t* entries);
  // How many of `count` entries are not above `last`.
  std::int64_t (*count_entries)(const std::uint64_t* entries, std::int64_t count, std::uint64_t last);
  // Moves them to the front, in their order.
  void (*keep_entries)(std::uint64_t* entries, std::int64_t count, std::uint64_t last);
};

namespace portable {
extern const KeyScan key_scan;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KeyScan key_scan;
}
namespace avx512 {
extern const KeyScan key_scan;
}
#endif

}  // namespace modelassay
