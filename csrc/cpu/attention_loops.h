// The loops of attention, compiled once per instruction set. A file that includes this one defines RCDM_FAST_LOOPS, the
// name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// k and v of a head are packed once, so that both products are sums of (a broadcast number) x (a vector). Then kRows rows
// of q at a time: all scores, softmax, the sum of v. Scores of kRows rows stay in the second-level cache.

#pragma once

#include "cpu/attention_parts.h"
#include "cpu/attention_table.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kRows = 16;                          // rows of q at a time
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
