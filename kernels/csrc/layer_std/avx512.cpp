#define MODELASSAY_ISA avx512
#include "layer_std/tile.hpp"
