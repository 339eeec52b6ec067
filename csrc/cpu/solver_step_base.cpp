#define RCDM_FAST_ISA 0
#define RCDM_FAST_LOOPS kSolverStepBase
#include "cpu/solver_step_loops.h"
