#define MODELASSAY_ISA avx512_bf16
#include "layer_std/tile.hpp"
