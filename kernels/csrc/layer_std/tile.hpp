// Moments of one tile. Included by files compiled for one instruction set each (see common/simd.hpp).
//
// One read: with a centre c near the mean, s1 = sum(x - c) and s2 = sum((x - c)^2) give mean = c + s1/n and
// M2 = s2 - s1^2/n. The sums run in float for at most kChain additions per lane and continue in double, so rounding stays
// below 1e-6 even when every addition rounds the same way. Where this cannot be trusted (overflow, underflow, a centre
// further from the mean than the spread, NaN) the tile, still in the cache, is read again with double arithmetic.
#pragma once

#include "layer_std/isa.hpp"
#include "common/simd.hpp"

namespace modelassay::MODELASSAY_ISA {
namespace {

constexpr std::int64_t kGroup = 4 * kLanes;  // elements of one load
constexpr std::int64_t kChain = 8;           // additions in float before the sums move to double
constexpr double kHuge = 1e300;              // neither infinity nor NaN is below it
constexpr double kTinySquares = 1e-280;      // below, products of doubles lose digits
constexpr double kTinyVariance = 1e-30;      // below, squares of floats underflow
constexpr double kRounding = 1e-5;           // a spread below this share of the mean drowns in the rounding of x * scale

struct Sums {
  F64 s1{};
  F64 s2{};
  double tail_s1 = 0;  // what is left over when the vectors are full
  double tail_s2 = 0;
};

double total(F64 lanes, double tail) {
  double sum = tail;
  for (int i = 0; i < kLanes / 2; ++i) sum += lanes[i];
  return sum;
}

void add_to(F64& sum, F32 x) {
  F64 low, high;
  widen(x, low, high);
  sum += low + high;
}

double scale_at(const Tile& tile, std::int64_t row, std::int64_t col) {
  if (tile.scale.data == nullptr) return 1.0;
  const std::int64_t block_row = (tile.first_row + row) / tile.scale.block_rows;
  const std::int64_t block_col = (tile.first_col + col) / tile.scale.block_cols;
  return static_cast<double>(tile.scale.data[block_row * tile.scale.num_cols + block_col]);
}

}  // namespace
}  // namespace modelassay::MODELASSAY_ISA

#include "layer_std/codes.hpp"  // adds up by what stands above

namespace modelassay::MODELASSAY_ISA {
namespace {

template <class Format>
void add_tail(const std::byte* data, std::int64_t count, double centre, double scale, Sums& sums) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double distance = Format::one(data + i * Format::size) * scale - centre;
    sums.tail_s1 += distance;
    sums.tail_s2 += distance * distance;
  }
}

// Each adds `count` neighbouring elements, scaled, to the sums.

template <class Format, bool kScaled>
void add_narrow(const std::byte* data, std::int64_t count, double centre, double scale, Sums& sums) {
  const F32 c = F32{} + static_cast<float>(centre);
  const F32 s = F32{} + static_cast<float>(scale);
  std::int64_t groups = count / kGroup;
  count -= groups * kGroup;
  while (groups > 0) {
    const std::int64_t chain = groups < kChain ? groups : kChain;
    F32 a1[4]{}, a2[4]{};
    for (std::int64_t i = 0; i < chain; ++i) {
      F32 x[4];
      Format::group(data, x);
      // Formats of two bytes leave the core waiting for memory: 21.8 against 20.0 GB/s (bf16), 23.7 against 20.1 (fp16)
      // on one core of a Zen 4; float loses 6 % by it, and fp8 is bound by arithmetic.
      if constexpr (Format::size == 2) {
        for (int line = 0; line < 4 * kLanes * 2; line += 64) __builtin_prefetch(data + 512 + line);
      }
      data += kGroup * Format::size;
      for (int j = 0; j < 4; ++j) {
        const F32 distance = kScaled ? x[j] * s - c : x[j] - c;
        a1[j] += distance;
        a2[j] += distance * distance;
      }
    }
    add_to(sums.s1, (a1[0] + a1[1]) + (a1[2] + a1[3]));
    add_to(sums.s2, (a2[0] + a2[1]) + (a2[2] + a2[3]));
    groups -= chain;
  }
  add_tail<Format>(data, count, static_cast<double>(static_cast<float>(centre)), scale, sums);
}

