// Which of 64 neighbouring elements are in a KeySet, as the bits of one word; and what is made of such words. kTwo: its
// intervals differ, which they do not where the limit has the sign that comes first, as it mostly has.
// Included by files compiled for one instruction set each (see common/simd.hpp).
#pragma once

#include "bottom_k/isa.hpp"
#include "common/simd.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kWord = 64;  // elements of one word

#if defined(__AVX512F__)

template <class Element, bool kTwo>
struct Matcher;

template <bool kTwo>
struct Matcher<std::uint32_t, kTwo> {
  __m512i first[2], width[2];
  explicit Matcher(const KeySet& set) {
    for (int i = 0; i < 2; ++i) {
      first[i] = _mm512_set1_epi32(static_cast<int>(set.first[i]));
      width[i] = _mm512_set1_epi32(static_cast<int>(set.width[i]));
    }
  }
  std::uint64_t match(const std::byte* data) const {
    std::uint64_t word = 0;
    for (int i = 0; i < 4; ++i) {
      const __m512i x = load<__m512i>(data + i * kBytes);
      std::uint32_t in = _mm512_cmple_epu32_mask(_mm512_sub_epi32(x, first[0]), width[0]);
      if constexpr (kTwo) in |= _mm512_cmple_epu32_mask(_mm512_sub_epi32(x, first[1]), width[1]);
      word |= std::uint64_t{in} << (16 * i);
    }
    return word;
  }
};

template <bool kTwo>
struct Matcher<std::uint16_t, kTwo> {
  __m512i first[2], width[2];
  explicit Matcher(const KeySet& set) {
    for (int i = 0; i < 2; ++i) {
      first[i] = _mm512_set1_epi16(static_cast<short>(set.first[i]));
      width[i] = _mm512_set1_epi16(static_cast<short>(set.width[i]));
    }
  }
  std::uint64_t match(const std::byte* data) const {
    std::uint64_t word = 0;
    for (int i = 0; i < 2; ++i) {
      const __m512i x = load<__m512i>(data + i * kBytes);
      std::uint32_t in = _mm512_cmple_epu16_mask(_mm512_sub_epi16(x, first[0]), width[0]);
      if constexpr (kTwo) in |= _mm512_cmple_epu16_mask(_mm512_sub_epi16(x, first[1]), width[1]);
      word |= std::uint64_t{in} << (32 * i);
    }
    return word;
  }
};

#elif defined(__AVX2__)

template <class Element, bool kTwo>
struct Matcher;

template <bool kTwo>
struct Matcher<std::uint32_t, kTwo> {
  __m256i first[2], width[2];
  explicit Matcher(const KeySet& set) {
    for (int i = 0; i < 2; ++i) {
      first[i] = _mm256_set1_epi32(static_cast<int>(set.first[i]));
      width[i] = _mm256_set1_epi32(static_cast<int>(set.width[i]));
    }
  }
  std::uint64_t match(const std::byte* data) const {
    std::uint64_t word = 0;
    for (int i = 0; i < 8; ++i) {
      const __m256i x = load<__m256i>(data + i * kBytes);
      const __m256i low = _mm256_sub_epi32(x, first[0]);
      __m256i in = _mm256_cmpeq_epi32(_mm256_min_epu32(low, width[0]), low);
      if constexpr (kTwo) {
        const __m256i high = _mm256_sub_epi32(x, first[1]);
        in = _mm256_or_si256(in, _mm256_cmpeq_epi32(_mm256_min_epu32(high, width[1]), high));
      }
      word |= std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(in)))} << (8 * i);
    }
    return word;
  }
};

template <bool kTwo>
struct Matcher<std::uint16_t, kTwo> {
  __m256i first[2], width[2];
  explicit Matcher(const KeySet& set) {
    for (int i = 0; i < 2; ++i) {
      first[i] = _mm256_set1_epi16(static_cast<short>(set.first[i]));
      width[i] = _mm256_set1_epi16(static_cast<short>(set.width[i]));
    }
  }
  __m256i in(const std::byte* data) const {
    const __m256i x = load<__m256i>(data);
    const __m256i low = _mm256_sub_epi16(x, first[0]);
    const __m256i in_low = _mm256_cmpeq_epi16(_mm256_min_epu16(low, width[0]), low);
    if constexpr (!kTwo) return in_low;
    const __m256i high = _mm256_sub_epi16(x, first[1]);
    return _mm256_or_si256(in_low, _mm256_cmpeq_epi16(_mm256_min_epu16(high, width[1]), high));
  }
  std::uint64_t match(const std::byte* data) const {
    std::uint64_t word = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i packed = _mm256_packs_epi16(in(data + 2 * i * kBytes), in(data + (2 * i + 1) * kBytes));
      const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);  // packs works within halves of the register
      word |= std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_epi8(ordered))} << (32 * i);
    }
    return word;
  }
};

