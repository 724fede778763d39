// The seam between the driver and the code compiled once per instruction set (see common/instruction_sets.hpp).
#pragma once

#include "layer_std/layer_std.hpp"

namespace modelassay {

struct Tile {
  Shape shape;
  Scale scale;
  const std::byte* data;
  std::int64_t first_row;  // of the tile in its matrix: finds the block of the scale
  std::int64_t first_col;
  double unit;  // every element is multiplied by it; a power of two
};

struct Moments {
  double count;
  double mean;
  double m2;
};

struct TileCode {
  Moments (*tile_moments)(const Tile&);
  std::uint64_t (*read_tile)(const std::byte* data, std::int64_t num_bytes, ReadPattern pattern);
};

namespace portable {
extern const TileCode tile_code;
}
#if defined(__x86_64__)
namespace avx2 {
extern const TileCode tile_code;
}
namespace avx512 {
extern const TileCode tile_code;
}
namespace avx512_bf16 {
extern const TileCode tile_code;
}
#endif

}  // namespace modelassay
