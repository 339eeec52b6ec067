// convolution_weight_gradient: gradients of a convolution's weight and bias. See the reference in
// rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace rcdm_fast::cpu {

// grad [N,O,H',W'], x [N,I,H,W], both channels-last -> float32 [O,I,k,k] (channels-last), float32 [O].
std::tuple<torch::stable::Tensor, torch::stable::Tensor> convolution_weight_gradient(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& x, int64_t kernel, int64_t stride, int64_t padding);

}  // namespace rcdm_fast::cpu