#else

// Byte i of the result has, at bit j, bit i of byte j (Hacker's Delight, 7-3).
inline std::uint64_t transpose_bits(std::uint64_t x) {
  std::uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aau;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccu;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0u;
  return x ^ t ^ (t << 28);
}

template <class Element>
struct LanesOf;
template <>
struct LanesOf<std::uint16_t> {
  using Type = U16;
};
template <>
struct LanesOf<std::uint32_t> {
  using Type = U32;
};

template <class Element, bool kTwo>
struct Matcher {
  using Lanes = typename LanesOf<Element>::Type;
  static_assert(kBytes == 16);
  Lanes first[2], width[2];
  explicit Matcher(const KeySet& set) {
    for (int i = 0; i < 2; ++i) {
      first[i] = Lanes{} + static_cast<Element>(set.first[i]);
      width[i] = Lanes{} + static_cast<Element>(set.width[i]);
    }
  }
  U32 in(const std::byte* data) const {
    const Lanes x = load<Lanes>(data);
    const U32 in_low = bits<U32>(x - first[0] <= width[0]);
    if constexpr (!kTwo) return in_low;
    return in_low | bits<U32>(x - first[1] <= width[1]);
  }
  U16 eight(const std::byte* data) const {
    if constexpr (sizeof(Element) == 2) {
      return bits<U16>(in(data));
    } else {
      const U16 low = bits<U16>(in(data));
      const U16 high = bits<U16>(in(data + kBytes));
      return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    }
  }
  std::uint64_t match(const std::byte* data) const {
    U16 columns{};  // lane i has, at bit j, element 8 j + i
    U16 bit = U16{} + std::uint16_t{1};
    for (int j = 0; j < 8; ++j, bit += bit) columns |= eight(data + j * 8 * static_cast<int>(sizeof(Element))) & bit;
    std::uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word |= std::uint64_t{columns[i]} << (8 * i);
    return transpose_bits(word);
  }
};

#endif

template <class Element, bool kTwo, class Each>
inline void match_words(const std::byte* data, std::int64_t count, const KeySet& set, Each each) {
  const Matcher<Element, kTwo> matcher(set);
  std::int64_t at = 0;
  for (; at + kWord <= count; at += kWord) each(at, matcher.match(data + at * static_cast<std::int64_t>(sizeof(Element))));
  if (at == count) return;
  Element last[kWord]{};
  __builtin_memcpy(last, data + at * static_cast<std::int64_t>(sizeof(Element)),
                   static_cast<std::size_t>(count - at) * sizeof(Element));
  each(at, matcher.match(reinterpret_cast<const std::byte*>(last)) & ((std::uint64_t{1} << (count - at)) - 1));
}

// Calls each(first element, word) for all elements; the last word has zeros where there are none.
template <class Element, class Each>
inline void for_each_word(const std::byte* data, std::int64_t count, const KeySet& set, Each each) {
  if (set.first[0] == set.first[1]) {
    match_words<Element, false>(data, count, set, each);
  } else {
    match_words<Element, true>(data, count, set, each);
  }
}

template <class Element>
std::int64_t count(const std::byte* data, std::int64_t num, const KeySet& set) {
  std::int64_t total = 0;
  for_each_word<Element>(data, num, set, [&](std::int64_t, std::uint64_t word) { total += __builtin_popcountll(word); });
  return total;
}

// The position of the lowest bit, which is cleared; 63 of zero.
inline std::uint64_t take_lowest(std::uint64_t& word) {
  const int position = __builtin_ctzll(word | std::uint64_t{1} << 63);
  word &= word - 1;
  return static_cast<std::uint64_t>(position);
}

