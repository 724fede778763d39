// Pieces of a row of softmax_ggn. Included by files compiled for one instruction set each (see common/simd.hpp).
#pragma once

#include "common/simd.hpp"
#include "softmax_ggn/isa.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kGroup = 4 * kLanes;  // elements of one load
constexpr std::int64_t kChain = 16;          // additions in float before the sums move to double
constexpr std::int64_t kAhead = 1024;         // bytes from what is written to the u that is asked for
constexpr float kLowest = -__builtin_inff();

// exp(r) for |r| <= ln(2) / 2 within 1.5e-7 of its value: of the polynomials of this degree that are 1 at 0, the one that is at
// most 9.2e-8 away (by Lawson's iteration).
inline F32 exp_near_zero(F32 r) {
  F32 series = r * 0x1.0fa7d8p-7f + 0x1.573ad0p-5f;
  series = series * r + 0x1.555a6ep-3f;
  series = series * r + 0x1.fffdc4p-2f;
  series = series * r + 0x1.fffff6p-1f;
  return series * r + 1.0f;
}

constexpr float kLog2E = 0x1.715476p0f;
constexpr float kLn2High = 0x1.62e4p-1f;  // exact when multiplied by an exponent
constexpr float kLn2Low = 0x1.7f7d1cp-20f;

// For x <= 0, within 2e-7 of its value as long as that is a normal number; far below it is 0. NaN stays NaN.
#if defined(__AVX512F__)
inline F32 exp_of_negative(F32 x) {
  constexpr __mmask16 kAll = 0xffff;  // see widen_half
  const __m512 smallest = _mm512_set1_ps(-104.0f);  // half of the smallest subnormal number
  const F32 near = bits<F32>(_mm512_maskz_max_ps(kAll, smallest, bits<__m512>(x)));  // of NaN and a number the second
  const F32 whole = bits<F32>(_mm512_maskz_roundscale_ps(kAll, bits<__m512>(near * kLog2E), _MM_FROUND_TO_NEAREST_INT));
  const F32 series = exp_near_zero((near - whole * kLn2High) - whole * kLn2Low);
  return bits<F32>(_mm512_maskz_scalef_ps(kAll, bits<__m512>(series), bits<__m512>(whole)));
}
#else
inline F32 exp_of_negative(F32 x) {
  constexpr float kRounder = 0x1.8p23f;  // added and taken away it rounds to whole numbers
  const F32 shifted = x * kLog2E + kRounder;
  const F32 whole = shifted - kRounder;
  const F32 series = exp_near_zero((x - whole * kLn2High) - whole * kLn2Low);
  // The lowest bits of `shifted` are the whole number itself; NaN gives a factor that does not matter.
  const F32 power = bits<F32>((bits<U32>(shifted) + 127u) << 23);
  return x < -87.0f ? F32{} : series * power;
}
#endif

// In the upper 16 bits; the lower are not cleared. A NaN comes from a bf16 or from arithmetic: its lower bits are 0, and no carry
// leaves them.
inline U32 round_to_bf16(F32 x) {
  const U32 raw = bits<U32>(x);
  return raw + 0x7fffu + ((raw >> 16) & 1u);
}

// Each makes what the format's `group` reads.

inline void narrow(const F32 (&x)[4], U32 (&packed)[2], BF16) {
  for (int i = 0; i < 2; ++i) packed[i] = (round_to_bf16(x[2 * i]) >> 16) | (round_to_bf16(x[2 * i + 1]) & 0xffff0000u);
}

#if defined(__AVX512F__)
inline void narrow(const F32 (&x)[4], U32 (&packed)[2], F16) {
  constexpr __mmask16 kAll = 0xffff;  // see widen_half
  constexpr __mmask8 kBoth = 0xff;
  for (int i = 0; i < 2; ++i) {
    const __m256i low = _mm512_maskz_cvtps_ph(kAll, x[2 * i], _MM_FROUND_TO_NEAREST_INT);
    const __m256i high = _mm512_maskz_cvtps_ph(kAll, x[2 * i + 1], _MM_FROUND_TO_NEAREST_INT);
    const __m512i below = _mm512_maskz_inserti64x4(kBoth, _mm512_setzero_si512(), low, 0);
    packed[i] = bits<U32>(_mm512_maskz_inserti64x4(kBoth, below, high, 1));
  }
}
#elif defined(__AVX2__)
inline void narrow(const F32 (&x)[4], U32 (&packed)[2], F16) {
  for (int i = 0; i < 2; ++i) {
    const __m128i low = _mm256_cvtps_ph(x[2 * i], _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(x[2 * i + 1], _MM_FROUND_TO_NEAREST_INT);
    packed[i] = bits<U32>(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
  }
}
#elif defined(__aarch64__)
inline void narrow(const F32 (&x)[4], U32 (&packed)[2], F16) {
  for (int i = 0; i < 2; ++i) {
    const float16x4_t low = vcvt_f16_f32(bits<float32x4_t>(x[2 * i]));
    packed[i] = bits<U32>(vcombine_f16(low, vcvt_f16_f32(bits<float32x4_t>(x[2 * i + 1]))));
  }
}
#else
inline U32 narrow_half(F32 x) {  // in the lower 16 bits
  const U32 raw = bits<U32>(x);
  const U32 magnitude = raw & 0x7fffffffu;
  const U32 rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  const U32 normal = (rounded - (112u << 23)) >> 13;
  // Subnormal: the addition rounds to multiples of 2^-24.
  const U32 subnormal = bits<U32>(bits<F32>(magnitude) + 0.5f) - 0x3f000000u;
  U32 half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? U32{} + 0x7c00u : half;  // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? U32{} + 0x7e00u : half;
  return half | ((raw >> 16) & 0x8000u);
}

inline void narrow(const F32 (&x)[4], U32 (&packed)[2], F16) {  // `group` puts even elements into one vector, odd ones into the next
  for (int i = 0; i < 2; ++i) packed[i] = narrow_half(x[2 * i]) | (narrow_half(x[2 * i + 1]) << 16);
}
#endif

inline void narrow(const F32 (&x)[4], U32 (&packed)[4], Single) {
  for (int i = 0; i < 4; ++i) packed[i] = bits<U32>(x[i]);
}

template <bool kPast>
inline void put(const U32& vector, std::byte* to) {
#if defined(__AVX512F__)
  if constexpr (kPast) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(vector));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (kPast) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(vector));
    return;
  }
