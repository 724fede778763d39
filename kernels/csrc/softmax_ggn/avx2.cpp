#define MODELASSAY_ISA avx2
#include "softmax_ggn/piece.hpp"