void add_wide_vector(F64 x, F64 c, F64 s, Sums& sums) {
  const F64 distance = x * s - c;
  sums.s1 += distance;
  sums.s2 += distance * distance;
}

template <class Format>
void add_wide(const std::byte* data, std::int64_t count, double centre, double scale, Sums& sums) {
  const F64 c = F64{} + centre;
  const F64 s = F64{} + scale;
  for (; count >= kGroup; count -= kGroup, data += kGroup * Format::size) {
    F32 x[4];
    Format::group(data, x);
    for (int j = 0; j < 4; ++j) {
      F64 low, high;
      widen(x[j], low, high);
      add_wide_vector(low, c, s, sums);
      add_wide_vector(high, c, s, sums);
    }
  }
  add_tail<Format>(data, count, centre, scale, sums);
}

template <>
void add_wide<Double>(const std::byte* data, std::int64_t count, double centre, double scale, Sums& sums) {
  constexpr int kWays = 4;
  constexpr std::int64_t kStep = kWays * kBytes / 8;
  const F64 c = F64{} + centre;
  const F64 s = F64{} + scale;
  F64 a1[kWays]{}, a2[kWays]{};
  for (; count >= kStep; count -= kStep, data += kWays * kBytes) {
    for (int j = 0; j < kWays; ++j) {
      const F64 distance = load<F64>(data + j * kBytes) * s - c;
      a1[j] += distance;
      a2[j] += distance * distance;
    }
  }
  sums.s1 += (a1[0] + a1[1]) + (a1[2] + a1[3]);
  sums.s2 += (a2[0] + a2[1]) + (a2[2] + a2[3]);
  add_tail<Double>(data, count, centre, scale, sums);
}

template <class Format, class Add>
Sums sum_tile(const Tile& tile, double centre, Add add) {
  const double unit = Format::unit * tile.unit;
  Sums sums;
  for (std::int64_t row = 0; row < tile.shape.num_rows; ++row) {
    const std::byte* data = tile.data + row * tile.shape.row_stride * Format::size;
    if (tile.scale.data == nullptr) {
      add(data, tile.shape.num_cols, centre, unit, sums);
      continue;
    }
    for (std::int64_t col = 0; col < tile.shape.num_cols;) {
      const std::int64_t block = tile.scale.block_cols;
      const std::int64_t to_edge = block - (tile.first_col + col) % block;
      const std::int64_t left = tile.shape.num_cols - col;
      const std::int64_t count = to_edge < left ? to_edge : left;
      add(data + col * Format::size, count, centre, unit * scale_at(tile, row, col), sums);
      col += count;
    }
  }
  return sums;
}

// The mean of 16 elements spread over the tile; exact when they are all equal.
template <class Format>
double sample_centre(const Tile& tile, double num_elements) {
  constexpr int kSamples = 16;
  const std::int64_t last = static_cast<std::int64_t>(num_elements) - 1;
  double first = 0;
  double sum = 0;
  for (int i = 0; i < kSamples; ++i) {
    const std::int64_t index = last * i / (kSamples - 1);
    const std::int64_t row = index / tile.shape.num_cols;
    const std::int64_t col = index % tile.shape.num_cols;
    const std::byte* element = tile.data + (row * tile.shape.row_stride + col) * Format::size;
    const double x = Format::one(element) * (Format::unit * tile.unit * scale_at(tile, row, col));
    if (i == 0) first = x;
    sum += x - first;
  }
  return first + sum / kSamples;
}

bool centred(double s1, double s2, double n) { return s1 * s1 <= 0.5 * n * s2; }

Moments moments_of(double s1, double s2, double n, double centre) {
  const double m2 = s2 - s1 * s1 / n;
  return {n, centre + s1 / n, m2 < 0 ? 0 : m2};  // as written, NaN stays NaN
}

template <class Format>
Moments moments_wide(const Tile& tile, double n, double centre) {
  constexpr int kTries = 3;
  for (int i = 1;; ++i) {
    const Sums sums = sum_tile<Format>(tile, centre, add_wide<Format>);
    const double s1 = total(sums.s1, sums.tail_s1);
    const double s2 = total(sums.s2, sums.tail_s2);
    if (i == kTries || centred(s1, s2, n) || s1 != s1) return moments_of(s1, s2, n, centre);
    centre += s1 / n;
  }
}

