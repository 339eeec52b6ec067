#include "cpu/winograd.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/scratch.h"
#include "cpu/winograd_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTaskBytes = 1 << 19;  // of what a task keeps between its passes: about a second-level cache
constexpr int64_t kMostTiles = 96;
constexpr int64_t kApart = 16;  // floats between rows of scratch memory that would lie on the same lines of a cache

int64_t parts(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

bool is_image(const Tensor& x) {
  return x.is_cpu() && x.dim() == 4 && x.scalar_type() == ScalarType::Float && is_channels_last(x);
}

// One call.
struct Work {
  const WinogradLoops* loops;
  const float* x;
  const float* weight;
  const float* bias;
  const float* add;
  float* out;
  int64_t images, inputs, outputs, height, width;
  bool upsampled;

  int64_t across() const {
    return parts(width, kSide);
  }
  int64_t tiles() const {
    return images * parts(height, kSide) * across();
  }
  // Into how many parts the outputs are cut: more than one where there are too few tiles for all threads.
  int64_t output_parts() const {
    const int64_t threads = torch::stable::get_num_threads();
    return tiles() < 2 * threads * kTileBlock ? std::min(threads, outputs / kPanel) : 1;
  }
  // Tiles of a task: as many as stay in the cache, in tasks of about one size for every thread.
  int64_t tiles_together() const {
    const int64_t fit = kTaskBytes / (kPlaces * (inputs + outputs) * static_cast<int64_t>(sizeof(float)));
    const int64_t most = std::clamp<int64_t>(fit / kTileBlock * kTileBlock, kTileBlock, kMostTiles);
    const int64_t threads = output_parts() > 1 ? 1 : torch::stable::get_num_threads();
    const int64_t tasks = parts(parts(tiles(), most), threads) * threads;
    return parts(parts(tiles(), tasks), kTileBlock) * kTileBlock;
  }

  void run(int64_t first, int64_t count, int64_t from, int64_t to, float* seen, float* products) const;
};

// Tiles from `first` on, outputs `from` up to `to`. What they see, then their products, then their pixels.
void Work::run(int64_t first, int64_t count, int64_t from, int64_t to, float* seen, float* products) const {
  const int64_t each = parts(height, kSide) * across();
  const int64_t seen_step = count * inputs + kApart, products_step = count * outputs + kApart;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t image = (first + t) / each, y = (first + t) % each / across() * kSide, x0 = (first + t) % across() * kSide;
    const float* pixels[kPlaces];
    const int shift = upsampled ? 1 : 0;
    for (int64_t place = 0; place < kPlaces; ++place) {
      const int64_t row = y - 1 + place / kSeen, column = x0 - 1 + place % kSeen;
      const bool inside = 0 <= row && row < height && 0 <= column && column < width;
      const int64_t line = image * (height >> shift) + (row >> shift);
      pixels[place] = inside ? x + (line * (width >> shift) + (column >> shift)) * inputs : nullptr;
    }
    loops->see(pixels, inputs, seen + t * inputs, seen_step, kPanel);
  }
  for (int64_t place = 0; place < kPlaces; ++place) {
    const float* weights = weight + place * outputs * inputs;
    for (int64_t o = from; o < to; o += kPanel) {
      loops->multiply(seen + place * seen_step, count, inputs, weights + o * inputs, products + place * products_step + o,
                      outputs);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    const int64_t image = (first + t) / each, y = (first + t) % each / across() * kSide, x0 = (first + t) % across() * kSide;
    float* pixels[kSide * kSide];
    const float* residuals[kSide * kSide];
    for (int64_t place = 0; place < kSide * kSide; ++place) {
      const int64_t row = y + place / kSide, column = x0 + place % kSide;
      const int64_t at = ((image * height + row) * width + column) * outputs + from;
      pixels[place] = row < height && column < width ? out + at : nullptr;
      residuals[place] = add == nullptr ? nullptr : add + at;
    }
    loops->give(products + t * outputs + from, products_step, to - from, bias == nullptr ? nullptr : bias + from,
                add == nullptr ? nullptr : residuals, pixels);
  }
}

}  // namespace

