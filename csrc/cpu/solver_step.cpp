#include "cpu/solver_step.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/solver_step_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // elements that make it worth starting another thread

SolverStepLoops::Loop loop_for(ScalarType dtype) {
  const auto* loops = choose(&kSolverStepBase, &kSolverStepAvx2, &kSolverStepAvx512);
  switch (dtype) {
    case ScalarType::Float:
      return loops->float32;
    case ScalarType::BFloat16:
      return loops->bfloat16;
    case ScalarType::Half:
      return loops->float16;
    default:
      RCDM_FAST_CHECK(false, "solver_step: expected an output of float32, bfloat16 or float16, got ", dtype);
  }
}

void check_like(const Tensor& tensor, const Tensor& x, const char* name) {
  bool same = tensor.dim() == 4 && tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous();
  for (int64_t d = 0; same && d < 4; ++d) {
    same = tensor.size(d) == x.size(d);
  }
  RCDM_FAST_CHECK(same, "solver_step: ", name, " must be float32 [N,C,H,W], contiguous, on the CPU, and as large as x");
}

}  // namespace

std::tuple<Tensor, Tensor> solver_step(const Tensor& x, const Tensor& output, const std::vector<Tensor>& terms,
                                       const std::vector<double>& weights, double x_to_x0, double output_to_x0,
                                       double bound, double x0_to_next, double x_to_next) {
  RCDM_FAST_CHECK(x.dim() == 4, "solver_step: x must be [N,C,H,W]");
  check_like(x, x, "x");
  const auto loop = loop_for(output.scalar_type());
  const int64_t n = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  RCDM_FAST_CHECK(output.is_cpu() && output.dim() == 4 && output.size(0) == n && output.size(1) >= channels &&
                      output.size(2) == height && output.size(3) == width,
                  "solver_step: output does not fit x");
  RCDM_FAST_CHECK(terms.size() == weights.size(), "solver_step: as many weights as terms are needed");
  RCDM_FAST_CHECK(bound >= 0, "solver_step: bound must be >= 0, got ", bound);
  std::vector<const float*> others;
  for (const Tensor& term : terms) {
    check_like(term, x, "every term");
    others.push_back(static_cast<const float*>(term.const_data_ptr()));
  }
  const std::vector<float> shares(weights.begin(), weights.end());
  Tensor next = torch::stable::empty_like(x), x0 = torch::stable::empty_like(x);
  if (x.numel() == 0) {
    return {next, x0};
  }
  const SolverFactors factors{static_cast<float>(x_to_x0), static_cast<float>(output_to_x0), static_cast<float>(bound),
                              static_cast<float>(x0_to_next), static_cast<float>(x_to_next)};
  const int64_t strides[4] = {output.stride(0), output.stride(1), output.stride(2), output.stride(3)};
  const bool flat = height == 1 || strides[2] == width * strides[3];
  const int64_t pixels = flat ? height * width : width, rows = n * channels * height * width / pixels;
  const auto* from = static_cast<const float*>(x.const_data_ptr());
  const auto* given = static_cast<const char*>(output.const_data_ptr());
  auto* to = static_cast<float*>(next.mutable_data_ptr());
  auto* estimate = static_cast<float*>(x0.mutable_data_ptr());
  const int64_t bytes = static_cast<int64_t>(output.element_size()), per_channel = height * width / pixels;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / pixels), [&](int64_t begin, int64_t end) {
    std::vector<const float*> at(others.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / (channels * per_channel), channel = row / per_channel % channels;
      const int64_t line = row % per_channel, offset = row * pixels;
      for (size_t t = 0; t < others.size(); ++t) {
        at[t] = others[t] + offset;
      }
      const int64_t start = image * strides[0] + channel * strides[1] + line * strides[2];
      loop({from + offset, given + start * bytes, strides[3], at.data(), shares.data(),
            static_cast<int64_t>(at.size()), to + offset, estimate + offset, pixels},
           factors);
    }
  });
  return {next, x0};
}

}  // namespace rcdm_fast::cpu
