// What the loops of attention and of its gradient share: products of small matrices, softmax, rows in and out. Internal
// linkage: see csrc/README.md.

#pragma once

#include "cpu/simd.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kTileRows = 4;                       // rows and vectors whose sums stay in registers
constexpr int kTileVectors = RCDM_FAST_ISA >= 2 ? 4 : 2;

constexpr int64_t kDepthChunk = 64;                // units of depth that are summed at a time
constexpr int64_t kCacheBytes = 16384;             // of v that are summed at a time: half a first-level cache

inline int64_t rounded_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Products in float32, one number at a time.
struct PlainProducts {
  using Element = float;
  using Unit = float;  // what is broadcast
  static constexpr int kUnit = 1;
  static constexpr bool kCoarse = false;
  static inline Floats multiply_add(Floats sum, Unit a, const Element* b) {
    return a * Float32::load(b) + sum;
  }
  static inline void store(Element* to, Floats value) {
    Float32::store(to, value);
  }
  static inline Element from(float value) {
    return value;
  }
};

#if RCDM_FAST_ISA >= 3
// Products of bfloat16 pairs, summed in float32.
struct PairProducts {
  using Element = uint16_t;
  using Unit = int32_t;
  static constexpr int kUnit = 2;
  static constexpr bool kCoarse = true;
  static inline Floats multiply_add(Floats sum, Unit a, const Element* b) {
    const __m512bh left = (__m512bh)_mm512_set1_epi32(a);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(b);
    return (Floats)_mm512_dpbf16_ps((__m512)sum, left, right);
  }
  static inline void store(Element* to, Floats value) {
    BFloat16::store(to, value);
  }
};
#endif

// to[r][v] = (what is there, unless `fresh`) + sum over `units` of a[r][u] b[u][v], for kTileRows rows and kVectors
// vectors; b's vectors for one u lie `vector_step` apart, its units `unit_step`. `kAcross`: a is stored as [u][r].
template <typename Products, int kVectors, bool kAcross>
inline void multiply_tile(const typename Products::Element* a, int64_t a_stride, const typename Products::Element* b,
                          int64_t vector_step, int64_t unit_step, int64_t units, bool fresh, float* to,
                          int64_t to_stride) {
  Floats sums[kTileRows][kVectors] = {};
  for (int64_t u = 0; u < units; ++u) {
    for (int r = 0; r < kTileRows; ++r) {
      typename Products::Unit one;
      std::memcpy(&one, kAcross ? a + u * a_stride + r : a + r * a_stride + u * Products::kUnit, sizeof(one));
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = Products::multiply_add(sums[r][v], one, b + u * unit_step + v * vector_step);
      }
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = to + r * to_stride + v * kWidth;
      Float32::store(at, fresh ? sums[r][v] : Float32::load(at) + sums[r][v]);
    }
  }
}

// The same for kRows rows and `vectors` vectors. Sums of at most `chunk` units are taken at a time: what they read of b
// stays in the first-level cache for all rows, and short sums round less. `kAdd`: to what is there.
template <typename Products, bool kAcross = false, bool kAdd = false>
void multiply(const typename Products::Element* a, int64_t a_stride, const typename Products::Element* b,
              int64_t vector_step, int64_t unit_step, int64_t units, int64_t chunk, int64_t vectors, int64_t rows,
              float* to, int64_t to_stride) {
  for (int64_t u = 0; u < units; u += chunk) {
    const int64_t count = units - u < chunk ? units - u : chunk;
    const auto* left = kAcross ? a + u * a_stride : a + u * Products::kUnit;
    for (int64_t v = 0; v < vectors;) {
      const auto* right = b + u * unit_step + v * vector_step;
      const int64_t together = vectors - v >= kTileVectors ? kTileVectors : vectors - v >= 2 ? 2 : 1;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const auto* row = kAcross ? left + r : left + r * a_stride;
        float* at = to + r * to_stride + v * kWidth;
        const bool fresh = u == 0 && !kAdd;
        if (together == kTileVectors) {
          multiply_tile<Products, kTileVectors, kAcross>(row, a_stride, right, vector_step, unit_step, count, fresh, at,
                                                         to_stride);
        } else if (together == 2) {
          multiply_tile<Products, 2, kAcross>(row, a_stride, right, vector_step, unit_step, count, fresh, at,
                                              to_stride);
        } else {
          multiply_tile<Products, 1, kAcross>(row, a_stride, right, vector_step, unit_step, count, fresh, at,
                                              to_stride);
        }
      }
      v += together;
    }
  }
}

template <typename Format, typename Products>
inline void copy_row(const typename Format::Storage* from, int64_t width, typename Products::Element* to) {
  if constexpr (sizeof(typename Products::Element) == sizeof(typename Format::Storage)) {
    std::memcpy(to, from, width * sizeof(typename Format::Storage));
  } else {
    int64_t c = 0;
    for (; c + kWidth <= width; c += kWidth) {
      Products::store(to + c, Format::load(from + c));
    }
    typename Format::Storage rest[kWidth] = {};
    typename Products::Element converted[kWidth];
    std::memcpy(rest, from + c, (width - c) * sizeof(rest[0]));
    Products::store(converted, Format::load(rest));
    std::memcpy(to + c, converted, (width - c) * sizeof(converted[0]));
  }
}

// shares = exp(scores / sqrt(width)) up to a factor; returns 1 / their sum. Padding gets 0. The largest score is taken off
// before the factor: a fused product less a rounded one is above 0 for large scores, where `exp2_of` gives nonsense.
template <typename Products>
inline float softmax(const float* scores, int64_t length, int64_t keys, float factor,
                     typename Products::Element* shares) {
  const int64_t whole = length / kWidth * kWidth;
  float tail[kWidth];
  float largest = scores[0];
  Floats highest = splat(scores[0]);
  for (int64_t c = 0; c < whole; c += kWidth) {
    const Floats s = Float32::load(scores + c);
    highest = s > highest ? s : highest;
  }
  for (int i = 0; i < kWidth; ++i) {
    largest = highest[i] > largest ? highest[i] : largest;
  }
  for (int64_t c = whole; c < length; ++c) {
    largest = scores[c] > largest ? scores[c] : largest;
  }
  Floats sum = {};
  for (int64_t c = 0; c < whole; c += kWidth) {
    const Floats share = exp2_of<Products::kCoarse>((Float32::load(scores + c) - largest) * factor);
    sum += share;
    Products::store(shares + c, share);
  }
  if (whole < keys) {
    Float32::store(tail, exp2_of<Products::kCoarse>((Float32::load(scores + whole) - largest) * factor));
    for (int i = 0; i < kWidth; ++i) {
      tail[i] = whole + i < length ? tail[i] : 0.0f;
    }
    sum += Float32::load(tail);
    Products::store(shares + whole, Float32::load(tail));
  }
  float total = 0.0f;
  for (int i = 0; i < kWidth; ++i) {
    total += sum[i];
  }
  return 1.0f / total;
}

template <typename Format>
inline void store_row(const float* from, float factor, int64_t width, typename Format::Storage* to) {
  int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) {
    Format::store(to + c, Float32::load(from + c) * factor);
  }
  if (c < width) {
    typename Format::Storage padded[kWidth];
    Format::store(padded, Float32::load(from + c) * factor);
    std::memcpy(to + c, padded, (width - c) * sizeof(padded[0]));
  }
}

}  // namespace
}  // namespace rcdm_fast::cpu
