#define MODELASSAY_ISA portable
#include "softmax_ggn_row.hpp"
