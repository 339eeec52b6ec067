#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kWeightGradientBase
#include "cpu/weight_gradient_loops.h"
