#define MODELASSAY_ISA portable
#define MODELASSAY_ISA_NAME "portable"
#include "layer_std_tile.hpp"
