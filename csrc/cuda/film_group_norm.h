// film_group_norm on CUDA: GroupNorm, FiLM, SiLU and resampling of channels-last images. See the reference in
// rcdm_fast/ops/reference.py.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace rcdm_fast::cuda {

// Writes into `out`; the other arguments as in rcdm_fast/ops/schema.py.
void film_group_norm_out(const torch::stable::Tensor& out, const torch::stable::Tensor& x,
                         const std::optional<torch::stable::Tensor>& skip, const torch::stable::Tensor& weight,
                         const torch::stable::Tensor& bias, const std::optional<torch::stable::Tensor>& film,
                         const std::optional<torch::stable::Tensor>& rows, int64_t groups, double eps, bool silu,
                         int64_t resample, bool phases);

// The same of what `before`, a number per channel, is added to; see rcdm_fast/ops/schema_folding.py.
void film_group_norm_before_out(const torch::stable::Tensor& out, const torch::stable::Tensor& before,
                                const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& skip,
                                const torch::stable::Tensor& weight, const torch::stable::Tensor& bias,
                                const std::optional<torch::stable::Tensor>& film,
                                const std::optional<torch::stable::Tensor>& rows, int64_t groups, double eps, bool silu,
                                int64_t resample, bool phases);

// The same by moments that are given; see rcdm_fast/ops/schema_moments.py.
void film_group_norm_given_out(const torch::stable::Tensor& out, const torch::stable::Tensor& moments,
                               const std::optional<torch::stable::Tensor>& skip_moments,
                               const std::optional<torch::stable::Tensor>& before, const torch::stable::Tensor& x,
                               const std::optional<torch::stable::Tensor>& skip, const torch::stable::Tensor& weight,
                               const torch::stable::Tensor& bias, const std::optional<torch::stable::Tensor>& film,
                               const std::optional<torch::stable::Tensor>& rows, int64_t groups, double eps, bool silu,
                               int64_t resample, bool phases);

torch::stable::Tensor film_group_norm(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& skip,
                                      const torch::stable::Tensor& weight, const torch::stable::Tensor& bias,
                                      const std::optional<torch::stable::Tensor>& film,
                                      const std::optional<torch::stable::Tensor>& rows, int64_t groups, double eps,
                                      bool silu, int64_t resample, bool phases);

}  // namespace rcdm_fast::cuda
