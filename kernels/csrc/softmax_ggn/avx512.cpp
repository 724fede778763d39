#define MODELASSAY_ISA avx512
#include "softmax_ggn/row.hpp"
