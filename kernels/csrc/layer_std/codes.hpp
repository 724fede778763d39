// Sums over a tile of fp8 codes, a block of one scale at a time. Included by tile.hpp.
//
// Codes have few digits, so that their values and, up to 16 at a time, the sums of their squares are exact in float around a
// centre of 0; a block's scale then multiplies its sums, not its elements. Zeros weigh nothing, so ragged ends are filled with them.
#pragma once

#include "common/simd.hpp"
#include "layer_std/isa.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kCodeChain = 8;  // steps in float before the sums move to double

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
    if (++steps_ == kCodeChain) flush();
  }

  void flush() {
    add_to(s1, bits<F32>(a1_[0]) + bits<F32>(a1_[1]));
    add_to(s2, bits<F32>(a2_[0]) + bits<F32>(a2_[1]));
    for (int i = 0; i < 2; ++i) a1_[i] = a2_[i] = _mm512_setzero_ps();
    steps_ = 0;
  }

  F64 s1{};
  F64 s2{};

 private:
  __m512i low_[2];
  __m512i high_[2];
  __m512 a1_[2]{};
  __m512 a2_[2]{};
  std::int64_t steps_ = 0;
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

  void flush() {
    add_to(s1, (a1_[0] + a1_[1]) + (a1_[2] + a1_[3]));
    add_to(s2, (a2_[0] + a2_[1]) + (a2_[2] + a2_[3]));
    for (int j = 0; j < 4; ++j) a1_[j] = a2_[j] = F32{};
    steps_ = 0;
  }

  F64 s1{};
  F64 s2{};

 private:
  void add_whole(const std::byte* data) {
    F32 x[4];
    Format::group(data, x);
    for (int j = 0; j < 4; ++j) {
      a1_[j] += x[j];
      a2_[j] += x[j] * x[j];
    }
    if (++steps_ == kCodeChain) flush();
  }

  F32 a1_[4]{};
  F32 a2_[4]{};
  std::int64_t steps_ = 0;
};

#endif

// Neighbouring rows of a tile, as many columns of them as share a scale.
struct Strip {
  const std::byte* data;
  std::int64_t row_stride;
  std::int64_t num_rows;
  std::int64_t num_cols;
  std::int64_t ahead;  // bytes from what is read to what is asked for
};

// Few rows at a time: more would fall into the same places of the first cache where their distance is a power of two.
constexpr std::int64_t kStripRows = 8;
constexpr std::int64_t kAhead = 512;
constexpr std::int64_t kFarthest = 128 * 1024;

template <class Format>
void add_strip(const Strip& strip, double scale, F64& s1, F64& s2) {
  CodeSums<Format> sums;  // of its own: its vectors stay in registers
  constexpr std::int64_t kStep = CodeSums<Format>::kStep;
  for (std::int64_t row = 0; row < strip.num_rows; ++row) {
    const std::byte* data = strip.data + row * strip.row_stride;
    std::int64_t left = strip.num_cols;
    for (; left >= kStep; left -= kStep, data += kStep) {
      __builtin_prefetch(data + strip.ahead, 0, 2);
      sums.add(data, kStep);
    }
    if (left > 0) sums.add(data, left);
  }
  sums.flush();
  s1 += sums.s1 * scale;
  s2 += sums.s2 * (scale * scale);
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Sums of x and x^2 over the tile, x with its unit and scale.
template <class Format>
void add_codes(const Tile& tile, F64& s1, F64& s2) {
  const double unit = CodeSums<Format>::unit * tile.unit;
  const std::int64_t rows = tile.shape.num_rows;
  const std::int64_t cols = tile.shape.num_cols;
  const std::int64_t stride = tile.shape.row_stride;
  if (tile.scale.data == nullptr) {
    add_strip<Format>({tile.data, stride, rows, cols, kAhead}, unit, s1, s2);
    return;
  }
  const std::int64_t block_rows = tile.scale.block_rows;
  const std::int64_t block_cols = tile.scale.block_cols;
  const std::int64_t first_edge = block_cols - tile.first_col % block_cols;
  // The same columns of the next rows, where the second cache keeps them until then.
  const std::int64_t ahead = kStripRows * stride < kFarthest ? kStripRows * stride : kAhead;
  std::int64_t num_rows = 0;
  for (std::int64_t row = 0; row < rows; row += num_rows) {
    const std::int64_t matrix_row = tile.first_row + row;
    num_rows = smaller(smaller(kStripRows, rows - row), block_rows - matrix_row % block_rows);
    const float* scale = tile.scale.data + matrix_row / block_rows * tile.scale.num_cols + tile.first_col / block_cols;
    std::int64_t num_cols = smaller(first_edge, cols);
    for (std::int64_t col = 0; col < cols; ++scale) {
      const Strip strip = {tile.data + row * stride + col, stride, num_rows, num_cols, ahead};
      add_strip<Format>(strip, unit * static_cast<double>(*scale), s1, s2);
      col += num_cols;
      num_cols = smaller(block_cols, cols - col);
    }
  }
}

}  // namespace
}  // namespace modelassay::MODELASSAY_ISA
