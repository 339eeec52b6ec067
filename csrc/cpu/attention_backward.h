// Gradient of attention. See rcdm_fast/ops/gradients.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace rcdm_fast::cpu {

// [N,L,C], [N,L,3C] -> [N,L,3C].
torch::stable::Tensor attention_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& qkv,
                                         int64_t heads, bool new_order);

}  // namespace rcdm_fast::cpu
