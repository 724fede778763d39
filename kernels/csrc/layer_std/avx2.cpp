#define MODELASSAY_ISA avx2
#include "layer_std/tile.hpp"
