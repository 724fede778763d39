// Keys, entries and their order (see bottom_k.hpp): what is done with the few elements that passed the limit.
#pragma once

#include <cstdint>
#include <vector>

#include "bottom_k_isa.hpp"
#include "layer_std.hpp"

namespace modelassay {

// How the elements of one type are ordered; 16-bit types have 16-bit keys.
struct KeyFormat {
  std::uint32_t sign;      // the sign bit
  std::uint32_t infinity;  // the bits of +inf
  std::uint32_t flip;      // the sign bit where the largest come first, else 0
  bool wide;               // 32 bits

  std::uint32_t last() const { return sign | (sign - 1); }                    // NaN's key
  std::uint32_t last_number() const { return sign | infinity; }               // the key of the infinity that comes last
  std::uint32_t first_number() const { return last() ^ (sign | infinity); }  // and of the one that comes first

  std::uint32_t key(std::uint32_t bits) const {
    const std::uint32_t x = bits ^ flip;
    const std::uint32_t ordered = (x & sign) != 0 ? x ^ last() : x | sign;
    const std::uint32_t merged = ordered + (ordered == sign - 1 ? 1 : 0);  // -0.0 is +0.0
    return (x & (sign - 1)) > infinity ? last() : merged;
  }
  std::uint32_t bits(std::uint32_t key) const;  // of an element that has this key; +0.0 of the two zeros
  KeySet not_above(std::uint32_t limit) const;  // limit >= first_number()
};

// Throws std::invalid_argument for other types than bf16, fp16 and fp32.
KeyFormat key_format(DType dtype, bool largest);

inline std::uint32_t key_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry >> 32); }

// Keeps the k smallest of count > k entries, in their order (which must be that of their ids), and returns the largest key
// kept. `scratch` has room for count entries.
std::uint32_t keep_smallest(std::uint64_t* entries, std::int64_t count, std::int64_t k, std::uint64_t* scratch);

// Sorts entries that are in the order of their ids. The result is in `entries` or in `scratch`: returns which.
std::uint64_t* sort_entries(std::uint64_t* entries, std::int64_t count, std::uint64_t* scratch);

}  // namespace modelassay
