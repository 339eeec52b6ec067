// solver_step: one update of a linear solver in one pass. See the reference in rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace rcdm_fast::cpu {

// Returns (next x, x0), float32 [N,C,H,W] like x.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> solver_step(
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& output,
    const std::vector<torch::stable::Tensor>& terms,
    const std::vector<double>& weights,
    double x_to_x0,
    double output_to_x0,
    double bound,
    double x0_to_next,
    double x_to_next);

}  // namespace rcdm_fast::cpu
