#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/scratch.h"
#include "cpu/weight_gradient_table.h"
#include "cpu/winograd.h"
#include "cpu/winograd_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tiles, or pixels of the bias, that are summed before they are added to the rest. Fixed, so that sums do not depend on
// the number of threads.
constexpr int64_t kRun = 96;
constexpr int64_t kBiasRun = 256;

// One call.
struct Work {
  const WinogradLoops* loops;
  const float* grad;
  const float* x;
  int64_t images, inputs, outputs, height, width;

  int64_t across() const {
    return (width + kSide - 1) / kSide;
  }
  int64_t tiles() const {
    return images * ((height + kSide - 1) / kSide) * across();
  }

  // What tile `t` sees and gives, at place `at` of a run's panels.
  void bring(int64_t t, int64_t at, float* seen, float* given) const;
};

void Work::bring(int64_t t, int64_t at, float* seen, float* given) const {
  const int64_t each = (height + kSide - 1) / kSide * across();
  const int64_t image = t / each, top = t % each / across() * kSide, left = t % across() * kSide;
  const auto inside = [&](int64_t row, int64_t column) {
    return 0 <= row && row < height && 0 <= column && column < width;
  };
  const float* pixels[kPlaces];
  for (int64_t place = 0; place < kPlaces; ++place) {
    const int64_t row = top - 1 + place / kSeen, column = left - 1 + place % kSeen;
    pixels[place] = inside(row, column) ? x + ((image * height + row) * width + column) * inputs : nullptr;
  }
  loops->see(pixels, inputs, seen + at * kPanel, kRun * inputs, kRun * kPanel);
  for (int64_t place = 0; place < kSide * kSide; ++place) {
    const int64_t row = top + place / kSide, column = left + place % kSide;
    pixels[place] = inside(row, column) ? grad + ((image * height + row) * width + column) * outputs : nullptr;
  }
  loops->spread(pixels, outputs, given + at * kPanel, kRun * outputs, kRun * kPanel);
}

// bias[channel] = sum over pixels.
void sum_pixels(const float* grad, int64_t pixels, int64_t channels, float* bias) {
  const auto add = choose(&kWeightGradientBase, &kWeightGradientAvx2, &kWeightGradientAvx512)->float32.add_pixels;
  torch::stable::parallel_for(0, channels / kPanel, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      float* total = bias + panel * kPanel;
      std::fill(total, total + kPanel, 0.0f);
      for (int64_t first = 0; first < pixels; first += kBiasRun) {
        float run[kPanel] = {};
        const int64_t count = std::min(kBiasRun, pixels - first);
        add(grad + first * channels + panel * kPanel, channels, count, kPanel, run);
        for (int64_t c = 0; c < kPanel; ++c) {
          total[c] += run[c];
        }
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> winograd_weight_gradient(const Tensor& grad, const Tensor& x) {
  for (const auto* each : {&grad, &x}) {
    RCDM_FAST_CHECK(each->is_cpu() && each->dim() == 4 && each->scalar_type() == ScalarType::Float &&
                        is_channels_last(*each),
                    "winograd_weight_gradient: grad and x must be float32 [N,C,H,W] in channels-last memory without gaps, "
                    "on the CPU");
  }
  Work work{};
  work.images = x.size(0), work.inputs = x.size(1), work.height = x.size(2), work.width = x.size(3);
  work.outputs = grad.size(1);
  RCDM_FAST_CHECK(grad.size(0) == work.images && grad.size(2) == work.height && grad.size(3) == work.width,
                  "winograd_weight_gradient: grad does not fit x");
  RCDM_FAST_CHECK(work.outputs % kPanel == 0 && work.inputs % kPanel == 0,
                  "winograd_weight_gradient: channels must be multiples of ", kPanel, ", got ", work.outputs, " and ",
                  work.inputs);
  const std::array<int64_t, 4> shape{work.outputs, work.inputs, 3, 3};
  const std::array<int64_t, 1> length{work.outputs};
  Tensor weight = torch::stable::empty(shape, ScalarType::Float, std::nullopt, x.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast);
  Tensor bias = torch::stable::empty(length, ScalarType::Float, std::nullopt, x.device());
  if (x.numel() == 0 || grad.numel() == 0) {
    return {torch::stable::fill_(weight, 0.0), torch::stable::fill_(bias, 0.0)};
  }
  work.loops = choose(&kWinogradBase, &kWinogradAvx2, &kWinogradAvx512);
  work.grad = static_cast<const float*>(grad.const_data_ptr());
  work.x = static_cast<const float*>(x.const_data_ptr());
  const int64_t output_panels = work.outputs / kPanel, input_panels = work.inputs / kPanel;
  const int64_t square = kPanel * kPanel, at_place = work.outputs * work.inputs;
  const int64_t seen_size = kPlaces * kRun * work.inputs, given_size = kPlaces * kRun * work.outputs;
  auto* seen = reinterpret_cast<float*>(
      kept_scratch((seen_size + given_size + kPlaces * at_place) * static_cast<int64_t>(sizeof(float))));
  float* given = seen + seen_size;
  float* sums = given + given_size;  // [36][outputs / 16][inputs / 16][16][16]
  std::fill(sums, sums + kPlaces * at_place, 0.0f);
  for (int64_t first = 0; first < work.tiles(); first += kRun) {
    const int64_t count = std::min(kRun, work.tiles() - first);
    torch::stable::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        work.bring(first + t, t, seen, given);
      }
    });
    torch::stable::parallel_for(0, kPlaces * output_panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t place = task / output_panels, o = task % output_panels;
        const float* from = given + (place * work.outputs + o * kPanel) * kRun;
        for (int64_t i = 0; i < input_panels; ++i) {
          work.loops->gather(from, seen + (place * work.inputs + i * kPanel) * kRun, count,
                             sums + place * at_place + (o * input_panels + i) * square);
        }
      }
    });
  }
  auto* to = static_cast<float*>(weight.mutable_data_ptr());  // [O,3,3,I]
  torch::stable::parallel_for(0, work.outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t i = 0; i < input_panels; ++i) {
        const float* from = sums + (o / kPanel * input_panels + i) * square + o % kPanel * kPanel;
        work.loops->take_back(from, at_place, to + o * 9 * work.inputs + i * kPanel, work.inputs);
      }
    }
  });
  sum_pixels(work.grad, work.images * work.height * work.width, work.outputs,
             static_cast<float*>(bias.mutable_data_ptr()));
  return {weight, bias};
}

}  // namespace rcdm_fast::cpu
