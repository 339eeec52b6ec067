// The loops of attention, compiled once per instruction set. A file that includes this one defines RCDM_FAST_LOOPS, the
// name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// k and v of a head are packed once, so that both products are sums of (a broadcast number) x (a vector). Then kRows rows
// of q at a time: all scores, softmax, the sum of v. Scores of kRows rows stay in the second-level cache.

#pragma once

#include "cpu/attention_table.h"
#include "cpu/simd.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kRows = 16;                          // rows of q at a time
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
// vectors; b's vectors for one u lie `vector_step` apart, its units `unit_step`.
template <typename Products, int kVectors>
inline void multiply_tile(const typename Products::Element* a, int64_t a_stride, const typename Products::Element* b,
                          int64_t vector_step, int64_t unit_step, int64_t units, bool fresh, float* to,
                          int64_t to_stride) {
  Floats sums[kTileRows][kVectors] = {};
  for (int64_t u = 0; u < units; ++u) {
    for (int r = 0; r < kTileRows; ++r) {
      typename Products::Unit one;
      std::memcpy(&one, a + r * a_stride + u * Products::kUnit, sizeof(one));
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
// stays in the first-level cache for all rows, and short sums round less.
template <typename Products>
void multiply(const typename Products::Element* a, int64_t a_stride, const typename Products::Element* b,
              int64_t vector_step, int64_t unit_step, int64_t units, int64_t chunk, int64_t vectors, int64_t rows,
              float* to, int64_t to_stride) {
  for (int64_t u = 0; u < units; u += chunk) {
    const int64_t count = units - u < chunk ? units - u : chunk;
    const auto* left = a + u * Products::kUnit;
    for (int64_t v = 0; v < vectors;) {
      const auto* right = b + u * unit_step + v * vector_step;
      const int64_t together = vectors - v >= kTileVectors ? kTileVectors : vectors - v >= 2 ? 2 : 1;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const auto* row = left + r * a_stride;
        float* at = to + r * to_stride + v * kWidth;
        if (together == kTileVectors) {
          multiply_tile<Products, kTileVectors>(row, a_stride, right, vector_step, unit_step, count, u == 0, at, to_stride);
        } else if (together == 2) {
          multiply_tile<Products, 2>(row, a_stride, right, vector_step, unit_step, count, u == 0, at, to_stride);
        } else {
          multiply_tile<Products, 1>(row, a_stride, right, vector_step, unit_step, count, u == 0, at, to_stride);
        }
      }
      v += together;
    }
  }
}

// Where everything of one head lies in the scratch memory. `keys` and `columns` are padded to whole vectors.
template <typename Products>
struct Plan {
  using Element = typename Products::Element;
  int64_t keys, columns, depth;
  int64_t k_bytes, v_bytes, q_bytes, score_bytes, result_bytes, share_bytes;

  Plan(int64_t length, int64_t width)
      : keys(rounded_up(length, kWidth)), columns(rounded_up(width, kWidth)), depth(rounded_up(width, Products::kUnit)) {
    const int64_t element = sizeof(Element);
    k_bytes = rounded_up(keys * depth * element, 64);
    v_bytes = rounded_up(rounded_up(keys, Products::kUnit) * columns * element, 64);
    q_bytes = rounded_up(kRows * depth * element, 64);
    score_bytes = rounded_up(kRows * keys * static_cast<int64_t>(sizeof(float)), 64);
    result_bytes = rounded_up(kRows * columns * static_cast<int64_t>(sizeof(float)), 64);
    share_bytes = rounded_up(kRows * keys * element, 64);
  }

  int64_t bytes() const {
    return k_bytes + v_bytes + q_bytes + score_bytes + result_bytes + share_bytes;
  }
};

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

// k -> [vector of keys][unit of depth][key][number of the unit].
template <typename Format, typename Products>
void pack_k(const Head& head, const Plan<Products>& plan, typename Products::Element* row,
            typename Products::Element* packed) {
  using Unit = typename Products::Unit;
  const int64_t units = plan.depth / Products::kUnit;
  const auto* k = static_cast<const typename Format::Storage*>(head.k);
  std::memset(packed, 0, plan.k_bytes);
  std::memset(row, 0, plan.depth * sizeof(*row));
  for (int64_t key = 0; key < head.length; ++key) {
    copy_row<Format, Products>(k + key * head.stride, head.width, row);
    auto* to = packed + (key / kWidth * units * kWidth + key % kWidth) * Products::kUnit;
    for (int64_t u = 0; u < units; ++u) {
      std::memcpy(to + u * kWidth * Products::kUnit, row + u * Products::kUnit, sizeof(Unit));
    }
  }
}

// v -> [unit of keys][column][number of the unit].
template <typename Format, typename Products>
void pack_v(const Head& head, const Plan<Products>& plan, typename Products::Element* row,
            typename Products::Element* packed) {
  const auto* v = static_cast<const typename Format::Storage*>(head.v);
  std::memset(packed, 0, plan.v_bytes);
  for (int64_t key = 0; key < head.length; ++key) {
    copy_row<Format, Products>(v + key * head.stride, head.width, row);
    auto* to = packed + key / Products::kUnit * plan.columns * Products::kUnit + key % Products::kUnit;
    for (int64_t c = 0; c < head.width; ++c) {
      to[c * Products::kUnit] = row[c];
    }
  }
}

// shares = exp(scores / sqrt(width)) up to a factor; returns 1 / their sum. Padding gets 0.
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
  const float offset = largest * factor;
  Floats sum = {};
  for (int64_t c = 0; c < whole; c += kWidth) {
    const Floats share = exp2_of<Products::kCoarse>(Float32::load(scores + c) * factor - offset);
    sum += share;
    Products::store(shares + c, share);
  }
  if (whole < keys) {
    Float32::store(tail, exp2_of<Products::kCoarse>(Float32::load(scores + whole) * factor - offset));
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

template <typename Format, typename Products>
void attend(const Head& head, char* memory) {
  using Element = typename Products::Element;
  const Plan<Products> plan(head.length, head.width);
  auto* k = reinterpret_cast<Element*>(memory);
  auto* v = reinterpret_cast<Element*>(memory + plan.k_bytes);
  auto* q = reinterpret_cast<Element*>(memory + plan.k_bytes + plan.v_bytes);
  auto* scores = reinterpret_cast<float*>(memory + plan.k_bytes + plan.v_bytes + plan.q_bytes);
  auto* results = reinterpret_cast<float*>(reinterpret_cast<char*>(scores) + plan.score_bytes);
  auto* shares = reinterpret_cast<Element*>(memory + plan.bytes() - plan.share_bytes);
  pack_k<Format, Products>(head, plan, q, k);
  pack_v<Format, Products>(head, plan, q, v);
  const float factor = 1.44269504f / __builtin_sqrtf(static_cast<float>(head.width));
  const auto* rows_of_q = static_cast<const typename Format::Storage*>(head.q);
  constexpr int64_t kUnit = Products::kUnit;
  const int64_t depth_units = plan.depth / kUnit, key_units = rounded_up(head.length, kUnit) / kUnit;
  const int64_t unit_bytes = plan.columns * kUnit * static_cast<int64_t>(sizeof(Element));
  const int64_t key_chunk = rounded_up(kCacheBytes / unit_bytes + 1, 8);
  for (int64_t first = head.begin; first < head.end; first += kRows) {
    const int64_t rows = head.end - first < kRows ? head.end - first : kRows;
    std::memset(q, 0, plan.q_bytes);
    for (int64_t r = 0; r < rows; ++r) {
      copy_row<Format, Products>(rows_of_q + (first + r) * head.stride, head.width, q + r * plan.depth);
    }
    multiply<Products>(q, plan.depth, k, depth_units * kWidth * kUnit, kWidth * kUnit, depth_units, kDepthChunk,
                       plan.keys / kWidth, rows, scores, plan.keys);
    float inverse[kRows];
    for (int64_t r = 0; r < rows; ++r) {
      inverse[r] = softmax<Products>(scores + r * plan.keys, head.length, plan.keys, factor, shares + r * plan.keys);
    }
    for (int64_t r = rows; r % kTileRows; ++r) {
      std::memset(shares + r * plan.keys, 0, plan.keys * sizeof(Element));
    }
    multiply<Products>(shares, plan.keys, v, kWidth * kUnit, plan.columns * kUnit, key_units, key_chunk,
                       plan.columns / kWidth, rows, results, plan.columns);
    auto* out = static_cast<typename Format::Storage*>(head.out) + first * head.out_stride;
    for (int64_t r = 0; r < rows; ++r) {
      store_row<Format>(results + r * plan.columns, inverse[r], head.width, out + r * head.out_stride);
    }
  }
}

template <typename Products>
int64_t scratch(int64_t length, int64_t width) {
  return Plan<Products>(length, width).bytes();
}

}  // namespace

const AttentionLoops RCDM_FAST_LOOPS = {
    {&scratch<PlainProducts>, &attend<Float32, PlainProducts>},
#if RCDM_FAST_ISA >= 3
    {&scratch<PairProducts>, &attend<BFloat16, PairProducts>},
#else
    {&scratch<PlainProducts>, &attend<BFloat16, PlainProducts>},
#endif
    {&scratch<PlainProducts>, &attend<Float16, PlainProducts>},
};

}  // namespace rcdm_fast::cpu
