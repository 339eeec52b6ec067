#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kMapFilmBase
#include "cpu/map_film_loops.h"