template <class Format>
Moments moments(const Tile& tile) {
  const double n = static_cast<double>(tile.shape.num_rows) * static_cast<double>(tile.shape.num_cols);
  const double centre = sample_centre<Format>(tile, n);
  const bool scaled = tile.scale.data != nullptr || Format::unit * tile.unit != 1.0;
  const Sums sums = scaled ? sum_tile<Format>(tile, centre, add_narrow<Format, true>)
                           : sum_tile<Format>(tile, centre, add_narrow<Format, false>);
  const double s1 = total(sums.s1, sums.tail_s1);
  const double s2 = total(sums.s2, sums.tail_s2);
  const double rounding = scaled ? kRounding * centre : 0;
  if (s2 < kHuge && s2 > n * (kTinyVariance + rounding * rounding) && centred(s1, s2, n)) {
    return moments_of(s1, s2, n, static_cast<double>(static_cast<float>(centre)));
  }
  return moments_wide<Format>(tile, n, centre);
}

// fp8: around 0 first, which is near the mean of weights; where it is not, as above.
template <class Format>
Moments moments_of_codes(const Tile& tile) {
  const double n = static_cast<double>(tile.shape.num_rows) * static_cast<double>(tile.shape.num_cols);
  F64 lanes1{}, lanes2{};
  add_codes<Format>(tile, lanes1, lanes2);
  const double s1 = total(lanes1, 0);
  const double s2 = total(lanes2, 0);
  if (s2 < kHuge && s2 > kTinySquares && centred(s1, s2, n)) return moments_of(s1, s2, n, 0);
  return moments<Format>(tile);
}

template <>
Moments moments<Double>(const Tile& tile) {
  const double n = static_cast<double>(tile.shape.num_rows) * static_cast<double>(tile.shape.num_cols);
  return moments_wide<Double>(tile, n, sample_centre<Double>(tile, n));
}

Moments tile_moments(const Tile& tile) {
  switch (tile.shape.dtype) {
    case DType::kBF16:
      return moments<BF16>(tile);
    case DType::kF16:
      return moments<F16>(tile);
    case DType::kF32:
      return moments<Single>(tile);
    case DType::kF64:
      return moments<Double>(tile);
    case DType::kE4M3:
      return moments_of_codes<E4M3>(tile);
    case DType::kE5M2:
      return moments_of_codes<E5M2>(tile);
  }
  return {};
}

// XOR of num_bytes / kStreams bytes from each of kStreams places, kAhead bytes being asked for beforehand.
template <int kStreams, int kAhead>
std::uint64_t read_streams(const std::byte* data, std::int64_t num_bytes) {
  constexpr int kWays = 8 / kStreams;
  constexpr int kStep = kWays * kBytes;
  U32 digest[8]{};
  const std::int64_t each = num_bytes / (kStreams * kStep) * kStep;
  for (std::int64_t at = 0; at < each; at += kStep) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * each + at;
      if constexpr (kAhead > 0) {
        for (int line = 0; line < kStep; line += 64) __builtin_prefetch(from + kAhead + line);
      }
      for (int j = 0; j < kWays; ++j) digest[stream * kWays + j] ^= load<U32>(from + j * kBytes);
    }
  }
  std::uint64_t result = 0;
  for (const U32& part : digest) {
    for (int i = 0; i < kLanes; ++i) result ^= part[i];
  }
  for (std::int64_t at = kStreams * each; at < num_bytes; ++at) result ^= load<std::uint8_t>(data + at);
  return result;
}

std::uint64_t read_tile(const std::byte* data, std::int64_t num_bytes, ReadPattern pattern) {
  switch (pattern) {
    case ReadPattern::kPrefetch512:
      return read_streams<1, 512>(data, num_bytes);
    case ReadPattern::kPrefetch2048:
      return read_streams<1, 2048>(data, num_bytes);
    case ReadPattern::kFourStreams:
      return read_streams<4, 0>(data, num_bytes);
    case ReadPattern::kFourStreamsPrefetch:
      return read_streams<4, 512>(data, num_bytes);
    default:
      return read_streams<1, 0>(data, num_bytes);
  }
}

}  // namespace

const TileCode tile_code = {tile_moments, read_tile};

}  // namespace modelassay::MODELASSAY_ISA
