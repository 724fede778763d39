#define MODELASSAY_ISA avx2
#include "bottom_k/scan.hpp"
