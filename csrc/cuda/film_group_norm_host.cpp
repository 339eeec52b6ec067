#include "cuda/film_group_norm.h"

#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/chunks.h"
#include "cuda/film_group_norm_launch.h"
#include "cuda/host.h"

namespace rcdm_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Everything but `out`, checked: the kernels rely on it, whoever calls the operator.
struct Checked {
  FilmGroupNormProblem problem;
  std::array<int64_t, 4> shape;  // of the output
};

void check_activations(const Tensor& tensor, const Tensor& like, const char* name) {
  RCDM_FAST_CHECK(is_channels_last(tensor), "film_group_norm: ", name,
                  " must be [N,C,H,W] in channels-last memory without gaps");
  RCDM_FAST_CHECK(tensor.scalar_type() == like.scalar_type() && on_same_device(tensor, like), "film_group_norm: ",
                  name, " must have the dtype and the device of x");
}

const float* parameter(const Tensor& values, int64_t channels, const Tensor& like, const char* name) {
  RCDM_FAST_CHECK(values.dim() == 1 && values.size(0) == channels && values.is_contiguous() &&
                      values.scalar_type() == ScalarType::Float && on_same_device(values, like),
                  "film_group_norm: ", name, " must be float32 [", channels, "], contiguous, on the device of x");
  return static_cast<const float*>(values.const_data_ptr());
}

void set_film(FilmGroupNormProblem& problem, int64_t channels, const std::optional<Tensor>& film,
              const std::optional<Tensor>& rows, const Tensor& like) {
  RCDM_FAST_CHECK(film.has_value() == rows.has_value(), "film_group_norm: film and rows go together");
  if (!film) {
    return;
  }
  RCDM_FAST_CHECK(film->dim() == 2 && film->scalar_type() == ScalarType::Float && on_same_device(*film, like) &&
                      (film->size(1) == channels || film->size(1) == 2 * channels) &&
                      (film->stride(1) == 1 || film->size(1) == 1),
                  "film_group_norm: film must be float32 [R,", 2 * channels, "] or [R,", channels,
                  "], dense along its rows, on the device of x");
  RCDM_FAST_CHECK(rows->dim() == 1 && rows->size(0) == problem.batch && rows->is_contiguous() &&
                      rows->scalar_type() == ScalarType::Long && on_same_device(*rows, like),
                  "film_group_norm: rows must be int64 [", problem.batch, "], contiguous, on the device of x");
  problem.film = static_cast<const float*>(film->const_data_ptr());
  problem.film_rows = film->size(0);
  problem.film_stride = film->stride(0);
  problem.film_width = static_cast<int>(film->size(1));
  problem.rows = static_cast<const int64_t*>(rows->const_data_ptr());
}

Checked check(const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
              const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups, double eps,
              bool silu, int64_t resample, bool phases) {
  check_activations(x, x, "x");
  int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  if (phases) {
    RCDM_FAST_CHECK(!skip && resample == 0, "film_group_norm: phases go with neither skip nor resample");
    RCDM_FAST_CHECK(channels % 4 == 0 && height > 1 && width > 1, "film_group_norm: phases need x [N,4C,H+1,W+1]");
    channels /= 4;
    height = 2 * (height - 1);
    width = 2 * (width - 1);
  }
  FilmGroupNormProblem problem = {};
  problem.x_channels = static_cast<int>(channels);
  if (skip) {
    check_activations(*skip, x, "skip");
    RCDM_FAST_CHECK(skip->size(0) == x.size(0) && skip->size(2) == height && skip->size(3) == width,
                    "film_group_norm: skip does not fit x");
    problem.skip = skip->const_data_ptr();
    problem.skip_channels = static_cast<int>(skip->size(1));
    channels += skip->size(1);
  }
  RCDM_FAST_CHECK(groups > 0 && channels > 0 && channels % groups == 0, "film_group_norm: ", channels,
                  " channels do not form ", groups, " groups");
  RCDM_FAST_CHECK(-1 <= resample && resample <= 1, "film_group_norm: resample must be -1, 0 or 1");
  RCDM_FAST_CHECK(resample != -1 || (height % 2 == 0 && width % 2 == 0),
                  "film_group_norm: an odd size cannot be halved");
  RCDM_FAST_CHECK(channels <= kMostNumbers / 8 && height <= kMostNumbers && width <= kMostNumbers &&
                      height * width <= kMostNumbers,
                  "film_group_norm: an image is too large");
  problem.x = x.const_data_ptr();
  problem.weight = parameter(weight, channels, x, "weight");
  problem.bias = parameter(bias, channels, x, "bias");
  problem.batch = x.size(0);
  set_film(problem, channels, film, rows, x);
  problem.height = static_cast<int>(height);
  problem.width = static_cast<int>(width);
  problem.groups = static_cast<int>(groups);
  problem.eps = static_cast<float>(eps);
  problem.format = format_of(x, "film_group_norm");
  problem.resample = static_cast<int>(resample);
  problem.silu = silu;
  problem.phases = phases;
  const auto resized = [&](int64_t size) { return resample == 1 ? 2 * size : resample == -1 ? size / 2 : size; };
  return {problem, {x.size(0), channels, resized(height), resized(width)}};
}

