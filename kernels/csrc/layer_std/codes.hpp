// Sums over a tile of fp8 codes around a centre of 0, read row after row as they lie in memory. Included by tile.hpp.
//
// A block's scale multiplies the sums over its part of a row, not its elements: codes have few digits, so that up to 16 of
// their values and squares lose nothing to speak of in float. Zeros weigh nothing, so ragged ends are filled with them.
#pragma once

#include "common/simd.hpp"
#include "layer_std/isa.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kCodeChain = 8;  // steps in float before they are folded, and folds in float before they move to double

#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)

// The bf16 values of the codes without their sign, as two tables of bytes: exact, since both formats have fewer digits, and
// where a code is subnormal its value is not.
struct CodeTable {
  alignas(64) std::uint8_t low[128]{};
  alignas(64) std::uint8_t high[128]{};

  // Codes of so many digits behind the point, whose exponent counts from 2^-bias; `infinity` and above: no number but that and NaN.
  constexpr CodeTable(std::uint32_t digits, int bias, std::uint32_t infinity, bool has_infinity) {
    for (std::uint32_t code = 0; code < 128; ++code) {
      const std::uint32_t exponent = code >> digits;
      const std::uint32_t fraction = code & ((1u << digits) - 1);
      auto value = static_cast<float>(exponent == 0 ? fraction : fraction + (1u << digits));
      for (int i = static_cast<int>(exponent == 0 ? 1 : exponent); i < bias + static_cast<int>(digits); ++i) value /= 2;
      for (int i = bias + static_cast<int>(digits); i < static_cast<int>(exponent); ++i) value *= 2;
      auto raw = __builtin_bit_cast(std::uint32_t, value);
      if (code >= infinity) raw = has_infinity && code == infinity ? 0x7f800000u : 0x7fc00000u;
      low[code] = static_cast<std::uint8_t>(raw >> 16);
      high[code] = static_cast<std::uint8_t>(raw >> 24);
    }
  }
};

template <class Format>
constexpr CodeTable kCodes{3, 7, 0x7f, false};
template <>
constexpr CodeTable kCodes<E5M2>{2, 15, 0x7c, true};

// Sums of the codes' values and squares since they were last taken.
template <class Format>
class CodeSums {
 public:
  static constexpr std::int64_t kStep = 64;
  static constexpr double unit = 1.0;

  CodeSums() {
    for (int i = 0; i < 2; ++i) {
      low_[i] = _mm512_load_si512(kCodes<Format>.low + 64 * i);
      high_[i] = _mm512_load_si512(kCodes<Format>.high + 64 * i);
    }
  }

  void add(const std::byte* data, std::int64_t count) {
    const __mmask64 mask = ~__mmask64{0} >> (64 - count);
    const __m512i codes = _mm512_maskz_loadu_epi8(mask, data);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    const __m512i unsigned_high = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    const __m512i high = _mm512_ternarylogic_epi32(unsigned_high, codes, _mm512_set1_epi8(-128), kOrAnd);
    const auto x = bits<__m512bh>(_mm512_unpacklo_epi8(low, high));
    const auto y = bits<__m512bh>(_mm512_unpackhi_epi8(low, high));
    const auto one = bits<__m512bh>(_mm512_set1_epi16(0x3f80));
    a1_[0] = _mm512_dpbf16_ps(a1_[0], x, one);
    a1_[1] = _mm512_dpbf16_ps(a1_[1], y, one);
    a2_[0] = _mm512_dpbf16_ps(a2_[0], x, x);
    a2_[1] = _mm512_dpbf16_ps(a2_[1], y, y);
  }

  void take(F32& sum, F32& squares) {
    sum = bits<F32>(a1_[0]) + bits<F32>(a1_[1]);
    squares = bits<F32>(a2_[0]) + bits<F32>(a2_[1]);
    for (int i = 0; i < 2; ++i) a1_[i] = a2_[i] = _mm512_setzero_ps();
  }

 private:
  __m512i low_[2];
  __m512i high_[2];
  __m512 a1_[2]{};
  __m512 a2_[2]{};
};

#else

template <class Format>
class CodeSums {
 public:
  static constexpr std::int64_t kStep = 4 * kLanes;
  static constexpr double unit = Format::unit;

  void add(const std::byte* data, std::int64_t count) {
    if (count == kStep) {
      add_whole(data);
    } else {
      std::byte filled[kStep]{};
      __builtin_memcpy(filled, data, static_cast<std::size_t>(count));
      add_whole(filled);
    }
  }

