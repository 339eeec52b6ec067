// The loops of attention's gradient, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and RCDM_FAST_ISA. Internal linkage: see csrc/README.md.
//
// kRows rows of q at a time: their shares of attention again, then the gradients of shares and scores, then what those
// rows add to the gradients of q, k and v. Everything is float32, whatever the format; rows beyond the last are zero.

#pragma once

#include "cpu/attention_backward_table.h"
#include "cpu/attention_parts.h"

namespace rcdm_fast::cpu {
namespace {

constexpr int kRows = 32;  // rows of q at a time

// Where everything of one head lies in the scratch memory, in floats.
struct Plan {
  int64_t keys, columns, score_stride;
  int64_t k_across, v_across, k_rows, of_k, of_v, q_rows, grad_rows, of_q, shares, of_shares, total;

  Plan(int64_t length, int64_t width)
      : keys(rounded_up(length, kWidth)), columns(rounded_up(width, kWidth)),
        score_stride(keys + 16) {  // rows that are powers of two apart would share the lines of the cache
    int64_t at = 0;
    const auto take = [&](int64_t floats) {
      const int64_t here = at;
      at += rounded_up(floats, 16);
      return here;
    };
    k_across = take(keys * columns);
    v_across = take(keys * columns);
    k_rows = take(keys * columns);
    of_k = take(keys * columns);
    of_v = take(keys * columns);
    q_rows = take(kRows * columns);
    grad_rows = take(kRows * columns);
    of_q = take(kRows * columns);
    shares = take(kRows * score_stride);
    of_shares = take(kRows * score_stride);
    total = at;
  }
};

// Rows -> [row][column], with zeros up to `padded` rows.
template <typename Format>
void unpack_rows(const void* from, int64_t stride, int64_t rows, int64_t padded, const Plan& plan, int64_t width,
                 float* to) {
  const auto* source = static_cast<const typename Format::Storage*>(from);
  std::memset(to, 0, padded * plan.columns * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    copy_row<Format, PlainProducts>(source + r * stride, width, to + r * plan.columns);
  }
}

// [key][column] -> [vector of keys][column][key].
void turn(const float* rows, const Plan& plan, float* to) {
  for (int64_t key = 0; key < plan.keys; ++key) {
    float* at = to + key / kWidth * plan.columns * kWidth + key % kWidth;
    for (int64_t c = 0; c < plan.columns; ++c) {
      at[c * kWidth] = rows[key * plan.columns + c];
    }
  }
}

// shares -> normalized shares; gradients of shares -> gradients of scores.
inline void differentiate_softmax(float* shares, float* gradients, float inverse, float factor, int64_t keys) {
  Floats sum = {};
  for (int64_t c = 0; c < keys; c += kWidth) {
    const Floats share = Float32::load(shares + c) * inverse;
    Float32::store(shares + c, share);
    sum += share * Float32::load(gradients + c);
  }
  float mean = 0.0f;
  for (int i = 0; i < kWidth; ++i) {
    mean += sum[i];
  }
  for (int64_t c = 0; c < keys; c += kWidth) {
    const Floats difference = Float32::load(gradients + c) - mean;
    Float32::store(gradients + c, Float32::load(shares + c) * difference * factor);
  }
}

template <typename Format>
void differentiate(const HeadGradient& head, char* memory) {
  using Storage = typename Format::Storage;
  const Plan plan(head.length, head.width);
  auto* at = reinterpret_cast<float*>(memory);
  float *k_across = at + plan.k_across, *v_across = at + plan.v_across, *k_rows = at + plan.k_rows;
  float *of_k = at + plan.of_k, *of_v = at + plan.of_v, *of_q = at + plan.of_q;
  float *q_rows = at + plan.q_rows, *grad_rows = at + plan.grad_rows;
  float *shares = at + plan.shares, *of_shares = at + plan.of_shares;
  unpack_rows<Format>(head.v, head.stride, head.length, plan.keys, plan, head.width, k_rows);
  turn(k_rows, plan, v_across);
  unpack_rows<Format>(head.k, head.stride, head.length, plan.keys, plan, head.width, k_rows);
  turn(k_rows, plan, k_across);
  std::memset(of_k, 0, plan.keys * plan.columns * sizeof(float));
  std::memset(of_v, 0, plan.keys * plan.columns * sizeof(float));
  const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(head.width)), log2e = 1.44269504f;
  const int64_t across = plan.columns * kWidth, vectors = plan.columns / kWidth, stride = plan.score_stride;
  const int64_t fit = kCacheBytes / (plan.columns * static_cast<int64_t>(sizeof(float))), chunk = fit > 0 ? fit : 1;
  for (int64_t first = 0; first < head.length; first += kRows) {
    const int64_t rows = head.length - first < kRows ? head.length - first : kRows;
    const int64_t padded = rounded_up(rows, kTileRows);
    const auto* q = static_cast<const Storage*>(head.q) + first * head.stride;
    unpack_rows<Format>(q, head.stride, rows, padded, plan, head.width, q_rows);
    unpack_rows<Format>(static_cast<const Storage*>(head.grad) + first * head.grad_stride, head.grad_stride, rows, padded,
                        plan, head.width, grad_rows);
    multiply<PlainProducts>(q_rows, plan.columns, k_across, across, kWidth, head.width, kDepthChunk, plan.keys / kWidth,
                            padded, shares, stride);
    multiply<PlainProducts>(grad_rows, plan.columns, v_across, across, kWidth, head.width, kDepthChunk,
                            plan.keys / kWidth, padded, of_shares, stride);
    for (int64_t r = 0; r < padded; ++r) {
      float* row = shares + r * stride;
      const float inverse = softmax<PlainProducts>(row, head.length, plan.keys, factor * log2e, row);
      differentiate_softmax(row, of_shares + r * stride, inverse, factor, plan.keys);
    }
    multiply<PlainProducts>(of_shares, stride, k_rows, kWidth, plan.columns, plan.keys, chunk, vectors, padded, of_q,
                            plan.columns);
    multiply<PlainProducts, true, true>(of_shares, stride, q_rows, kWidth, plan.columns, padded, padded, vectors,
                                        plan.keys, of_k, plan.columns);
    multiply<PlainProducts, true, true>(shares, stride, grad_rows, kWidth, plan.columns, padded, padded, vectors,
                                        plan.keys, of_v, plan.columns);
    auto* to = static_cast<Storage*>(head.of_q) + first * head.stride;
    for (int64_t r = 0; r < rows; ++r) {
      store_row<Format>(of_q + r * plan.columns, 1.0f, head.width, to + r * head.stride);
    }
  }
  for (int64_t key = 0; key < head.length; ++key) {
    const int64_t row = key * plan.columns, place = key * head.stride;
    store_row<Format>(of_k + row, 1.0f, head.width, static_cast<Storage*>(head.of_k) + place);
    store_row<Format>(of_v + row, 1.0f, head.width, static_cast<Storage*>(head.of_v) + place);
  }
}

int64_t scratch(int64_t length, int64_t width) {
  return Plan(length, width).total * static_cast<int64_t>(sizeof(float));
}

}  // namespace

const AttentionBackwardLoops RCDM_FAST_LOOPS = {
    &scratch, {&differentiate<Float32>}, {&differentiate<BFloat16>}, {&differentiate<Float16>},
};

}  // namespace rcdm_fast::cpu
