// Vectors of one width and the six number formats as loads of them. Included by files compiled for one instruction
// set each, inside a namespace of that set (MODELASSAY_ISA), so that no two copies share a symbol.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace modelassay::MODELASSAY_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int kLanes = kBytes / 4;

using F32 = float __attribute__((vector_size(kBytes)));
using F64 = double __attribute__((vector_size(kBytes)));
using U32 = std::uint32_t __attribute__((vector_size(kBytes)));
using U64 = std::uint64_t __attribute__((vector_size(kBytes)));
using U16 = std::uint16_t __attribute__((vector_size(kBytes)));
using HalfF32 = float __attribute__((vector_size(kBytes / 2)));
using HalfU16 = std::uint16_t __attribute__((vector_size(kBytes / 2)));

template <class T>
inline T load(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  return load<To>(&value);
}

template <class Half, class Whole>
inline void split(Whole whole, Half& low, Half& high) {
  static_assert(2 * sizeof(Half) == sizeof(Whole));
  const U64 v = bits<U64>(whole);
#if defined(__AVX512F__)
  low = bits<Half>(__builtin_shufflevector(v, v, 0, 1, 2, 3));
  high = bits<Half>(__builtin_shufflevector(v, v, 4, 5, 6, 7));
#elif defined(__AVX2__)
  low = bits<Half>(__builtin_shufflevector(v, v, 0, 1));
  high = bits<Half>(__builtin_shufflevector(v, v, 2, 3));
#else
  low = bits<Half>(v[0]);
  high = bits<Half>(v[1]);
#endif
}

inline void widen(F32 x, F64& low, F64& high) {
  HalfF32 x_low, x_high;
  split(x, x_low, x_high);
  low = __builtin_convertvector(x_low, F64);
  high = __builtin_convertvector(x_high, F64);
}

// IEEE half precision by integer arithmetic, exact for subnormals, infinities and NaN.
inline float widen_half(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  std::uint32_t result = (magnitude << 13) + (112u << 23);
  if (magnitude < 0x0400u) result = bits<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  if (magnitude >= 0x7c00u) result |= 0x7f800000u;
  return bits<float>(result | sign);
}

// The half precision numbers in two registers' worth of lanes, in any order.
#if defined(__AVX2__) || defined(__aarch64__)
inline F32 widen_half(HalfU16 half) {
#if defined(__aarch64__)
  return bits<F32>(vcvt_f32_f16(bits<float16x4_t>(half)));
#elif defined(__AVX512F__)
  constexpr __mmask16 kAll = 0xffff;  // the unmasked form warns of an uninitialised value in GCC 12 (bug 105593)
  return bits<F32>(_mm512_maskz_cvtph_ps(kAll, bits<__m256i>(half)));
#else
  return bits<F32>(_mm256_cvtph_ps(bits<__m128i>(half)));
#endif
}

inline void widen_halves(U16 halves, F32& a, F32& b) {
  HalfU16 low, high;
  split(halves, low, high);
  a = widen_half(low);
  b = widen_half(high);
}

inline void load_halves(const std::byte* from, F32& a, F32& b) {
  a = widen_half(load<HalfU16>(from));
  b = widen_half(load<HalfU16>(from + kBytes / 2));
}
#else
inline F32 widen_half(U32 half) {  // in the lower 16 bits of each lane
  const U32 magnitude = half & 0x7fffu;
  const U32 normal = (magnitude << 13) + (112u << 23);
  // A subnormal is read as 2^-14 (1 + fraction), which has one bit of the exponent too many; no subnormal float appears.
  const F32 subnormal = bits<F32>(normal + (1u << 23)) - 0x1p-14f;
  const U32 finite = magnitude < 0x0400u ? bits<U32>(subnormal) : normal;
  const U32 special = bits<U32>(magnitude >= 0x7c00u) & 0x7f800000u;
  return bits<F32>(finite | special | ((half & 0x8000u) << 16));
}

