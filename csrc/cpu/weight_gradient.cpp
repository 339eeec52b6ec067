#include "cpu/weight_gradient.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/weight_gradient_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Pixels that are summed in registers before they are added to the rest. Fixed, so that sums depend neither on the
// number of threads nor on how the work is shared; so many pixels of two panels stay in the first-level cache.
constexpr int64_t kRun = 256;

int64_t parts(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// One call.
struct Work {
  const char* grad;
  const char* x;
  int64_t element_bytes;
  int64_t images, inputs, height, width;
  int64_t outputs, out_height, out_width;
  int64_t kernel, stride, padding;
  int64_t zero_columns;  // of a packed row, before and after the image
  const WeightGradientLoops* loops;
  const WeightGradientLoops::Format* format;
  float* weight;  // [O,k,k,I]
  float* bias;    // [O]

  int64_t images_together() const {
    return std::clamp<int64_t>(kRun / (out_height * out_width), 1, images);
  }
  int64_t rows_together() const {
    return std::clamp<int64_t>(kRun / out_width, 1, out_height);
  }
  int64_t row_pixels() const {
    return width + zero_columns;
  }
  // Rows of x that `rows` rows of the gradient see.
  int64_t seen_rows(int64_t rows) const {
    return (rows - 1) * stride + kernel;
  }

  void pack_x(int64_t image, int64_t count, int64_t row, int64_t rows, int64_t panel, float* to) const;
  void run(int64_t first_input, int64_t last_input, int64_t first_output, int64_t last_output) const;
};

// A panel of the rows that a stretch sees, in `count` images from `image` on: each row `padding` zeros, the image's
// row, and zeros up to what the kernel reaches. What lies outside the image is zero.
void Work::pack_x(int64_t image, int64_t count, int64_t row, int64_t rows, int64_t panel, float* to) const {
  const int64_t begin = panel * loops->inputs, channels = std::min<int64_t>(loops->inputs, inputs - begin);
  const int64_t seen = seen_rows(rows), pitch = row_pixels() * loops->inputs;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < seen; ++r, to += pitch) {
      const int64_t y = row * stride - padding + r;
      if (y < 0 || y >= height) {
        std::fill(to, to + pitch, 0.0f);
        continue;
      }
      std::fill(to, to + padding * loops->inputs, 0.0f);
      const char* from = x + (((image + i) * height + y) * width * inputs + begin) * element_bytes;
      format->pack_inputs(from, inputs, width, channels, to + padding * loops->inputs);
      std::fill(to + (padding + width) * loops->inputs, to + pitch, 0.0f);
    }
  }
}

// Panels of x and panels of the gradient, over all images.
void Work::run(int64_t first_input, int64_t last_input, int64_t first_output, int64_t last_output) const {
  const int64_t taps = kernel * kernel, tile = loops->inputs * loops->outputs;
  const int64_t image_step = images_together(), row_step = rows_together();
  std::vector<float> sums((last_input - first_input) * (last_output - first_output) * taps * tile);
  std::vector<float> packed_grad((last_output - first_output) * image_step * row_step * out_width * loops->outputs);
  std::vector<float> packed_x(image_step * seen_rows(row_step) * row_pixels() * loops->inputs);
  const int64_t first_channel = first_output * loops->outputs;
  const int64_t channels = std::min(outputs, last_output * loops->outputs) - first_channel;
  std::vector<float> bias_run(channels), bias_sum(channels);
  for (int64_t image = 0; image < images; image += image_step) {
    const int64_t count = std::min(image_step, images - image);
    for (int64_t row = 0; row < out_height; row += row_step) {
      const int64_t rows = std::min(row_step, out_height - row), pixels = count * rows * out_width;
      // More than one image only where a stretch holds whole ones: then the gradient's pixels have no gaps.
      const char* from = grad + (image * out_height + row) * out_width * outputs * element_bytes;
      for (int64_t o = first_output; o < last_output; ++o) {
        const int64_t begin = o * loops->outputs;
        format->pack_outputs(from + begin * element_bytes, outputs, pixels,
                             std::min<int64_t>(loops->outputs, outputs - begin),
                             packed_grad.data() + (o - first_output) * pixels * loops->outputs);
      }
      if (first_input == 0) {
        std::fill(bias_run.begin(), bias_run.end(), 0.0f);
        format->add_pixels(from + first_channel * element_bytes, outputs, pixels, channels, bias_run.data());
        std::transform(bias_run.begin(), bias_run.end(), bias_sum.begin(), bias_sum.begin(), std::plus<float>());
      }
      const Stretch stretch{count, rows, out_width, seen_rows(rows) * row_pixels(), stride * row_pixels(), stride};
      float* to = sums.data();
      for (int64_t panel = first_input; panel < last_input; ++panel) {
        pack_x(image, count, row, rows, panel, packed_x.data());
        for (int64_t o = first_output; o < last_output; ++o) {
          const float* left = packed_grad.data() + (o - first_output) * pixels * loops->outputs;
          for (int64_t tap = 0; tap < taps; ++tap, to += tile) {
            const int64_t shift = tap / kernel * row_pixels() + tap % kernel;
            loops->tile(left, packed_x.data() + shift * loops->inputs, stretch, to);
          }
        }
      }
    }
  }
  const float* from = sums.data();
  for (int64_t panel = first_input; panel < last_input; ++panel) {
    const int64_t i = panel * loops->inputs, width_of = std::min<int64_t>(loops->inputs, inputs - i);
    for (int64_t o = first_output; o < last_output; ++o) {
      for (int64_t tap = 0; tap < taps; ++tap, from += tile) {
        for (int64_t k = 0; k < std::min<int64_t>(loops->outputs, outputs - o * loops->outputs); ++k) {
          const float* line = from + k * loops->inputs;
          std::copy(line, line + width_of, weight + ((o * loops->outputs + k) * taps + tap) * inputs + i);
        }
      }
    }
  }
  if (first_input == 0) {
    std::copy(bias_sum.begin(), bias_sum.end(), bias + first_channel);
  }
}

