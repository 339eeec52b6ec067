#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#endif
#define RCDM_FAST_ISA 1
#define RCDM_FAST_LOOPS kWinogradAvx2
#include "cpu/winograd_loops.h"
