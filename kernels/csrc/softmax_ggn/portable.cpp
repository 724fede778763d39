#define MODELASSAY_ISA portable
#include "softmax_ggn/piece.hpp"
