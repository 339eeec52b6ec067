// solver_step on CUDA: one update of a linear solver. See the reference in rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

namespace rcdm_fast::cuda {

// (next x, x0); arguments as in rcdm_fast/ops/schema.py, at most 8 terms.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> solver_step(
    const torch::stable::Tensor& x, const torch::stable::Tensor& output,
    const std::vector<torch::stable::Tensor>& terms, const std::vector<double>& weights, double x_to_x0,
    double output_to_x0, double bound, double x0_to_next, double x_to_next);

}  // namespace rcdm_fast::cuda
