// The loops of convolution_weight_gradient, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// A tile of sums stays in registers while it runs over pixels: kOutputs numbers of the gradient are broadcast to
// kVectors vectors of x. Panels are packed so that both are read one after the other, for every tap of the kernel.

#pragma once

#include "cpu/channels.h"
#include "cpu/weight_gradient_table.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kVectors = 2;
constexpr int kInputs = kVectors * kWidth;
constexpr int kOutputs = RCDM_FAST_ISA >= 2 ? 12 : 6;  // times kVectors sums fit into 32 or 16 registers

void tile(const float* grad, const float* x, const Stretch& stretch, float* to) {
  Floats sums[kOutputs][kVectors] = {};
  const int64_t pixels = stretch.pixels, step = stretch.pixel_step * kInputs;
  for (int64_t image = 0; image < stretch.images; ++image) {
    for (int64_t row = 0; row < stretch.rows; ++row) {
      const float* at = x + (image * stretch.image_step + row * stretch.row_step) * kInputs;
      for (int64_t left = pixels; left > 0; --left, at += step, grad += kOutputs) {
        Floats values[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          values[v] = Float32::load(at + v * kWidth);
        }
        for (int o = 0; o < kOutputs; ++o) {
          const Floats one = splat(grad[o]);
          for (int v = 0; v < kVectors; ++v) {
            sums[o][v] += one * values[v];
          }
        }
      }
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    for (int v = 0; v < kVectors; ++v) {
      float* place = to + o * kInputs + v * kWidth;
      Float32::store(place, Float32::load(place) + sums[o][v]);
    }
  }
}

template <typename Format>
void pack_inputs(const void* from, int64_t stride, int64_t pixels, int64_t count, float* to) {
  const auto* source = static_cast<const typename Format::Storage*>(from);
  for (int64_t p = 0; p < pixels; ++p, source += stride, to += kInputs) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = count - v * kWidth;
      const auto* at = source + v * kWidth;
      const Floats value = left >= kWidth ? Format::load(at) : left > 0 ? Partial<Format>::load(at, left) : Floats{};
      Float32::store(to + v * kWidth, value);
    }
  }
}

template <typename Format>
void pack_outputs(const void* from, int64_t stride, int64_t pixels, int64_t count, float* to) {
  const auto* source = static_cast<const typename Format::Storage*>(from);
  for (int64_t p = 0; p < pixels; ++p, source += stride, to += kOutputs) {
    if constexpr (sizeof(typename Format::Storage) == sizeof(float)) {
      if (count == kOutputs) {
        std::memcpy(to, source, kOutputs * sizeof(float));
      } else {
        std::memset(to, 0, kOutputs * sizeof(float));
        std::memcpy(to, source, count * sizeof(float));
      }
    } else {
      float padded[(kOutputs + kWidth - 1) / kWidth * kWidth];
      for (int64_t c = 0; c < kOutputs; c += kWidth) {
        const int64_t left = count - c < kWidth ? count - c : kWidth;
        Float32::store(padded + c, left > 0 ? Partial<Format>::load(source + c, left) : Floats{});
      }
      std::memcpy(to, padded, kOutputs * sizeof(float));
    }
  }
}

template <typename Format>
void add_pixels(const void* from, int64_t stride, int64_t pixels, int64_t channels, float* sums) {
  const auto* source = static_cast<const typename Format::Storage*>(from);
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t count = channels - c < kWidth ? channels - c : kWidth;
    Floats sum = {};
    for (int64_t p = 0; p < pixels; ++p) {
      const auto* at = source + p * stride + c;
      sum += count == kWidth ? Format::load(at) : Partial<Format>::load(at, count);
    }
    const Floats before = Partial<Float32>::load(sums + c, count);
    Partial<Float32>::store(sums + c, before + sum, count);
  }
}

template <typename Format>
constexpr WeightGradientLoops::Format kPackingOf = {&pack_inputs<Format>, &pack_outputs<Format>, &add_pixels<Format>};

}  // namespace

const WeightGradientLoops RCDM_FAST_LOOPS = {
    kInputs, kOutputs, &tile, kPackingOf<Float32>, kPackingOf<BFloat16>, kPackingOf<Float16>,
};

}  // namespace rcdm_fast::cpu
