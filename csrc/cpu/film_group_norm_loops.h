// The loops of film_group_norm, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and may set `#pragma GCC target` before. Internal linkage: see csrc/README.md.
//
// Channels are the inner dimension. Each loop takes kBlock vectors of channels at a time, keeps their sums or factors in
// registers and runs over the pixels; what remains is done one vector, then one padded vector, at a time.

#pragma once

#include "cpu/channels.h"
#include "cpu/film_group_norm_table.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kBlock = 64 / kWidth > 4 ? 4 : 64 / kWidth;

// Two passes over pixels that the first one has brought into the cache.
template <typename Format, template <typename> class Access, int kVectors>
inline void moments_of(const Pixels& from, int64_t channel, int64_t count, float* mean, float* squares) {
  using A = Access<Format>;
  using P = Access<Float32>;
  const auto* data = static_cast<const typename Format::Storage*>(from.data) + channel;
  Floats sum[kVectors] = {}, deviation[kVectors] = {};
  Floats origin[kVectors];  // sums of differences to some value of the channel round less
  for (int v = 0; v < kVectors; ++v) {
    origin[v] = A::load(data + v * kWidth, count);
  }
  for (int64_t p = 0; p < from.pixels; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += A::load(data + p * from.stride + v * kWidth, count) - origin[v];
    }
  }
  const float share = 1.0f / static_cast<float>(from.pixels);
  Floats center[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    center[v] = origin[v] + sum[v] * share;
  }
  for (int64_t p = 0; p < from.pixels; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      const Floats difference = A::load(data + p * from.stride + v * kWidth, count) - center[v];
      deviation[v] += difference * difference;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    P::store(mean + channel + v * kWidth, center[v], count);
    P::store(squares + channel + v * kWidth, deviation[v], count);
  }
}

template <typename Format>
void moments(const Pixels& from, float* mean, float* squares) {
  int64_t c = 0;
  for (; c + kBlock * kWidth <= from.channels; c += kBlock * kWidth) {
    moments_of<Format, Whole, kBlock>(from, c, kWidth, mean, squares);
  }
  for (; c + kWidth <= from.channels; c += kWidth) {
    moments_of<Format, Whole, 1>(from, c, kWidth, mean, squares);
  }
  if (c < from.channels) {
    moments_of<Format, Partial, 1>(from, c, from.channels - c, mean, squares);
  }
}

enum class Mode { keep, up, down };

template <typename Format, template <typename> class Access, int kVectors, Mode kMode, bool kSilu>
inline void apply_to(const Pixels& from, const Affine& affine, const Target& to, int64_t channel, int64_t count) {
  using A = Access<Format>;
  using P = Access<Float32>;
  const auto* source = static_cast<const typename Format::Storage*>(from.data) + channel;
  auto* target = static_cast<typename Format::Storage*>(to.data) + channel;
  Floats center[kVectors], scale[kVectors], shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    center[v] = P::load(affine.center + channel + v * kWidth, count);
    scale[v] = P::load(affine.scale + channel + v * kWidth, count);
    shift[v] = P::load(affine.shift + channel + v * kWidth, count);
  }
  // Copies: what lies behind a reference would be read again after every store.
  const int64_t source_step = from.stride, target_step = to.stride, row = to.row;
  for (int64_t left = from.pixels; left > 0; --left, source += source_step, target += target_step) {
    for (int v = 0; v < kVectors; ++v) {
      const auto* read = source + v * kWidth;
      auto* write = target + v * kWidth;
      const auto value = [&](const typename Format::Storage* at) __attribute__((always_inline)) {
        const Floats y = (A::load(at, count) - center[v]) * scale[v] + shift[v];
        return kSilu ? silu<Format::kCoarse>(y) : y;
      };
      if constexpr (kMode == Mode::down) {
        const int64_t next = source_step / 2;
        const Floats above = value(read) + value(read + next);
        const Floats below = value(read + row) + value(read + row + next);
        A::store(write, (above + below) * 0.25f, count);
      } else {
        const Floats y = value(read);
        A::store(write, y, count);
        if constexpr (kMode == Mode::up) {
          const int64_t next = target_step / 2;
          A::store(write + next, y, count);
          A::store(write + row, y, count);
          A::store(write + row + next, y, count);
        }
      }
    }
  }
}

template <typename Format, Mode kMode, bool kSilu>
void apply(const Pixels& from, const Affine& affine, const Target& to) {
  int64_t c = 0;
  for (; c + kBlock * kWidth <= from.channels; c += kBlock * kWidth) {
    apply_to<Format, Whole, kBlock, kMode, kSilu>(from, affine, to, c, kWidth);
  }
  for (; c + kWidth <= from.channels; c += kWidth) {
    apply_to<Format, Whole, 1, kMode, kSilu>(from, affine, to, c, kWidth);
  }
  if (c < from.channels) {
    apply_to<Format, Partial, 1, kMode, kSilu>(from, affine, to, c, from.channels - c);
  }
}

template <typename Format>
constexpr FilmGroupNormLoops::Format kLoopsFor = {
    &moments<Format>,
    {&apply<Format, Mode::keep, false>, &apply<Format, Mode::keep, true>},
    {&apply<Format, Mode::up, false>, &apply<Format, Mode::up, true>},
    {&apply<Format, Mode::down, false>, &apply<Format, Mode::down, true>},
};

}  // namespace

const FilmGroupNormLoops RCDM_FAST_LOOPS = {kLoopsFor<Float32>, kLoopsFor<BFloat16>, kLoopsFor<Float16>};

}  // namespace rcdm_fast::cpu