// 1x1 kernels without padding see one long row of pixels, cut into rows of a length that divides it.
void flatten(Work& work) {
  const int64_t pixels = work.images * work.out_height * work.out_width;
  int64_t length = std::min(pixels, kRun);
  while (pixels % length != 0) {
    --length;
  }
  if (length > work.out_width) {
    work.images = 1;
    work.height = work.out_height = pixels / length;
    work.width = work.out_width = length;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> convolution_weight_gradient(const Tensor& grad, const Tensor& x, int64_t kernel,
                                                       int64_t stride, int64_t padding) {
  for (const auto* each : {&grad, &x}) {
    RCDM_FAST_CHECK(each->is_cpu() && each->dim() == 4 && is_channels_last(*each) &&
                        each->scalar_type() == x.scalar_type(),
                    "convolution_weight_gradient: grad and x must be [N,C,H,W] of one dtype in channels-last memory "
                    "without gaps, on the CPU");
  }
  RCDM_FAST_CHECK(kernel > 0 && stride > 0 && 0 <= padding && padding < kernel,
                  "convolution_weight_gradient: kernel ", kernel, ", stride ", stride, ", padding ", padding);
  Work work{};
  work.loops = choose(&kWeightGradientBase, &kWeightGradientAvx2, &kWeightGradientAvx512);
  work.format = format_of(*work.loops, x.scalar_type(), "convolution_weight_gradient");
  work.images = x.size(0), work.inputs = x.size(1), work.height = x.size(2), work.width = x.size(3);
  work.outputs = grad.size(1), work.out_height = grad.size(2), work.out_width = grad.size(3);
  work.kernel = kernel, work.stride = stride, work.padding = padding;
  const int64_t high = work.height + 2 * padding - kernel, wide = work.width + 2 * padding - kernel;
  RCDM_FAST_CHECK(grad.size(0) == work.images && high >= 0 && wide >= 0 && work.out_height == high / stride + 1 &&
                      work.out_width == wide / stride + 1,
                  "convolution_weight_gradient: grad does not fit x");
  const std::array<int64_t, 4> shape{work.outputs, work.inputs, kernel, kernel};
  const std::array<int64_t, 1> length{work.outputs};
  Tensor weight = torch::stable::empty(shape, ScalarType::Float, std::nullopt, x.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast);
  Tensor bias = torch::stable::empty(length, ScalarType::Float, std::nullopt, x.device());
  if (x.numel() == 0 || grad.numel() == 0) {
    return {torch::stable::fill_(weight, 0.0), torch::stable::fill_(bias, 0.0)};
  }
  work.grad = static_cast<const char*>(grad.const_data_ptr());
  work.x = static_cast<const char*>(x.const_data_ptr());
  work.element_bytes = static_cast<int64_t>(x.element_size());
  work.weight = static_cast<float*>(weight.mutable_data_ptr());
  work.bias = static_cast<float*>(bias.mutable_data_ptr());
  if (kernel == 1 && stride == 1) {
    flatten(work);
  }
  work.zero_columns = padding + std::max<int64_t>(0, (work.out_width - 1) * stride + kernel - padding - work.width);
  const int64_t input_panels = parts(work.inputs, work.loops->inputs);
  const int64_t output_panels = parts(work.outputs, work.loops->outputs);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t input_shares = std::min(threads, input_panels);
  const int64_t output_shares = std::min(parts(threads, input_shares), output_panels);
  torch::stable::parallel_for(0, input_shares * output_shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / output_shares, o = task % output_shares;
      work.run(i * input_panels / input_shares, (i + 1) * input_panels / input_shares,
               o * output_panels / output_shares, (o + 1) * output_panels / output_shares);
    }
  });
  return {weight, bias};
}

}  // namespace rcdm_fast::cpu
