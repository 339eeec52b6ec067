// The loops of winograd_convolution, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// A tile of 4x4 results is a polynomial product (Winograd 1980, Lavin and Gray 2016) that is taken at the points 0, +-a,
// +-b and infinity, in each direction. With a = 5/8 and b = 3/2 in place of the usual 1 and 2 the numbers in between stay
// of one size, and rounding is about that of the sum itself.

#pragma once

#include "cpu/simd.h"
#include "cpu/winograd_table.h"

namespace rcdm_fast::cpu {
namespace {

constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
constexpr int kVectors = kPanel / kWidth;
constexpr int64_t kRun = 64;  // inputs that are summed before they are added to the rest: less is lost by rounding
constexpr int kTiles = RCDM_FAST_ISA >= 2 ? 12 : RCDM_FAST_ISA >= 1 ? 6 : 2;  // kTiles * kVectors sums fit into registers

// Six pixels of a line -> what they are at six points.
inline void see_line(const Floats* d, int64_t stride, Floats* to, int64_t to_stride) {
  const Floats d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride],
               d5 = d[5 * stride];
  const Floats even_a = d4 - kB2 * d2, odd_a = kA * (d3 - kB2 * d1);
  const Floats even_b = d4 - kA2 * d2, odd_b = kB * (d3 - kA2 * d1);
  to[0] = kA2 * kB2 * d0 - (kA2 + kB2) * d2 + d4;
  to[to_stride] = even_a + odd_a;
  to[2 * to_stride] = even_a - odd_a;
  to[3 * to_stride] = even_b + odd_b;
  to[4 * to_stride] = even_b - odd_b;
  to[5 * to_stride] = kA2 * kB2 * d1 - (kA2 + kB2) * d3 + d5;
}

// Three weights at the six points, divided by what the polynomials that vanish at the others are there.
inline void bring_line(const Floats* w, int64_t stride, Floats* to, int64_t to_stride) {
  constexpr float kOf0 = 1 / (kA2 * kB2), kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2));
  const Floats even_a = w[0] + kA2 * w[2 * stride], even_b = w[0] + kB2 * w[2 * stride];
  to[0] = kOf0 * w[0];
  to[to_stride] = kOfA * (even_a + kA * w[stride]);
  to[2 * to_stride] = kOfA * (even_a - kA * w[stride]);
  to[3 * to_stride] = kOfB * (even_b + kB * w[stride]);
  to[4 * to_stride] = kOfB * (even_b - kB * w[stride]);
  to[5 * to_stride] = w[2 * stride];
}

// Products at six points -> four pixels.
inline void give_line(const Floats* m, int64_t stride, Floats* to, int64_t to_stride) {
  const Floats sum_a = m[stride] + m[2 * stride], apart_a = m[stride] - m[2 * stride];
  const Floats sum_b = m[3 * stride] + m[4 * stride], apart_b = m[3 * stride] - m[4 * stride];
  to[0] = m[0] + sum_a + sum_b;
  to[to_stride] = kA * apart_a + kB * apart_b;
  to[2 * to_stride] = kA2 * sum_a + kB2 * sum_b;
  to[3 * to_stride] = kA3 * apart_a + kB3 * apart_b + m[5 * stride];
}

void see(const float* const* pixels, int64_t channels, float* to, int64_t step, int64_t panel_step) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    float* panel = to + c / kPanel * panel_step + c % kPanel;
    Floats half[kPlaces], whole[kSeen];
    for (int column = 0; column < kSeen; ++column) {
      Floats line[kSeen];
      for (int row = 0; row < kSeen; ++row) {
        const float* at = pixels[row * kSeen + column];
        line[row] = at == nullptr ? Floats{} : Float32::load(at + c);
      }
      see_line(line, 1, half + column, kSeen);
    }
    for (int row = 0; row < kSeen; ++row) {
      see_line(half + row * kSeen, 1, whole, 1);
      for (int column = 0; column < kSeen; ++column) {
        Float32::store(panel + (row * kSeen + column) * step, whole[column]);
      }
    }
  }
}

