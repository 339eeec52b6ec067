#include "cuda/residual.h"

#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/chunks.h"
#include "cuda/host.h"
#include "cuda/residual_launch.h"

namespace rcdm_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An image that is read or written, checked; nothing is added yet.
ResidualProblem problem_of(const Tensor& out, const char* name, const char* what) {
  RCDM_FAST_CHECK(is_channels_last(out) && out.is_cuda(), name, ": ", what,
                  " must be [N,C,H,W] in channels-last memory without gaps");
  ResidualProblem problem = {};
  problem.format = format_of(out, name);
  RCDM_FAST_CHECK(out.numel() == 0 || out.numel() / out.size(0) <= kMostNumbers, name, ": an image is too large");
  problem.batch = out.size(0);
  problem.channels = static_cast<int>(out.size(1));
  problem.height = static_cast<int>(out.size(2));
  problem.width = static_cast<int>(out.size(3));
  return problem;
}

void set_residual(ResidualProblem& problem, const Tensor& out, const Tensor& bias, const Tensor& add,
                  int64_t resample) {
  RCDM_FAST_CHECK(-1 <= resample && resample <= 1, "add_residual: resample must be -1, 0 or 1");
  const int64_t height = out.size(2), width = out.size(3);
  RCDM_FAST_CHECK(resample != 1 || (height % 2 == 0 && width % 2 == 0), "add_residual: ", height, " x ", width,
                  " is no upsampled size");
  const auto resized = [&](int64_t size) { return resample == 1 ? size / 2 : resample == -1 ? 2 * size : size; };
  RCDM_FAST_CHECK(is_channels_last(add) && add.scalar_type() == out.scalar_type() && on_same_device(add, out),
                  "add_residual: add must be [N,C,H,W] in channels-last memory without gaps, of the dtype and on the "
                  "device of out");
  RCDM_FAST_CHECK(add.size(0) == out.size(0) && add.size(1) == out.size(1) && add.size(2) == resized(height) &&
                      add.size(3) == resized(width),
                  "add_residual: add does not fit out");
  RCDM_FAST_CHECK(bias.dim() == 1 && bias.size(0) == out.size(1) && bias.is_contiguous() &&
                      bias.scalar_type() == ScalarType::Float && on_same_device(bias, out),
                  "add_residual: bias must be float32 [", out.size(1), "], contiguous, on the device of out");
  problem.out = out.mutable_data_ptr();
  problem.bias = static_cast<const float*>(bias.const_data_ptr());
  problem.add = add.const_data_ptr();
  problem.resample = static_cast<int>(resample);
}

void run(const ResidualProblem& problem, const Tensor& out, const char* name) {
  if (out.numel() == 0) {
    return;
  }
  const OnDevice device(out);
  check_launch(name, rcdm_fast_residual(&problem, device.stream()));
}

// Memory for moments, which the problem then asks for.
Tensor make_moments(ResidualProblem& problem, const Tensor& image) {
  const int64_t chunks = chunks_of(problem.height, problem.width);
  RCDM_FAST_CHECK(chunks > 0, "moments: images of ", problem.height, " x ", problem.width,
                  " are not cut into chunks of ", kChunk, " pixels");
  const std::array<int64_t, 4> size{problem.batch, chunks, kMomentsOfChannel, problem.channels};
  Tensor moments = torch::stable::new_empty(image, size, ScalarType::Float);
  problem.moments = static_cast<float*>(moments.mutable_data_ptr());
  return moments;
}

}  // namespace

void add_residual(const Tensor& out, const Tensor& bias, const Tensor& add, int64_t resample) {
  ResidualProblem problem = problem_of(out, "add_residual", "out");
  set_residual(problem, out, bias, add, resample);
  run(problem, out, "add_residual");
}

Tensor add_residual_moments(const Tensor& out, const Tensor& bias, const Tensor& add, int64_t resample) {
  ResidualProblem problem = problem_of(out, "add_residual_moments", "out");
  set_residual(problem, out, bias, add, resample);
  Tensor moments = make_moments(problem, out);
  run(problem, out, "add_residual_moments");
  return moments;
}

Tensor moments(const Tensor& x) {
  ResidualProblem problem = problem_of(x, "moments", "x");
  problem.out = const_cast<void*>(x.const_data_ptr());  // nothing is written where nothing is added
  Tensor moments = make_moments(problem, x);
  run(problem, x, "moments");
  return moments;
}

}  // namespace rcdm_fast::cuda
