// The loops of film_group_norm's gradient, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// Channels are the inner dimension, as in the forward pass. The gradient before SiLU is computed twice, for the sums and
// for the result: in 16 bits it could not be kept without loss.

#pragma once

#include "cpu/channels.h"
#include "cpu/film_group_norm_backward_table.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kBlock = RCDM_FAST_ISA >= 2 ? 4 : 2;  // vectors whose factors and sums stay in registers

enum class Mode { keep, up, down };

template <typename Format, template <typename> class Access, Mode kMode>
inline Floats gradient_at(const typename Format::Storage* grad, int64_t step, int64_t row, int64_t count) {
  using A = Access<Format>;
  if constexpr (kMode == Mode::up) {
    const int64_t next = step / 2;
    return (A::load(grad, count) + A::load(grad + next, count)) +
           (A::load(grad + row, count) + A::load(grad + row + next, count));
  } else if constexpr (kMode == Mode::down) {
    return A::load(grad, count) * 0.25f;
  } else {
    return A::load(grad, count);
  }
}

// d silu(y) / dy = s (1 + y (1 - s)).
template <bool kCoarse>
inline Floats silu_slope(Floats y) {
  const Floats share = sigmoid<kCoarse>(y);
  return share * (1.0f + y * (1.0f - share));
}

// Runs `use(v, place of the pixel in x, x - center, gradient of y)` over a line.
template <typename Format, template <typename> class Access, int kVectors, Mode kMode, bool kSilu, typename Use>
inline __attribute__((always_inline)) void for_pixels(const GradientLine& line, const Affine& affine, int64_t channel,
                                                      int64_t count, Use&& use) {
  using A = Access<Format>;
  using P = Access<Float32>;
  const auto* x = static_cast<const typename Format::Storage*>(line.x) + channel;
  const auto* grad = static_cast<const typename Format::Storage*>(line.grad) + channel;
  Floats center[kVectors], scale[kVectors], shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    center[v] = P::load(affine.center + channel + v * kWidth, count);
    if constexpr (kSilu) {
      scale[v] = P::load(affine.scale + channel + v * kWidth, count);
      shift[v] = P::load(affine.shift + channel + v * kWidth, count);
    }
  }
  const int64_t x_step = line.x_stride, grad_step = line.grad_stride, row = line.grad_row;
  constexpr int kPixels = kMode == Mode::down ? 2 : 1;
  int64_t at = 0;
  for (int64_t left = line.pixels; left > 0; --left, grad += grad_step) {
    for (int v = 0; v < kVectors; ++v) {
      const Floats given = gradient_at<Format, Access, kMode>(grad + v * kWidth, grad_step, row, count);
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const int64_t place = at + pixel * x_step + v * kWidth;
        const Floats difference = A::load(x + place, count) - center[v];
        Floats g = given;
        if constexpr (kSilu) {
          g *= silu_slope<Format::kCoarse>(difference * scale[v] + shift[v]);
        }
        use(v, place, difference, g);
      }
    }
    at += kPixels * x_step;
  }
}

template <typename Format, template <typename> class Access, int kVectors, Mode kMode, bool kSilu>
inline void sums_of(const GradientLine& line, const Affine& affine, float* sums, float* products, int64_t channel,
                    int64_t count) {
  using P = Access<Float32>;
  Floats sum[kVectors] = {}, product[kVectors] = {};
  const auto add = [&](int v, int64_t, Floats difference, Floats g) __attribute__((always_inline)) {
    sum[v] += g;
    product[v] += g * difference;
  };
  for_pixels<Format, Access, kVectors, kMode, kSilu>(line, affine, channel, count, add);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = channel + v * kWidth;
    P::store(sums + at, P::load(sums + at, count) + sum[v], count);
    P::store(products + at, P::load(products + at, count) + product[v], count);
  }
}

template <typename Format, template <typename> class Access, int kVectors, Mode kMode, bool kSilu>
inline void write_to(const GradientLine& line, const Affine& affine, const float* slope, const float* offset,
                     int64_t channel, int64_t count) {
  using P = Access<Float32>;
  auto* to = static_cast<typename Format::Storage*>(line.of_x) + channel;
  Floats factor[kVectors], tilt[kVectors], constant[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    factor[v] = P::load(affine.scale + channel + v * kWidth, count);
    tilt[v] = P::load(slope + channel + v * kWidth, count);
    constant[v] = P::load(offset + channel + v * kWidth, count);
  }
  const auto write = [&](int v, int64_t place, Floats difference, Floats g) __attribute__((always_inline)) {
    Access<Format>::store(to + place, g * factor[v] + (difference * tilt[v] + constant[v]), count);
  };
  for_pixels<Format, Access, kVectors, kMode, kSilu>(line, affine, channel, count, write);
}

template <typename Format, Mode kMode, bool kSilu>
void sums(const GradientLine& line, const Affine& affine, float* to, float* products) {
  int64_t c = 0;
  for (; c + kBlock * kWidth <= line.channels; c += kBlock * kWidth) {
    sums_of<Format, Whole, kBlock, kMode, kSilu>(line, affine, to, products, c, kWidth);
  }
  for (; c + kWidth <= line.channels; c += kWidth) {
    sums_of<Format, Whole, 1, kMode, kSilu>(line, affine, to, products, c, kWidth);
  }
  if (c < line.channels) {
    sums_of<Format, Partial, 1, kMode, kSilu>(line, affine, to, products, c, line.channels - c);
  }
}

template <typename Format, Mode kMode, bool kSilu>
void write(const GradientLine& line, const Affine& affine, const float* slope, const float* offset) {
  int64_t c = 0;
  for (; c + kBlock * kWidth <= line.channels; c += kBlock * kWidth) {
    write_to<Format, Whole, kBlock, kMode, kSilu>(line, affine, slope, offset, c, kWidth);
  }
  for (; c + kWidth <= line.channels; c += kWidth) {
    write_to<Format, Whole, 1, kMode, kSilu>(line, affine, slope, offset, c, kWidth);
  }
  if (c < line.channels) {
    write_to<Format, Partial, 1, kMode, kSilu>(line, affine, slope, offset, c, line.channels - c);
  }
}

template <typename Format, Mode kMode>
constexpr FilmGroupNormBackwardLoops::Mode kModeOf = {
    {&sums<Format, kMode, false>, &sums<Format, kMode, true>},
    {&write<Format, kMode, false>, &write<Format, kMode, true>},
};

template <typename Format>
constexpr FilmGroupNormBackwardLoops::Format kLoopsFor = {
    kModeOf<Format, Mode::keep>,
    kModeOf<Format, Mode::up>,
    kModeOf<Format, Mode::down>,
};

}  // namespace

const FilmGroupNormBackwardLoops RCDM_FAST_LOOPS = {kLoopsFor<Float32>, kLoopsFor<BFloat16>, kLoopsFor<Float16>};

}  // namespace rcdm_fast::cpu
