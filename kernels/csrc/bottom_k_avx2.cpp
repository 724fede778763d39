#define MODELASSAY_ISA avx2
#define MODELASSAY_ISA_NAME "avx2"
#include "bottom_k_scan.hpp"
