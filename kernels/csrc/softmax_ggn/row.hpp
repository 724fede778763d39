// One row of softmax_ggn. Included by files compiled for one instruction set each (see common/simd.hpp).
//
// Three sweeps, of which only the first over the logits and the first over u leave the cache: the maximum m; then
// e = exp(x - m), kept, with l = sum(e) and d = sum(e u); then y = e / l * (u - d / l).
#pragma once

#include "common/simd.hpp"
#include "softmax_ggn/isa.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kGroup = 4 * kLanes;  // elements of one load
constexpr std::int64_t kChain = 16;          // additions in float before the sums move to double
constexpr float kLowest = -__builtin_inff();

// For x <= 0; below -87 it is 0, above within 2e-7 of its value. NaN stays NaN.
inline F32 exp_of_negative(F32 x) {
  constexpr float kRounder = 0x1.8p23f;  // added and taken away it rounds to whole numbers
  const F32 whole = (x * 0x1.715476p0f + kRounder) - kRounder;
  const F32 r = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first exact in the product
  // Taylor's series: on |r| <= ln(2) / 2 the first term left out is 5e-9.
  F32 series = r * (1.0f / 5040) + (1.0f / 720);
  series = series * r + (1.0f / 120);
  series = series * r + (1.0f / 24);
  series = series * r + (1.0f / 6);
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  // The lowest bits of whole + kRounder are the whole number itself; NaN gives a factor that does not matter.
  const F32 power = bits<F32>((bits<U32>(whole + kRounder) + 127u) << 23);
  return x < -87.0f ? F32{} : series * power;
}

inline U32 round_to_bf16(F32 x) {  // in the upper 16 bits; the lower are not cleared
  const U32 raw = bits<U32>(x);
  const U32 rounded = raw + 0x7fffu + ((raw >> 16) & 1u);
  return x == x ? rounded : raw | 0x00400000u;
}

// Each writes what the format's `group` reads.

inline void store_group(const F32 (&x)[4], std::byte* to, BF16) {
  for (int i = 0; i < 2; ++i) {
    const U32 pairs = (round_to_bf16(x[2 * i]) >> 16) | (round_to_bf16(x[2 * i + 1]) & 0xffff0000u);
    __builtin_memcpy(to + i * kBytes, &pairs, kBytes);
  }
}

#if defined(__AVX2__) || defined(__aarch64__)
inline HalfU16 narrow_halves(F32 x) {
#if defined(__aarch64__)
  return bits<HalfU16>(vcvt_f16_f32(bits<float32x4_t>(x)));
#elif defined(__AVX512F__)
  constexpr __mmask16 kAll = 0xffff;  // see widen_half
  return bits<HalfU16>(_mm512_maskz_cvtps_ph(kAll, x, _MM_FROUND_TO_NEAREST_INT));
#else
  return bits<HalfU16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#endif
}

inline void store_group(const F32 (&x)[4], std::byte* to, F16) {
  for (int i = 0; i < 4; ++i) {
    const HalfU16 halves = narrow_halves(x[i]);
    __builtin_memcpy(to + i * kBytes / 2, &halves, sizeof halves);
  }
}
#else
inline std::uint16_t narrow_half(float x) {
  const std::uint32_t raw = bits<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((raw >> 16) & 0x8000u);
  std::uint32_t magnitude = raw & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to multiples of 2^-24
    const std::uint32_t shifted = bits<std::uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<std::uint16_t>(sign | shifted);
  }
  magnitude += 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((magnitude - (112u << 23)) >> 13));
}

inline void store_group(const F32 (&x)[4], std::byte* to, F16) {
  for (int i = 0; i < 2; ++i) {  // `group` puts even elements into one vector and odd ones into the next
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::uint16_t pair[2] = {narrow_half(x[2 * i][lane]), narrow_half(x[2 * i + 1][lane])};
      __builtin_memcpy(to + i * kBytes + lane * 4, pair, 4);
    }
  }
}
#endif

inline void store_group(const F32 (&x)[4], std::byte* to, Single) {
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * kBytes, &x[i], kBytes);
}

template <class Format>
constexpr std::uint32_t kMinusInfinity = 0;
template <>
constexpr std::uint32_t kMinusInfinity<BF16> = 0xff80u;
template <>
constexpr std::uint32_t kMinusInfinity<F16> = 0xfc00u;
template <>
constexpr std::uint32_t kMinusInfinity<Single> = 0xff800000u;

