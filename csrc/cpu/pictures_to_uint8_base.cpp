#define RCDM_FAST_LOOPS kPicturesToUint8Base
#include "cpu/pictures_to_uint8_loops.h"
