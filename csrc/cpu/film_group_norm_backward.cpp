#include "cpu/film_group_norm_backward.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "check.h"
#include "cpu/film_group_norm_backward_table.h"
#include "cpu/film_group_norm_work.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Numbers of x and of the gradient that one task reads: they stay in the second-level cache for its three passes.
constexpr int64_t kTaskElements = 1 << 15;
constexpr int64_t kLine = 16;  // channels that a task takes at least, where there are so many: a line of the cache

// Channels are shared out in whole groups, so that no sum crosses tasks.
struct Call : FilmGroupNormWork {
  using FilmGroupNormWork::FilmGroupNormWork;
  const char* grad;
  char* of_inputs[2];
  float* of_weight;  // [N,C], like of_bias
  float* of_bias;
  float* of_rows;  // [N, C or 2C], or nullptr
  const FilmGroupNormBackwardLoops::Mode* mode;

  int64_t task_channels() const {
    const int64_t unit = std::lcm(channels / groups, kLine), wanted = kTaskElements / (height * width);
    return std::min(channels, std::max<int64_t>(1, wanted / unit) * unit);
  }
  int64_t lines() const {
    return resample == 0 ? runs() : height;
  }
  GradientLine line_of(int input, int64_t first, int64_t count, int64_t channel, int64_t image, int64_t line) const;
  void differentiate(const Channels& some, float* sums) const;
};

// A line of `count` channels of an input, from its channel `first` on, which is `channel` of all.
GradientLine Call::line_of(int input, int64_t first, int64_t count, int64_t channel, int64_t image,
                           int64_t line) const {
  const int64_t own = inputs[input].channels;
  int64_t start = (image * height + line) * width * own, stride = own, pixels = width;
  int64_t grad_start = 0, grad_stride = channels, grad_row = 0;  // the start in pixels
  if (resample == 1) {
    grad_start = (image * height + line) * 4 * width;
    grad_stride = 2 * channels;
    grad_row = 2 * width * channels;
  } else if (resample == -1) {
    pixels = width / 2;
    grad_start = (image * (height / 2) + line / 2) * (width / 2);
  } else {
    start = run_start(own, image, line);
    stride = run_stride(own);
    pixels = run_pixels(line);
    grad_start = image * height * width + line * kRun;
    if (phases) {
      const int64_t h = height / 2, phase = line / h;
      grad_start = (image * height + 2 * (line % h) + phase / 2) * width + phase % 2;
      grad_stride = 2 * channels;
    }
  }
  const int64_t at = (start + first) * element_bytes;
  return {inputs[input].data + at, of_inputs[input] + at, stride,
          grad + (grad_start * channels + channel) * element_bytes, grad_stride, grad_row, pixels, count};
}

// `sums`, four numbers per channel: the gradient's sum, its sum with x - center, slope and offset of x's gradient.
void Call::differentiate(const Channels& some, float* sums) const {
  for (int64_t run = 0; run < runs(); ++run) {
    take_moments(some, run);
  }
  merge_moments(some);
  const auto [center, scale, shift, inverse, mean] = factors(some);
  float* products = sums + some.count;
  float* slope = products + some.count;
  float* offset = slope + some.count;
  std::fill(sums, slope, 0.0f);
  const auto for_lines = [&](auto&& use) {
    for (int64_t line = 0; line < lines(); ++line) {
      for_inputs(some, [&](int input, int64_t first, int64_t count, int64_t place) {
        use(line_of(input, first, count, some.begin + place, some.image, line),
            Affine{factors(some).center + place, factors(some).scale + place, factors(some).shift + place}, place);
      });
    }
  };
  for_lines([&](const GradientLine& line, const Affine& affine, int64_t place) {
    mode->sums[silu](line, affine, sums + place, products + place);
  });
  const int64_t per_group = channels / groups;
  const float pixels = static_cast<float>(height * width), size = pixels * static_cast<float>(per_group);
  const float* row = film == nullptr ? nullptr : film + rows[some.image] * film_stride + some.begin;
  const int64_t at = some.image * channels + some.begin;
  for (int64_t begin = 0; begin < some.count; begin += per_group) {
    float of_mean = 0.0f, of_deviation = 0.0f;
    for (int64_t c = begin; c < begin + per_group; ++c) {
      of_mean += scale[c] * sums[c];
      of_deviation += scale[c] * products[c];
    }
    for (int64_t c = begin; c < begin + per_group; ++c) {
      const float gain = row != nullptr && !film_is_added ? 1.0f + row[c] : 1.0f;
      slope[c] = -inverse[c] * inverse[c] * of_deviation / size;
      offset[c] = -of_mean / size;
      of_weight[at + c] = gain * inverse[c] * products[c];
      of_bias[at + c] = gain * sums[c];
      if (row != nullptr && film_is_added) {
        of_rows[at + c] = scale[c] * sums[c] + pixels * (slope[c] * (mean[c] - center[c]) + offset[c]);
      } else if (row != nullptr) {
        float* to = of_rows + at + some.image * channels + c;
        to[0] = weight[some.begin + c] * inverse[c] * products[c] + bias[some.begin + c] * sums[c];
        to[channels] = sums[c];
      }
    }
  }
  for_lines([&](const GradientLine& line, const Affine& affine, int64_t place) {
    mode->write[silu](line, affine, slope + place, offset + place);
  });
}

