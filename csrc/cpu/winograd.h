// Convolutions of 3x3 with stride 1 and padding 1 in float32, after Winograd: 4x4 pixels at once from 36 products in
// place of 144. See the reference in rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace rcdm_fast::cpu {

// float32 [O,I,3,3], any layout -> what `winograd_convolution` takes, [36,O/16,I,16]. `mirrored`: of the convolution
// whose results are the gradient of x, [36,I/16,O,16].
torch::stable::Tensor winograd_weight(const torch::stable::Tensor& weight, bool mirrored);

// out [N,O,H,W] = the convolution of x [N,I,H,W], plus bias [O], plus add, which may be out itself. Channels-last.
// `upsampled`: x is [N,I,H/2,W/2], and each of its pixels stands for four.
void winograd_convolution(
    const torch::stable::Tensor& out,
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias,
    const std::optional<torch::stable::Tensor>& add,
    bool upsampled);

// The gradients of the convolution's weight, [O,I,3,3] channels-last, and bias, [O]: of grad [N,O,H,W] and x [N,I,H,W].
std::tuple<torch::stable::Tensor, torch::stable::Tensor> winograd_weight_gradient(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& x);

}  // namespace rcdm_fast::cpu
