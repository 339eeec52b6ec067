#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kWinogradBase
#include "cpu/winograd_loops.h"