// A task is an image's share of channels. It knows neither its batch nor the threads.
void run(const Call& call) {
  const int64_t most = call.task_channels(), shares = (call.channels + most - 1) / most;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, most * call.height * call.width));
  torch::stable::parallel_for(0, call.n * shares, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(call.scratch(most)), sums(4 * most);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % shares * most;
      call.differentiate({task / shares, first, std::min(most, call.channels - first), memory.data()}, sums.data());
    }
  });
}

// Sum over the images.
void sum_up(const std::vector<float>& parts, int64_t n, int64_t channels, float* to) {
  std::fill(to, to + channels, 0.0f);
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c] += parts[image * channels + c];
    }
  }
}

Tensor like(const Tensor& x) {
  const std::array<int64_t, 4> shape{x.size(0), x.size(1), x.size(2), x.size(3)};
  return torch::stable::empty(shape, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

template <size_t kDims>
Tensor floats(const Tensor& x, const std::array<int64_t, kDims>& shape) {
  return torch::stable::empty(shape, ScalarType::Float, std::nullopt, x.device());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> film_group_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups, double eps, bool silu,
    int64_t resample, bool phases) {
  Call call({x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases});
  check_image(grad, x, "grad");
  RCDM_FAST_CHECK(grad.size(0) == call.n && grad.size(1) == call.channels && grad.size(2) == call.out_height() &&
                      grad.size(3) == call.out_width(),
                  "film_group_norm: grad does not fit the result");
  const auto* all = choose(&kFilmGroupNormBackwardBase, &kFilmGroupNormBackwardAvx2, &kFilmGroupNormBackwardAvx512,
                           &kFilmGroupNormBackwardAvx512Bf16);
  const auto* format = format_of(*all, x.scalar_type(), "film_group_norm");
  call.mode = resample == 1 ? &format->up : resample == -1 ? &format->down : &format->keep;
  using Vector = std::array<int64_t, 1>;
  using Matrix = std::array<int64_t, 2>;
  Tensor of_x = like(x), of_skip = skip ? like(*skip) : floats(x, Vector{0});
  Tensor of_weight = floats(x, Vector{call.channels}), of_bias = floats(x, Vector{call.channels});
  Tensor of_rows = film ? floats(x, Matrix{call.n, film->size(1)}) : floats(x, Matrix{0, 0});
  call.grad = static_cast<const char*>(grad.const_data_ptr());
  call.of_inputs[0] = static_cast<char*>(of_x.mutable_data_ptr());
  call.of_inputs[1] = static_cast<char*>(of_skip.mutable_data_ptr());
  call.of_rows = static_cast<float*>(of_rows.mutable_data_ptr());
  if (phases && x.numel() > 0) {  // what is dropped of a phase's padding has no part in the result
    std::memset(call.of_inputs[0], 0, x.numel() * call.element_bytes);
  }
  std::vector<float> weights(call.n * call.channels), biases(call.n * call.channels);
  call.of_weight = weights.data();
  call.of_bias = biases.data();
  if (grad.numel() > 0) {
    run(call);
  } else if (of_rows.numel() > 0) {
    torch::stable::fill_(of_rows, 0.0);
  }
  sum_up(weights, call.n, call.channels, static_cast<float*>(of_weight.mutable_data_ptr()));
  sum_up(biases, call.n, call.channels, static_cast<float*>(of_bias.mutable_data_ptr()));
  return {of_x, of_skip, of_weight, of_bias, of_rows};
}

}  // namespace rcdm_fast::cpu
