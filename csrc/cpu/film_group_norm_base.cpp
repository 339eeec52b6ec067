#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kFilmGroupNormBase
#include "cpu/film_group_norm_loops.h"