  void take(F32& sum, F32& squares) {
    sum = (a1_[0] + a1_[1]) + (a1_[2] + a1_[3]);
    squares = (a2_[0] + a2_[1]) + (a2_[2] + a2_[3]);
    for (int j = 0; j < 4; ++j) a1_[j] = a2_[j] = F32{};
  }

 private:
  void add_whole(const std::byte* data) {
    F32 x[4];
    Format::group(data, x);
    for (int j = 0; j < 4; ++j) {
      a1_[j] += x[j];
      a2_[j] += x[j] * x[j];
    }
  }

  F32 a1_[4]{};
  F32 a2_[4]{};
};

#endif

// The sums over a tile, each fold by its own scale.
template <class Format>
class ScaledSums {
 public:
  static constexpr std::int64_t kStep = CodeSums<Format>::kStep;

  // Neighbouring codes of one scale.
  void add(const std::byte* data, std::int64_t count, F32 scale) {
    while (count >= kCodeChain * kStep) {
      add_steps(data, kCodeChain);
      fold(scale);
      data += kCodeChain * kStep;
      count -= kCodeChain * kStep;
    }
    if (count == 0) return;
    add_steps(data, count / kStep);
    if (const std::int64_t left = count % kStep; left > 0) codes_.add(data + (count - left), left);
    fold(scale);
  }

  void flush() {
    add_to(s1, t1_);
    add_to(s2, t2_);
    t1_ = t2_ = F32{};
    folds_ = 0;
  }

  F64 s1{};
  F64 s2{};

 private:
  void add_steps(const std::byte* data, std::int64_t steps) {
    for (; steps > 0; --steps, data += kStep) {
      __builtin_prefetch(data + kAhead);
      codes_.add(data, kStep);
    }
  }

  void fold(F32 scale) {
    F32 sum, squares;
    codes_.take(sum, squares);
    t1_ += sum * scale;
    t2_ += squares * (scale * scale);
    if (++folds_ == kCodeChain) flush();
  }

  static constexpr std::int64_t kAhead = 512;

  CodeSums<Format> codes_;
  F32 t1_{};
  F32 t2_{};
  std::int64_t folds_ = 0;
};

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Whether squares of scaled codes, and sums of them, stay within the range of float.
inline bool moderate(float scale) {
  constexpr float kLargest = 0x1p40f;
  constexpr float kSmallest = 0x1p-40f;
  const float size = scale < 0 ? -scale : scale;
  return size == 0 || (size >= kSmallest && size <= kLargest);  // NaN is not
}

// Adds the rows of a tile, by their blocks' scales; false where one is out of range.
template <class Format>
bool add_rows(const Tile& tile, ScaledSums<Format>& sums) {
  const std::int64_t cols = tile.shape.num_cols;
  const bool scaled = tile.scale.data != nullptr;
  const std::int64_t block_cols = scaled ? tile.scale.block_cols : cols;
  const std::int64_t first_block = scaled ? tile.first_col / block_cols : 0;
  const std::int64_t first_count = scaled ? smaller((first_block + 1) * block_cols - tile.first_col, cols) : cols;
  const float one = 1;
  for (std::int64_t row = 0; row < tile.shape.num_rows; ++row) {
    const std::byte* data = tile.data + row * tile.shape.row_stride;
    const float* scale = &one;
    if (scaled) {
      const std::int64_t block_row = (tile.first_row + row) / tile.scale.block_rows;
      scale = tile.scale.data + block_row * tile.scale.num_cols + first_block;
    }
    std::int64_t count = first_count;
    for (std::int64_t col = 0; col < cols; ++scale) {
      if (!moderate(*scale)) return false;
      sums.add(data + col, count, F32{} + *scale);
      col += count;
      count = smaller(block_cols, cols - col);
    }
  }
  return true;
}

// Sums of x and x^2 over the tile, x with its unit and scale; NaN where float would not hold them.
template <class Format>
void add_codes(const Tile& tile, F64& s1, F64& s2) {
  ScaledSums<Format> sums;  // of its own: its vectors stay in registers
  if (!add_rows(tile, sums)) {
    s2 += __builtin_nan("");
    return;
  }
  sums.flush();
  const double unit = CodeSums<Format>::unit * tile.unit;
  s1 += sums.s1 * unit;
  s2 += sums.s2 * (unit * unit);
}

}  // namespace
}  // namespace modelassay::MODELASSAY_ISA
