#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#endif
#define RCDM_FAST_ISA 1
#define RCDM_FAST_LOOPS kFilmGroupNormBackwardAvx2
#include "cpu/film_group_norm_backward_loops.h"
