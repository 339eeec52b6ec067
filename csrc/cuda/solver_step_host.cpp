#include "cuda/solver_step.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/host.h"
#include "cuda/solver_step_launch.h"

namespace rcdm_fast::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

bool like_x(const Tensor& tensor, const Tensor& x) {
  bool same = tensor.dim() == 4 && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
              on_same_device(tensor, x);
  for (int d = 0; same && d < 4; ++d) {
    same = tensor.size(d) == x.size(d);
  }
  return same;
}

}  // namespace

std::tuple<Tensor, Tensor> solver_step(const Tensor& x, const Tensor& output, const std::vector<Tensor>& terms,
                                       const std::vector<double>& weights, double x_to_x0, double output_to_x0,
                                       double bound, double x0_to_next, double x_to_next) {
  RCDM_FAST_CHECK(like_x(x, x), "solver_step: x must be float32 [N,C,H,W], contiguous");
  RCDM_FAST_CHECK(output.dim() == 4 && on_same_device(output, x) && output.size(0) == x.size(0) &&
                      output.size(1) >= x.size(1) && output.size(2) == x.size(2) && output.size(3) == x.size(3),
                  "solver_step: output does not fit x");
  RCDM_FAST_CHECK(terms.size() == weights.size(), "solver_step: ", terms.size(), " terms, ", weights.size(),
                  " weights");
  RCDM_FAST_CHECK(terms.size() <= kMostTerms, "solver_step: at most ", kMostTerms, " terms, got ", terms.size());
  RCDM_FAST_CHECK(bound >= 0, "solver_step: bound must be >= 0, got ", bound);
  Tensor following = torch::stable::empty_like(x);
  Tensor x0 = torch::stable::empty_like(x);
  SolverStepProblem problem = {};
  problem.format = format_of(output, "solver_step's output");
  for (size_t k = 0; k < terms.size(); ++k) {
    RCDM_FAST_CHECK(like_x(terms[k], x), "solver_step: every term must be like x");
    problem.terms[k] = static_cast<const float*>(terms[k].const_data_ptr());
    problem.weights[k] = static_cast<float>(weights[k]);
  }
  if (x.numel() == 0) {
    return {following, x0};
  }
  RCDM_FAST_CHECK(x.numel() / x.size(0) <= kMostNumbers, "solver_step: an image is too large");
  problem.x = static_cast<const float*>(x.const_data_ptr());
  problem.output = output.const_data_ptr();
  problem.following = static_cast<float*>(following.mutable_data_ptr());
  problem.x0 = static_cast<float*>(x0.mutable_data_ptr());
  for (int d = 0; d < 4; ++d) {
    problem.strides[d] = output.stride(d);
  }
  problem.batch = x.size(0);
  problem.channels = static_cast<int>(x.size(1));
  problem.height = static_cast<int>(x.size(2));
  problem.width = static_cast<int>(x.size(3));
  problem.term_count = static_cast<int>(terms.size());
  problem.x_to_x0 = static_cast<float>(x_to_x0);
  problem.output_to_x0 = static_cast<float>(output_to_x0);
  problem.bound = static_cast<float>(bound);
  problem.x0_to_next = static_cast<float>(x0_to_next);
  problem.x_to_next = static_cast<float>(x_to_next);
  const OnDevice device(x);
  check_launch("solver_step", rcdm_fast_solver_step(&problem, device.stream()));
  return {following, x0};
}

}  // namespace rcdm_fast::cuda
