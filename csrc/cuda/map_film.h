// map_film on CUDA: scales and shifts that differ from pixel to pixel, and SiLU. See the reference in
// rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

namespace rcdm_fast::cuda {

// x [N,C,H,W], channels-last, is overwritten. An image whose row is out of range becomes NaN.
void map_film(
    const torch::stable::Tensor& x,
    const torch::stable::Tensor& film,
    const torch::stable::Tensor& rows,
    const torch::stable::Tensor& down,
    const torch::stable::Tensor& across);

}  // namespace rcdm_fast::cuda