inline void widen_halves(U16 halves, F32& a, F32& b) {
  const U32 pairs = bits<U32>(halves);
  a = widen_half(pairs & 0xffffu);
  b = widen_half(pairs >> 16);
}

inline void load_halves(const std::byte* from, F32& a, F32& b) { widen_halves(load<U16>(from), a, b); }
#endif

// A format gives its size, `unit` (what its loads must be multiplied by), `group`: 4 * kLanes neighbouring elements in any
// order, and `one`: a single element.

struct BF16 {
  static constexpr std::int64_t size = 2;
  static constexpr double unit = 1.0;
  static void group(const std::byte* from, F32 (&x)[4]) {
    const U32 first = load<U32>(from);
    const U32 second = load<U32>(from + kBytes);
    x[0] = bits<F32>(first << 16);
    x[1] = bits<F32>(first & 0xffff0000u);
    x[2] = bits<F32>(second << 16);
    x[3] = bits<F32>(second & 0xffff0000u);
  }
  static double one(const std::byte* from) {
    return static_cast<double>(bits<float>(std::uint32_t{load<std::uint16_t>(from)} << 16));
  }
};

struct F16 {
  static constexpr std::int64_t size = 2;
  static constexpr double unit = 1.0;
  static void group(const std::byte* from, F32 (&x)[4]) {
    load_halves(from, x[0], x[1]);
    load_halves(from + kBytes, x[2], x[3]);
  }
  static double one(const std::byte* from) { return static_cast<double>(widen_half(load<std::uint16_t>(from))); }
};

struct Single {
  static constexpr std::int64_t size = 4;
  static constexpr double unit = 1.0;
  static void group(const std::byte* from, F32 (&x)[4]) {
    for (int i = 0; i < 4; ++i) x[i] = load<F32>(from + i * kBytes);
  }
  static double one(const std::byte* from) { return static_cast<double>(load<float>(from)); }
};

struct Double {
  static constexpr std::int64_t size = 8;
  static constexpr double unit = 1.0;
  static double one(const std::byte* from) { return load<double>(from); }
};

// e4m3fn has half precision's layout with another exponent bias, 2^8 apart, and no infinity; its NaN is 0x7f.
struct E4M3 {
  static constexpr std::int64_t size = 1;
  static constexpr double unit = 256.0;
  template <class T>
  static T as_half(T shifted) {  // the byte in the upper half of each 16 bits, anything below
    const T magnitude = (shifted >> 1) & T(T{} + 0x3f80);
    const T carry = (magnitude + T(T{} + 0x0080)) & T(T{} + 0x4000);  // set for 0x7f alone; makes the exponent all ones
    return (shifted & T(T{} + 0x8000)) | (magnitude + carry);
  }
  static void group(const std::byte* from, F32 (&x)[4]) {
    const U16 pairs = load<U16>(from);
    widen_halves(as_half<U16>(pairs << 8), x[0], x[1]);
    widen_halves(as_half<U16>(pairs), x[2], x[3]);
  }
  static double one(const std::byte* from) {
    const auto shifted = static_cast<std::uint32_t>(load<std::uint8_t>(from)) << 8;
    return static_cast<double>(widen_half(static_cast<std::uint16_t>(as_half<std::uint32_t>(shifted))));
  }
};

// e5m2 is the upper byte of half precision.
struct E5M2 {
  static constexpr std::int64_t size = 1;
  static constexpr double unit = 1.0;
  static void group(const std::byte* from, F32 (&x)[4]) {
    const U16 pairs = load<U16>(from);
    widen_halves(pairs << 8, x[0], x[1]);
    widen_halves(pairs & 0xff00, x[2], x[3]);
  }
  static double one(const std::byte* from) {
    return static_cast<double>(widen_half(static_cast<std::uint16_t>(load<std::uint8_t>(from) << 8)));
  }
};

}  // namespace modelassay::MODELASSAY_ISA
