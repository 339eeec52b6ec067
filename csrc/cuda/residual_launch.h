// add_residual, add_residual_moments and moments on plain pointers: what residual_host.cpp asks of residual.cu. Neither
// torch nor CUDA here.

#pragma once

#include <cstdint>

#include "cuda/format.h"

namespace rcdm_fast::cuda {

// Pointers are device memory.
struct ResidualProblem {
  void* out;          // [N,H,W,C]; without `add` it is only read
  const float* bias;  // [C], with add
  const void* add;    // [N,H,W,C], [N,H/2,W/2,C] (resample 1), [N,2H,2W,C] (-1), or nullptr
  float* moments;     // [N,chunks,3,C] (chunks.h), or nullptr: not asked for
  int64_t batch;
  int height;
  int width;
  int channels;
  int resample;
  Format format;
};

}  // namespace rcdm_fast::cuda

extern "C" {

// Enqueues on a cudaStream_t. nullptr, or what went wrong.
const char* rcdm_fast_residual(const rcdm_fast::cuda::ResidualProblem* problem, void* stream);
}
