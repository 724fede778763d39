// The seam between the driver and the code compiled once per instruction set.
// Nothing from the standard library with a body may be used behind it: an inline function compiled for AVX-512 could be
// the copy the linker keeps for everybody.
#pragma once

#include "layer_std.hpp"

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

struct InstructionSet {
  const char* name;
  Moments (*tile_moments)(const Tile&);
  std::uint64_t (*read_tile)(const std::byte* data, std::int64_t num_bytes);
};

namespace portable {
extern const InstructionSet instruction_set;
}
#if defined(__x86_64__)
namespace avx2 {
extern const InstructionSet instruction_set;
}
namespace avx512 {
extern const InstructionSet instruction_set;
}
#endif

}  // namespace modelassay
