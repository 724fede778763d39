#define MODELASSAY_ISA avx512
#include "softmax_ggn/piece.hpp"
