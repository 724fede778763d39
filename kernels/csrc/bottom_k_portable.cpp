#define MODELASSAY_ISA portable
#define MODELASSAY_ISA_NAME "portable"
#include "bottom_k_scan.hpp"