// The gradient of four pixels -> that of products at six points.
inline void spread_line(const Floats* y, int64_t stride, Floats* to, int64_t to_stride) {
  const Floats y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  const Floats even_a = y0 + kA2 * y2, odd_a = kA * y1 + kA3 * y3;
  const Floats even_b = y0 + kB2 * y2, odd_b = kB * y1 + kB3 * y3;
  to[0] = y0;
  to[to_stride] = even_a + odd_a;
  to[2 * to_stride] = even_a - odd_a;
  to[3 * to_stride] = even_b + odd_b;
  to[4 * to_stride] = even_b - odd_b;
  to[5 * to_stride] = y3;
}

// The gradient of a weight at six points -> that of its three numbers.
inline void take_back_line(const Floats* u, int64_t stride, Floats* to, int64_t to_stride) {
  constexpr float kOf0 = 1 / (kA2 * kB2), kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2));
  const Floats sum_a = kOfA * (u[stride] + u[2 * stride]), apart_a = kOfA * (u[stride] - u[2 * stride]);
  const Floats sum_b = kOfB * (u[3 * stride] + u[4 * stride]), apart_b = kOfB * (u[3 * stride] - u[4 * stride]);
  to[0] = kOf0 * u[0] + sum_a + sum_b;
  to[to_stride] = kA * apart_a + kB * apart_b;
  to[2 * to_stride] = kA2 * sum_a + kB2 * sum_b + u[5 * stride];
}

void spread(const float* const* pixels, int64_t channels, float* to, int64_t step, int64_t panel_step) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    float* panel = to + c / kPanel * panel_step + c % kPanel;
    Floats half[kSeen * kSide], whole[kSeen];
    for (int column = 0; column < kSide; ++column) {
      Floats line[kSide];
      for (int row = 0; row < kSide; ++row) {
        const float* at = pixels[row * kSide + column];
        line[row] = at == nullptr ? Floats{} : Float32::load(at + c);
      }
      spread_line(line, 1, half + column, kSide);
    }
    for (int row = 0; row < kSeen; ++row) {
      spread_line(half + row * kSide, 1, whole, 1);
      for (int column = 0; column < kSeen; ++column) {
        Float32::store(panel + (row * kSeen + column) * step, whole[column]);
      }
    }
  }
}

template <int outputs>
void gather_block(const float* grad, const float* x, int64_t tiles, float* to) {
  Floats sums[outputs][kVectors] = {};
  for (int64_t t = 0; t < tiles; ++t, grad += kPanel, x += kPanel) {
    Floats values[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      values[v] = Float32::load(x + v * kWidth);
    }
    for (int o = 0; o < outputs; ++o) {
      const Floats one = splat(grad[o]);
      for (int v = 0; v < kVectors; ++v) {
        sums[o][v] += one * values[v];
      }
    }
  }
  for (int o = 0; o < outputs; ++o) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = to + o * kPanel + v * kWidth;
      Float32::store(at, Float32::load(at) + sums[o][v]);
    }
  }
}

void gather(const float* grad, const float* x, int64_t tiles, float* to) {
  constexpr int kMost = kTiles < kPanel ? kTiles : kPanel, kRest = kPanel % kMost;
  int o = 0;
  for (; o + kMost <= kPanel; o += kMost) {
    gather_block<kMost>(grad + o, x, tiles, to + o * kPanel);
  }
  if constexpr (kRest > 0) {
    gather_block<kRest>(grad + o, x, tiles, to + o * kPanel);
  }
}

void take_back(const float* from, int64_t step, float* to, int64_t tap_step) {
  for (int64_t c = 0; c < kPanel; c += kWidth) {
    Floats half[3 * kSeen], whole[3];
    for (int column = 0; column < kSeen; ++column) {
      Floats line[kSeen];
      for (int row = 0; row < kSeen; ++row) {
        line[row] = Float32::load(from + (row * kSeen + column) * step + c);
      }
      take_back_line(line, 1, half + column, kSeen);
    }
    for (int row = 0; row < 3; ++row) {
      take_back_line(half + row * kSeen, 1, whole, 1);
      for (int column = 0; column < 3; ++column) {
        Float32::store(to + (row * 3 + column) * tap_step + c, whole[column]);
      }
    }
  }
}

