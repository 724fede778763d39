// The seam between bottom_k and the code compiled once per instruction set; the rules of layer_std_isa.hpp hold.
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

struct KeyScan {
  const char* name;
  // How many of `count` elements are in the set.
  std::int64_t (*count16)(const std::byte* data, std::int64_t count, const KeySet& set);
  std::int64_t (*count32)(const std::byte* data, std::int64_t count, const KeySet& set);
  // Writes the positions of the elements that are in the set and whose bit is set in `allowed` (null: all), in rising order,
  // and returns their number. Room for count + 64 positions is needed.
  std::int64_t (*scan16)(const std::byte* data, std::int64_t count, const KeySet& set, const std::uint64_t* allowed,
                         std::uint32_t* positions);
  std::int64_t (*scan32)(const std::byte* data, std::int64_t count, const KeySet& set, const std::uint64_t* allowed,
                         std::uint32_t* positions);
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
