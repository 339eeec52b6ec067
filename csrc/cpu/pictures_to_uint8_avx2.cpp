#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#endif
#define RCDM_FAST_LOOPS kPicturesToUint8Avx2
#include "cpu/pictures_to_uint8_loops.h"
