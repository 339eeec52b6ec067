#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kAttentionBase
#include "cpu/attention_loops.h"
