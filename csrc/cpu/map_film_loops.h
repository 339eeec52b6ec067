// The loops of map_film, compiled once per instruction set. A file that includes this one defines RCDM_FAST_LOOPS, the
// name of its table, and may set `#pragma GCC target` before. Internal linkage: see csrc/README.md.

#pragma once

#include "cpu/channels.h"
#include "cpu/map_film_table.h"

namespace rcdm_fast::cpu {
namespace {

template <template <typename> class Access>
inline void blend_at(const float* from, int64_t stride, const float* weights, int64_t many, float plus, float* to,
                     int64_t count) {
  using P = Access<Float32>;
  Floats sum = splat(0.0f);
  for (int64_t k = 0; k < many; ++k) {
    sum += weights[k] * P::load(from + k * stride, count);
  }
  P::store(to, sum + plus, count);
}

void blend(const float* from, int64_t stride, const float* weights, int64_t many, float plus, float* to,
           int64_t elements) {
  int64_t e = 0;
  for (; e + kWidth <= elements; e += kWidth) {
    blend_at<Whole>(from + e, stride, weights, many, plus, to + e, kWidth);
  }
  if (e < elements) {
    blend_at<Partial>(from + e, stride, weights, many, plus, to + e, elements - e);
  }
}

// kTaps: how many places a pixel takes, or 0 for any number.
template <typename Format, template <typename> class Access, int kTaps>
inline void film_at(typename Format::Storage* x, const float* line, const float* weights, int64_t taps, int64_t channels,
                    int64_t count) {
  using P = Access<Float32>;
  const int64_t many = kTaps == 0 ? taps : kTaps;
  Floats scale = splat(0.0f), shift = splat(0.0f);
  for (int64_t k = 0; k < many; ++k) {
    scale += weights[k] * P::load(line + 2 * k * channels, count);
    shift += weights[k] * P::load(line + (2 * k + 1) * channels, count);
  }
  const Floats value = Access<Format>::load(x, count) * scale + shift;
  Access<Format>::store(x, silu<Format::kCoarse>(value), count);
}

template <typename Format, int kTaps>
inline void film_pixel(typename Format::Storage* x, const float* line, const float* weights, int64_t taps,
                       int64_t channels) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) {
    film_at<Format, Whole, kTaps>(x + c, line + c, weights, taps, channels, kWidth);
  }
  if (c < channels) {
    film_at<Format, Partial, kTaps>(x + c, line + c, weights, taps, channels, channels - c);
  }
}

template <typename Format>
void film_row(const MapFilmRow& row) {
  auto* x = static_cast<typename Format::Storage*>(row.x);
  for (int64_t p = 0; p < row.pixels; ++p, x += row.channels) {
    const float* line = row.line + 2 * row.taps.first[p] * row.channels;
    const float* weights = row.taps.weights + p * row.taps.most;
    const int64_t taps = row.taps.count[p];
    if (taps == 1) {
      film_pixel<Format, 1>(x, line, weights, taps, row.channels);
    } else if (taps == 2) {
      film_pixel<Format, 2>(x, line, weights, taps, row.channels);
    } else {
      film_pixel<Format, 0>(x, line, weights, taps, row.channels);
    }
  }
}

}  // namespace

const MapFilmLoops RCDM_FAST_LOOPS = {&blend, &film_row<Float32>, &film_row<BFloat16>, &film_row<Float16>};

}  // namespace rcdm_fast::cpu