#endif
  __builtin_memcpy(to, &vector, kBytes);
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

// What is read next is asked for while the core computes: the hardware's own stream ends with each piece, and with each page.
template <class Format>
void ask_for_group(const std::byte* data) {
  for (std::int64_t line = 0; line < kGroup * Format::size; line += 64) __builtin_prefetch(data + line);
}

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
void add_exponentials(const std::byte* logits, const std::byte* u, std::int64_t groups, float maximum, float* kept,
                      std::int64_t ahead, Sums& sums) {
  const F32 m = F32{} + maximum;
  while (groups > 0) {
    const std::int64_t chain = groups < kChain ? groups : kChain;
    F32 l[4]{}, d[4]{};
    for (std::int64_t i = 0; i < chain; ++i) {
      F32 x[4], v[4];
      ask_for_group<Format>(logits + ahead);
      Format::group(logits, x);
      Format::group(u, v);
      for (int j = 0; j < 4; ++j) {
        const F32 e = exp_of_negative(x[j] - m);
        __builtin_memcpy(kept + j * kLanes, &e, sizeof e);
        l[j] += e;
        d[j] += e * v[j];
      }
      logits += kGroup * Format::size;
      u += kGroup * Format::size;
      kept += kGroup;
    }
    add_to(sums.l, l);
    add_to(sums.d, d);
    groups -= chain;
  }
}

template <class Format>
PieceSums add_piece(const std::byte* logits, const std::byte* u, std::int64_t count, float* kept) {
  const std::int64_t groups = count / kGroup;
  const std::int64_t whole = groups * kGroup;
  const Tail<Format> tail(logits + whole * Format::size, u + whole * Format::size, count - whole);
  F32 largest[4];
  for (F32& lane : largest) lane = F32{} + kLowest;
  for (std::int64_t at = 0; at < whole * Format::size; at += kGroup * Format::size) {
    ask_for_group<Format>(u + at);
    raise_maximum<Format>(logits + at, largest);
  }
  raise_maximum<Format>(tail.logits, largest);
  const F32 lanes = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
  float maximum = lanes[0];
  for (int i = 1; i < kLanes; ++i) maximum = lanes[i] > maximum ? lanes[i] : maximum;

  Sums sums;
  const float subtracted = maximum > kLowest ? maximum : 0.0f;  // minus infinity alone weighs nothing
  add_exponentials<Format>(logits, u, groups, subtracted, kept, count * Format::size, sums);  // ahead is the next piece
  if (whole < count) add_exponentials<Format>(tail.logits, tail.u, 1, subtracted, kept + whole, 0, sums);
  return {maximum, total(sums.l), total(sums.d)};
}

template <class Format, bool kPast>
void write_group(const std::byte* u, const float* kept, float scale, float mean, std::byte* y) {
  F32 v[4];
  Format::group(u, v);
  for (int j = 0; j < 4; ++j) v[j] = load<F32>(kept + j * kLanes) * scale * (v[j] - mean);
  U32 packed[Format::size];  // four vectors of floats in this many
  narrow(v, packed, Format{});
  for (std::int64_t i = 0; i < Format::size; ++i) put<kPast>(packed[i], y + i * kBytes);
}

template <class Format, bool kPast>
void write_groups(const std::byte* u, const float* kept, std::int64_t groups, float scale, float mean, std::byte* y) {
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t at = i * kGroup * Format::size;
    ask_for_group<Format>(u + at + kAhead);
    write_group<Format, kPast>(u + at, kept + i * kGroup, scale, mean, y + at);
  }
}

template <class Format>
void write_piece(const std::byte* u, const float* kept, std::int64_t count, float scale, float mean, std::byte* y, bool past) {
  const std::int64_t groups = count / kGroup;
  const std::int64_t whole = groups * kGroup;
  if (past && reinterpret_cast<std::uintptr_t>(y) % kBytes == 0) {
    write_groups<Format, true>(u, kept, groups, scale, mean, y);
#if defined(__AVX2__)
    _mm_sfence();  // before another thread is told that y is there
#endif
  } else {
    write_groups<Format, false>(u, kept, groups, scale, mean, y);
  }
  if (whole == count) return;
  std::byte last[kGroup * Format::size]{};
  std::byte end[kGroup * Format::size];
  const auto left = static_cast<std::size_t>((count - whole) * Format::size);
  __builtin_memcpy(last, u + whole * Format::size, left);
  write_group<Format, false>(last, kept + whole, scale, mean, end);
  __builtin_memcpy(y + whole * Format::size, end, left);
}

}  // namespace

const SoftmaxGgnCode softmax_ggn_code = {
    {add_piece<BF16>, write_piece<BF16>}, {add_piece<F16>, write_piece<F16>}, {add_piece<Single>, write_piece<Single>}};

}  // namespace modelassay::MODELASSAY_ISA
