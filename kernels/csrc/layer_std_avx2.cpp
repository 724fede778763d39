#define MODELASSAY_ISA avx2
#define MODELASSAY_ISA_NAME "avx2"
#include "layer_std_tile.hpp"
