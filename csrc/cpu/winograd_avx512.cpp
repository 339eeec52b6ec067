#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define RCDM_FAST_ISA 2
#define RCDM_FAST_LOOPS kWinogradAvx512
#include "cpu/winograd_loops.h"
