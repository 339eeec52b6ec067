// The table through which solver_step reaches its loops. Includes nothing but <cstdint>: the files that set an
// instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// One row of pixels of one channel. `output` elements lie `stride` apart; everything else is dense.
struct SolverRow {
  const float* x;
  const void* output;
  int64_t stride;
  const float* const* terms;
  const float* weights;
  int64_t count;  // of terms
  float* next;
  float* x0;
  int64_t pixels;
};

struct SolverFactors {
  float x_to_x0, output_to_x0, bound, x0_to_next, x_to_next;
};

struct SolverStepLoops {
  using Loop = void (*)(const SolverRow& row, const SolverFactors& factors);
  Loop float32;
  Loop bfloat16;
  Loop float16;
};

extern const SolverStepLoops kSolverStepBase;
extern const SolverStepLoops kSolverStepAvx2;
extern const SolverStepLoops kSolverStepAvx512;

}  // namespace rcdm_fast::cpu