void bring(const float* from, float* to, int64_t step) {
  for (int64_t c = 0; c < kPanel; c += kWidth) {
    Floats half[3 * kSeen], whole[kSeen];
    for (int column = 0; column < 3; ++column) {
      Floats line[3];
      for (int row = 0; row < 3; ++row) {
        line[row] = Float32::load(from + (row * 3 + column) * kPanel + c);
      }
      bring_line(line, 1, half + column, 3);
    }
    for (int row = 0; row < kSeen; ++row) {
      bring_line(half + row * 3, 1, whole, 1);
      for (int column = 0; column < kSeen; ++column) {
        Float32::store(to + (row * kSeen + column) * step + c, whole[column]);
      }
    }
  }
}

template <int tiles>
void multiply_block(const float* from, int64_t inputs, const float* weight, float* to, int64_t outputs) {
  for (int64_t begin = 0; begin < inputs; begin += kRun) {
    const int64_t end = begin + kRun < inputs ? begin + kRun : inputs;
    Floats sums[tiles][kVectors] = {};
    for (int64_t i = begin; i < end; ++i, weight += kPanel) {
      Floats values[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        values[v] = Float32::load(weight + v * kWidth);
      }
      for (int t = 0; t < tiles; ++t) {
        const Floats one = splat(from[t * inputs + i]);
        for (int v = 0; v < kVectors; ++v) {
          sums[t][v] += one * values[v];
        }
      }
    }
    for (int t = 0; t < tiles; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = to + t * outputs + v * kWidth;
        Float32::store(at, begin == 0 ? sums[t][v] : Float32::load(at) + sums[t][v]);
      }
    }
  }
}

template <int tiles>
void multiply_rest(const float* from, int64_t left, int64_t inputs, const float* weight, float* to, int64_t outputs) {
  if constexpr (tiles > 0) {
    if (left == tiles) {
      multiply_block<tiles>(from, inputs, weight, to, outputs);
    } else {
      multiply_rest<tiles - 1>(from, left, inputs, weight, to, outputs);
    }
  }
}

void multiply(const float* from, int64_t tiles, int64_t inputs, const float* weight, float* to, int64_t outputs) {
  int64_t t = 0;
  for (; t + kTiles <= tiles; t += kTiles) {
    multiply_block<kTiles>(from + t * inputs, inputs, weight, to + t * outputs, outputs);
  }
  multiply_rest<kTiles - 1>(from + t * inputs, tiles - t, inputs, weight, to + t * outputs, outputs);
}

void give(const float* from, int64_t step, int64_t channels, const float* bias, const float* const* add,
          float* const* pixels) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    Floats half[kSide * kSeen], whole[kSide];
    for (int column = 0; column < kSeen; ++column) {
      Floats line[kSeen];
      for (int row = 0; row < kSeen; ++row) {
        line[row] = Float32::load(from + (row * kSeen + column) * step + c);
      }
      give_line(line, 1, half + column, kSeen);
    }
    const Floats plus = bias == nullptr ? Floats{} : Float32::load(bias + c);
    for (int row = 0; row < kSide; ++row) {
      give_line(half + row * kSeen, 1, whole, 1);
      for (int column = 0; column < kSide; ++column) {
        const int place = row * kSide + column;
        if (pixels[place] == nullptr) {
          continue;
        }
        const Floats value = whole[column] + plus;
        Float32::store(pixels[place] + c, add == nullptr ? value : value + Float32::load(add[place] + c));
      }
    }
  }
}

}  // namespace

const WinogradLoops RCDM_FAST_LOOPS = {&bring, &see, &multiply, &give, &spread, &gather, &take_back};

}  // namespace rcdm_fast::cpu
