#define MODELASSAY_ISA portable
#include "softmax_ggn/row.hpp"
