#define MODELASSAY_ISA avx512
#include "bottom_k/scan.hpp"