Tensor winograd_weight(const Tensor& weight, bool mirrored) {
  RCDM_FAST_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.scalar_type() == ScalarType::Float &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "winograd_weight: weight must be float32 [O,I,3,3] on the CPU");
  const int64_t outputs = weight.size(mirrored ? 1 : 0), inputs = weight.size(mirrored ? 0 : 1);
  RCDM_FAST_CHECK(outputs % kPanel == 0 && inputs % kPanel == 0, "winograd_weight: channels must be multiples of ",
                  kPanel, ", got ", weight.size(0), " and ", weight.size(1));
  const std::array<int64_t, 4> shape{kPlaces, outputs / kPanel, inputs, kPanel};
  Tensor packed = torch::stable::empty(shape, ScalarType::Float, std::nullopt, weight.device());
  const auto* from = static_cast<const float*>(weight.const_data_ptr());
  auto* to = static_cast<float*>(packed.mutable_data_ptr());
  const int64_t of_output = weight.stride(mirrored ? 1 : 0), of_input = weight.stride(mirrored ? 0 : 1);
  const int64_t of_row = weight.stride(2), of_column = weight.stride(3), place_step = outputs * inputs;
  const WinogradLoops& loops = *choose(&kWinogradBase, &kWinogradAvx2, &kWinogradAvx512);
  torch::stable::parallel_for(0, outputs / kPanel, 1, [&](int64_t begin, int64_t end) {
    float weights[9 * kPanel];
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t i = 0; i < inputs; ++i) {
        const float* kernel = from + panel * kPanel * of_output + i * of_input;
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t seen = mirrored ? 8 - tap : tap;
          const float* at = kernel + seen / 3 * of_row + seen % 3 * of_column;
          for (int64_t o = 0; o < kPanel; ++o) {
            weights[tap * kPanel + o] = at[o * of_output];
          }
        }
        loops.bring(weights, to + (panel * inputs + i) * kPanel, place_step);
      }
    }
  });
  return packed;
}

void winograd_convolution(const Tensor& out, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& add, bool upsampled) {
  RCDM_FAST_CHECK(is_image(x) && is_image(out),
                  "winograd_convolution: out and x must be float32 [N,C,H,W] in channels-last memory without gaps, on the "
                  "CPU");
  Work work{};
  const int64_t scale = upsampled ? 2 : 1;
  work.images = x.size(0), work.inputs = x.size(1), work.height = scale * x.size(2), work.width = scale * x.size(3);
  work.outputs = out.size(1), work.upsampled = upsampled;
  RCDM_FAST_CHECK(out.size(0) == work.images && out.size(2) == work.height && out.size(3) == work.width,
                  "winograd_convolution: out does not fit x");
  RCDM_FAST_CHECK(work.inputs > 0, "winograd_convolution: x has no channels");
  RCDM_FAST_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.scalar_type() == ScalarType::Float &&
                      weight.is_contiguous() && weight.size(0) == kPlaces && weight.size(1) * kPanel == work.outputs &&
                      weight.size(2) == work.inputs && weight.size(3) == kPanel,
                  "winograd_convolution: weight must be what winograd_weight makes of [", work.outputs, ",", work.inputs,
                  ",3,3]");
  if (bias.has_value()) {
    RCDM_FAST_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == work.outputs && bias->is_contiguous() &&
                        bias->scalar_type() == ScalarType::Float,
                    "winograd_convolution: bias must be float32 [", work.outputs, "], contiguous, on the CPU");
    work.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  if (add.has_value()) {
    RCDM_FAST_CHECK(is_image(*add) && add->size(0) == work.images && add->size(1) == work.outputs &&
                        add->size(2) == work.height && add->size(3) == work.width,
                    "winograd_convolution: add must be like out");
    work.add = static_cast<const float*>(add->const_data_ptr());
  }
  if (out.numel() == 0) {
    return;
  }
  work.loops = choose(&kWinogradBase, &kWinogradAvx2, &kWinogradAvx512);
  work.x = static_cast<const float*>(x.const_data_ptr());
  work.weight = static_cast<const float*>(weight.const_data_ptr());
  work.out = static_cast<float*>(out.mutable_data_ptr());
  const int64_t together = std::min(work.tiles_together(), work.tiles());
  const int64_t cuts = work.output_parts(), panels = work.outputs / kPanel;
  const int64_t tasks = parts(work.tiles(), together) * cuts;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const int64_t seen = kPlaces * (together * work.inputs + kApart), given = kPlaces * (together * work.outputs + kApart);
    auto* scratch = reinterpret_cast<float*>(kept_scratch((seen + given) * static_cast<int64_t>(sizeof(float))));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / cuts * together, cut = task % cuts;
      work.run(first, std::min(together, work.tiles() - first), cut * panels / cuts * kPanel,
               (cut + 1) * panels / cuts * kPanel, scratch, scratch + seen);
    }
  });
}

}  // namespace rcdm_fast::cpu
