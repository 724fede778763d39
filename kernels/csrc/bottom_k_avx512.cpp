#define MODELASSAY_ISA avx512
#define MODELASSAY_ISA_NAME "avx512"
#include "bottom_k_scan.hpp"