void check_out(const Tensor& out, const Checked& checked, const Tensor& x) {
  check_activations(out, x, "out");
  for (int d = 0; d < 4; ++d) {
    RCDM_FAST_CHECK(out.size(d) == checked.shape[d], "film_group_norm: out must be [", checked.shape[0], ",",
                    checked.shape[1], ",", checked.shape[2], ",", checked.shape[3], "]");
  }
}

// Moments of an image that has some, checked.
const float* given_moments(const Tensor& moments, const Tensor& image, const char* name) {
  const int64_t chunks = chunks_of(image.size(2), image.size(3));
  RCDM_FAST_CHECK(chunks > 0, "film_group_norm_given: images of ", image.size(2), " x ", image.size(3),
                  " are not cut into chunks of ", kChunk, " pixels");
  RCDM_FAST_CHECK(moments.dim() == 4 && moments.size(0) == image.size(0) && moments.size(1) == chunks &&
                      moments.size(2) == kMomentsOfChannel && moments.size(3) == image.size(1) &&
                      moments.is_contiguous() && moments.scalar_type() == ScalarType::Float &&
                      on_same_device(moments, image),
                  "film_group_norm_given: ", name, " must be float32 [", image.size(0), ",", chunks, ",",
                  kMomentsOfChannel, ",", image.size(1), "], contiguous, on the device of x");
  RCDM_FAST_CHECK(chunks * kMomentsOfChannel * image.size(1) <= kMostNumbers / 2,
                  "film_group_norm_given: an image is too large");
  return static_cast<const float*>(moments.const_data_ptr());
}

Tensor scratch(const Tensor& like, int64_t floats) {
  const std::array<int64_t, 1> size{floats};
  return torch::stable::new_empty(like, size, ScalarType::Float);
}

// The scratch memory goes back to torch's allocator here, while the kernels may still run: it is handed out again on
// the same stream only, after them.
void run(FilmGroupNormProblem problem, const Tensor& out) {
  if (out.numel() == 0) {
    return;
  }
  problem.out = out.mutable_data_ptr();
  const OnDevice device(out);
  const int64_t floats = rcdm_fast_film_group_norm_workspace(&problem);
  if (floats == 0) {
    check_launch("film_group_norm", rcdm_fast_film_group_norm(&problem, nullptr, device.stream()));
    return;
  }
  const Tensor workspace = scratch(out, floats);
  auto* memory = static_cast<float*>(workspace.mutable_data_ptr());
  check_launch("film_group_norm", rcdm_fast_film_group_norm(&problem, memory, device.stream()));
}

}  // namespace

void film_group_norm_out(const Tensor& out, const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight,
                         const Tensor& bias, const std::optional<Tensor>& film, const std::optional<Tensor>& rows,
                         int64_t groups, double eps, bool silu, int64_t resample, bool phases) {
  const Checked checked = check(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  check_out(out, checked, x);
  run(checked.problem, out);
}

void film_group_norm_before_out(const Tensor& out, const Tensor& before, const Tensor& x,
                                const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
                                const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups,
                                double eps, bool silu, int64_t resample, bool phases) {
  Checked checked = check(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  check_out(out, checked, x);
  checked.problem.before = parameter(before, checked.shape[1], x, "before");
  run(checked.problem, out);
}

void film_group_norm_given_out(const Tensor& out, const Tensor& moments, const std::optional<Tensor>& skip_moments,
                               const std::optional<Tensor>& before, const Tensor& x, const std::optional<Tensor>& skip,
                               const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& film,
                               const std::optional<Tensor>& rows, int64_t groups, double eps, bool silu,
                               int64_t resample, bool phases) {
  Checked checked = check(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  check_out(out, checked, x);
  RCDM_FAST_CHECK(!phases, "film_group_norm_given: nobody takes moments of phases");
  RCDM_FAST_CHECK(skip_moments.has_value() == skip.has_value(),
                  "film_group_norm_given: skip and its moments go together");
  GivenMoments given = {};
  given.of_x = given_moments(moments, x, "moments");
  given.of_skip = skip ? given_moments(*skip_moments, *skip, "skip_moments") : nullptr;
  if (before) {
    checked.problem.before = parameter(*before, checked.shape[1], x, "before");
  }
  if (out.numel() == 0) {
    return;
  }
  checked.problem.out = out.mutable_data_ptr();
  const OnDevice device(out);
  const Tensor coefficients = scratch(out, x.size(0) * 3 * checked.shape[1]);
  given.coefficients = static_cast<float*>(coefficients.mutable_data_ptr());
  check_launch("film_group_norm_given", rcdm_fast_film_group_norm_given(&checked.problem, &given, device.stream()));
}

Tensor film_group_norm(const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
                       const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups,
                       double eps, bool silu, int64_t resample, bool phases) {
  const Checked checked = check(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  Tensor out = torch::stable::empty(checked.shape, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  run(checked.problem, out);
  return out;
}

}  // namespace rcdm_fast::cuda
