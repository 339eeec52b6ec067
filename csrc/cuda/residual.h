// What ends a residual block, and moments of images, on CUDA. See the references in rcdm_fast/ops/reference.py and
// reference_moments.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace rcdm_fast::cuda {

// out [N,C,H,W] += bias [C] + add, in place; arguments as in rcdm_fast/ops/schema_folding.py.
void add_residual(const torch::stable::Tensor& out, const torch::stable::Tensor& bias,
                  const torch::stable::Tensor& add, int64_t resample);

// The same, and the moments of what was written, float32 [N,chunks,3,C]; see rcdm_fast/ops/schema_moments.py.
torch::stable::Tensor add_residual_moments(const torch::stable::Tensor& out, const torch::stable::Tensor& bias,
                                           const torch::stable::Tensor& add, int64_t resample);

// Moments of an image as it is.
torch::stable::Tensor moments(const torch::stable::Tensor& x);

}  // namespace rcdm_fast::cuda