// The last elements of a row, followed by ones that weigh nothing: logits of minus infinity, u of zero.
template <class Format>
struct Tail {
  static constexpr auto size = static_cast<std::size_t>(Format::size);
  std::byte logits[kGroup * Format::size];
  std::byte u[kGroup * Format::size];

  Tail(const std::byte* from_logits, const std::byte* from_u, std::int64_t count) {
    const std::uint32_t nothing = kMinusInfinity<Format>;
    for (std::int64_t i = 0; i < kGroup; ++i) __builtin_memcpy(logits + i * Format::size, &nothing, size);
    __builtin_memset(u, 0, sizeof u);
    __builtin_memcpy(logits, from_logits, static_cast<std::size_t>(count) * size);
    __builtin_memcpy(u, from_u, static_cast<std::size_t>(count) * size);
  }
};

inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }  // NaN does not matter: its own row's sums become NaN

template <class Format>
void raise_maximum(const std::byte* logits, F32 (&largest)[4]) {
  F32 x[4];
  Format::group(logits, x);
  for (int j = 0; j < 4; ++j) largest[j] = larger(x[j], largest[j]);
}

struct Sums {
  F64 l{};
  F64 d{};
};

inline void add_to(F64& sum, const F32 (&x)[4]) {
  F64 low, high;
  widen((x[0] + x[1]) + (x[2] + x[3]), low, high);
  sum += low + high;
}

inline double total(F64 lanes) {
  double sum = 0;
  for (int i = 0; i < kLanes / 2; ++i) sum += lanes[i];
  return sum;
}

template <class Format>
void add_exponentials(const std::byte* logits, const std::byte* u, std::int64_t groups, float maximum, float* scratch,
                      Sums& sums) {
  const F32 m = F32{} + maximum;
  while (groups > 0) {
    const std::int64_t chain = groups < kChain ? groups : kChain;
    F32 l[4]{}, d[4]{};
    for (std::int64_t i = 0; i < chain; ++i) {
      F32 x[4], v[4];
      Format::group(logits, x);
      Format::group(u, v);
      for (int j = 0; j < 4; ++j) {
        const F32 e = exp_of_negative(x[j] - m);
        __builtin_memcpy(scratch + j * kLanes, &e, sizeof e);
        l[j] += e;
        d[j] += e * v[j];
      }
      logits += kGroup * Format::size;
      u += kGroup * Format::size;
      scratch += kGroup;
    }
    add_to(sums.l, l);
    add_to(sums.d, d);
    groups -= chain;
  }
}

template <class Format>
void write_group(const std::byte* u, const float* scratch, float scale, float mean, std::byte* y) {
  F32 v[4];
  Format::group(u, v);
  for (int j = 0; j < 4; ++j) v[j] = load<F32>(scratch + j * kLanes) * scale * (v[j] - mean);
  store_group(v, y, Format{});
}

template <class Format>
void row(const std::byte* logits, const std::byte* u, std::byte* y, std::int64_t num_cols, float* scratch) {
  const std::int64_t groups = num_cols / kGroup;
  const std::int64_t whole = groups * kGroup;
  const std::int64_t left = num_cols - whole;
  const Tail<Format> tail(logits + whole * Format::size, u + whole * Format::size, left);

  F32 largest[4];
  for (F32& lane : largest) lane = F32{} + kLowest;
  for (std::int64_t i = 0; i < groups; ++i) raise_maximum<Format>(logits + i * kGroup * Format::size, largest);
  raise_maximum<Format>(tail.logits, largest);
  const F32 lanes = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
  float maximum = lanes[0];
  for (int i = 1; i < kLanes; ++i) maximum = lanes[i] > maximum ? lanes[i] : maximum;

  Sums sums;
  add_exponentials<Format>(logits, u, groups, maximum, scratch, sums);
  add_exponentials<Format>(tail.logits, tail.u, 1, maximum, scratch + whole, sums);
  const double l = total(sums.l);
  const auto scale = static_cast<float>(1.0 / l);
  const auto mean = static_cast<float>(total(sums.d) / l);
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t first = i * kGroup;
    write_group<Format>(u + first * Format::size, scratch + first, scale, mean, y + first * Format::size);
  }
  std::byte end[kGroup * Format::size];
  write_group<Format>(tail.u, scratch + whole, scale, mean, end);
  __builtin_memcpy(y + whole * Format::size, end, static_cast<std::size_t>(left * Format::size));
}

}  // namespace

const SoftmaxGgnRows softmax_ggn_rows = {row<BF16>, row<F16>, row<Single>};

}  // namespace modelassay::MODELASSAY_ISA
