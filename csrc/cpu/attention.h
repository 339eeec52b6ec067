// attention: self-attention of packed q, k and v. See the reference in rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace rcdm_fast::cpu {

// [N,L,3C] -> [N,L,C].
torch::stable::Tensor attention(const torch::stable::Tensor& qkv, int64_t heads, bool new_order);

}  // namespace rcdm_fast::cpu
