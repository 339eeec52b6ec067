#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kFilmGroupNormBackwardBase
#include "cpu/film_group_norm_backward_loops.h"
