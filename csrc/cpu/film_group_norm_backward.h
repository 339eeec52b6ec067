// Gradient of film_group_norm. See rcdm_fast/ops/gradients.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace rcdm_fast::cpu {

// For x, skip, weight, bias, and the picked rows of film [N,width]; a gradient of what is not there has no elements.
// grad is like the result; the other inputs are those of film_group_norm.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
film_group_norm_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& x,
                         const std::optional<torch::stable::Tensor>& skip, const torch::stable::Tensor& weight,
                         const torch::stable::Tensor& bias, const std::optional<torch::stable::Tensor>& film,
                         const std::optional<torch::stable::Tensor>& rows, int64_t groups, double eps, bool silu,
                         int64_t resample, bool phases);

}  // namespace rcdm_fast::cpu
