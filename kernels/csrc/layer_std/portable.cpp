#define MODELASSAY_ISA portable
#include "layer_std/tile.hpp"
