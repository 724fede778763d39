#define MODELASSAY_ISA portable
#include "bottom_k/scan.hpp"