constexpr int kFirst = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 1;  // of two, the one in the lower half of a word

// Four positions are written whatever the word holds: at one or two per word, a loop over its bits would spend its time on
// mispredicted ends.
inline std::uint32_t* append(std::uint32_t* to, std::int64_t at, std::uint64_t word) {
  const int num = __builtin_popcountll(word);
#if defined(__AVX512F__)
  if (num > 4) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 4; ++i) {
      const auto part = static_cast<__mmask16>(word >> (16 * i));
      const __m512i position = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(at) + 16 * i), lane);
      // Compressed in a register and stored whole: the form that compresses into memory is microcode on Zen 4.
      const __m512i packed = _mm512_maskz_compress_epi32(part, position);
      __builtin_memcpy(to, &packed, sizeof packed);
      to += __builtin_popcount(part);
    }
    return to;
  }
#endif
  for (int i = 0; i == 0 || i < num; i += 4) {
    for (int j = 0; j < 4; j += 2) {
      const std::uint64_t first = take_lowest(word);
      const std::uint64_t pair[2] = {first, take_lowest(word)};
      const std::uint64_t both = (pair[kFirst] | pair[1 - kFirst] << 32) + static_cast<std::uint64_t>(at) * 0x100000001u;
      __builtin_memcpy(to + i + j, &both, sizeof both);
    }
  }
  return to + num;
}

template <class Element>
std::int64_t scan(const std::byte* data, std::int64_t num, const KeySet& set, const std::uint64_t* allowed,
                  const KeyOrder& order, std::int64_t first_id, std::uint64_t* entries) {
  std::uint32_t positions[kBlock + kWord];
  std::uint32_t elements[kBlock];
  std::uint32_t* to = positions;
  if (allowed == nullptr) {
    for_each_word<Element>(data, num, set, [&](std::int64_t at, std::uint64_t word) { to = append(to, at, word); });
  } else {
    for_each_word<Element>(data, num, set, [&](std::int64_t at, std::uint64_t word) {
      to = append(to, at, word & allowed[at / kWord]);
    });
  }
  const std::int64_t num_entries = to - positions;
  for (std::int64_t i = 0; i < num_entries; ++i) elements[i] = load<Element>(data + positions[i] * sizeof(Element));
  const std::uint32_t last = order.sign | (order.sign - 1);
  const std::uint64_t first = static_cast<std::uint64_t>(first_id);
  for (std::int64_t i = 0; i < num_entries; ++i) {  // KeyFormat::key, in a form that becomes vectors
    const std::uint32_t x = elements[i] ^ order.flip;
    const std::uint32_t ordered = (x & order.sign) != 0 ? x ^ last : x | order.sign;
    const std::uint32_t merged = ordered == order.sign - 1 ? order.sign : ordered;
    const std::uint32_t key = (x & (order.sign - 1)) > order.infinity ? last : merged;
    entries[i] = std::uint64_t{key} << 32 | (first + positions[i]);
  }
  return num_entries;
}

std::int64_t count_entries(const std::uint64_t* entries, std::int64_t num, std::uint64_t last) {
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < num; ++i) total += entries[i] <= last ? 1 : 0;
  return total;
}

void keep_entries(std::uint64_t* entries, std::int64_t num, std::uint64_t last) {
  std::int64_t kept = 0;
  std::int64_t i = 0;
#if defined(__AVX512F__)
  const __m512i highest = _mm512_set1_epi64(static_cast<long long>(last));
  for (; i + 8 <= num; i += 8) {
    const __m512i eight = load<__m512i>(entries + i);
    const __mmask8 keep = _mm512_cmple_epu64_mask(eight, highest);
    const __m512i packed = _mm512_maskz_compress_epi64(keep, eight);
    __builtin_memcpy(entries + kept, &packed, sizeof packed);  // not beyond what was read
    kept += __builtin_popcount(keep);
  }
#endif
  for (; i < num; ++i) {
    const std::uint64_t entry = entries[i];
    entries[kept] = entry;
    kept += entry <= last ? 1 : 0;
  }
}

}  // namespace

const KeyScan key_scan = {count<std::uint16_t>, count<std::uint32_t>, scan<std::uint16_t>,
                          scan<std::uint32_t>, count_entries, keep_entries};

}  // namespace modelassay::MODELASSAY_ISA
