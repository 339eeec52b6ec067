// pictures_to_uint8 on CUDA. See the reference in rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

namespace rcdm_fast::cuda {

// float32, bfloat16 or float16 [...] -> uint8 [...]. A dense input keeps its strides.
torch::stable::Tensor pictures_to_uint8(const torch::stable::Tensor& pictures);

}  // namespace rcdm_fast::cuda
