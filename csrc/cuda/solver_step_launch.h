// solver_step on plain pointers: what solver_step_host.cpp asks of solver_step.cu. Neither torch nor CUDA here.

#pragma once

#include <cstdint>

#include "cuda/format.h"

namespace rcdm_fast::cuda {

constexpr int kMostTerms = 8;

// Pointers are device memory, all but `output` float32 [N,C,H,W] without gaps.
struct SolverStepProblem {
  const float* x;
  const void* output;  // [N,C or more,H,W] of any strides
  float* following;
  float* x0;
  const float* terms[kMostTerms];
  float weights[kMostTerms];
  int64_t strides[4];  // of output, in numbers
  int64_t batch;
  int channels;
  int height;
  int width;
  int term_count;
  float x_to_x0;
  float output_to_x0;
  float bound;
  float x0_to_next;
  float x_to_next;
  Format format;  // of output
};

}  // namespace rcdm_fast::cuda

extern "C" {

// Enqueues on a cudaStream_t. nullptr, or what went wrong. An image has at most 2^30 numbers.
const char* rcdm_fast_solver_step(const rcdm_fast::cuda::SolverStepProblem* problem, void* stream);
}
