#define MODELASSAY_ISA avx512
#define MODELASSAY_ISA_NAME "avx512"
#include "layer_std_tile.hpp"
