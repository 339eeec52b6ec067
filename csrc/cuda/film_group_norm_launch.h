// film_group_norm on plain pointers: what film_group_norm_host.cpp asks of film_group_norm.cu and, where moments are
// given, of film_group_norm_given.cu. Neither torch nor CUDA here.

#pragma once

#include <cstdint>

#include "cuda/format.h"

namespace rcdm_fast::cuda {

// All pointers are device memory. Sizes are those of the image that is normalized: with `phases` x is
// [N,4C,H/2+1,W/2+1], else [N,C,H,W]. Channels C+C' in all.
struct FilmGroupNormProblem {
  const void* x;
  const void* skip;  // or nullptr
  void* out;
  const float* weight;
  const float* bias;
  const float* before;  // [C+C'], added before the norm, or nullptr
  const float* film;    // or nullptr
  const int64_t* rows;  // [N], with film
  int64_t batch;
  int64_t film_rows;
  int64_t film_stride;  // numbers from row to row
  int film_width;       // C+C' (added before the norm) or 2(C+C') (scale, shift)
  int height;
  int width;
  int x_channels;     // C
  int skip_channels;  // C'
  int groups;
  float eps;
  Format format;
  int resample;  // -1, 0, 1
  bool silu;
  bool phases;
};

// Moments as chunks.h has them, of images that have chunks.
struct GivenMoments {
  const float* of_x;     // [N,chunks,3,C]
  const float* of_skip;  // [N,chunks,3,C'], with skip
  float* coefficients;   // [N,3,C+C'], scratch memory
};

}  // namespace rcdm_fast::cuda

extern "C" {

// Floats of scratch memory that a launch needs; 0 when the image fits on the chip.
int64_t rcdm_fast_film_group_norm_workspace(const rcdm_fast::cuda::FilmGroupNormProblem* problem);

// Enqueues on a cudaStream_t. nullptr, or what went wrong.
const char* rcdm_fast_film_group_norm(const rcdm_fast::cuda::FilmGroupNormProblem* problem, float* workspace,
                                      void* stream);

// The same by given moments, without phases.
const char* rcdm_fast_film_group_norm_given(const rcdm_fast::cuda::FilmGroupNormProblem* problem,
                                            const rcdm_fast::cuda::GivenMoments* given, void* stream);
}
