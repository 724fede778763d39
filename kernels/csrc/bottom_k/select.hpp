// Keys, entries and their order (see bottom_k.hpp): what is done with the few elements that passed the limit.
#pragma once

#include <cstdint>
#include <vector>

#include "bottom_k/isa.hpp"
#include "common/dtype.hpp"

namespace modelassay {

// How the elements of one type are ordered; 16-bit types have 16-bit keys. With x = bits ^ flip the key is ~x for negative
// x, x | sign for positive x and for both zeros, and all ones for NaN.
struct KeyFormat : KeyOrder {
  bool wide;  // 32 bits

  std::uint32_t last() const { return sign | (sign - 1); }                    // NaN's key
  std::uint32_t last_number() const { return sign | infinity; }               // the key of the infinity that comes last
  std::uint32_t first_number() const { return last() ^ (sign | infinity); }  // and of the one that comes first

  std::uint32_t bits(std::uint32_t key) const {  // of an element that has this key; of zeros +0.0, of NaN a quiet one
    if (key == sign || key == last()) return key == sign ? 0 : infinity | (infinity >> 1);
    return ((key & sign) != 0 ? key ^ sign : key ^ last()) ^ flip;
  }
  KeySet not_above(std::uint32_t limit) const;  // limit >= first_number()
};

// Throws std::invalid_argument for other types than bf16, fp16 and fp32.
KeyFormat key_format(DType dtype, bool largest);

inline std::uint32_t key_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry >> 32); }

// Keeps the k smallest of count > k > 0 entries, in their order, which must be that of their ids. No key is above `highest`.
// Returns a key that no entry kept is above.
std::uint32_t keep_smallest(std::uint64_t* entries, std::int64_t count, std::int64_t k, std::uint32_t highest,
                            const KeyFormat& format, const KeyScan& scan);

// Sorts entries that are in the order of their ids. The result is in `entries` or in `scratch`: returns which.
std::uint64_t* sort_entries(std::uint64_t* entries, std::int64_t count, std::uint64_t* scratch);

}  // namespace modelassay
