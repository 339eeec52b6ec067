#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kAttentionBackwardBase
#include "cpu/attention_backward_loops.h"
