// The loops of solver_step, compiled once per instruction set. A file that includes this one defines RCDM_FAST_LOOPS,
// the name of its table, and may set `#pragma GCC target` before. Internal linkage: see csrc/README.md.

#pragma once

#include "cpu/simd.h"
#include "cpu/solver_step_table.h"

namespace rcdm_fast::cpu {
namespace {

// The network's output for kWidth pixels. Channels-last outputs are gathered: three channels of them are little work.
template <typename Format>
inline Floats gather(const typename Format::Storage* from, int64_t stride) {
  if (stride == 1) {
    return Format::load(from);
  }
  typename Format::Storage packed[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    packed[i] = from[i * stride];
  }
  return Format::load(packed);
}

inline void update(const SolverRow& row, const SolverFactors& factors, Floats output, const float* x, int64_t at,
                   float* next, float* x0) {
  const Floats now = Float32::load(x);
  Floats estimate = factors.x_to_x0 * now + factors.output_to_x0 * output;
  // NaN passes both comparisons unchanged.
  estimate = estimate < -factors.bound ? splat(-factors.bound) : estimate;
  estimate = estimate > factors.bound ? splat(factors.bound) : estimate;
  Floats following = factors.x0_to_next * estimate + factors.x_to_next * now;
  for (int64_t t = 0; t < row.count; ++t) {
    following += row.weights[t] * Float32::load(row.terms[t] + at);
  }
  Float32::store(next, following);
  Float32::store(x0, estimate);
}

template <typename Format>
void step(const SolverRow& row, const SolverFactors& factors) {
  const auto* output = static_cast<const typename Format::Storage*>(row.output);
  int64_t p = 0;
  for (; p + kWidth <= row.pixels; p += kWidth) {
    const Floats given = gather<Format>(output + p * row.stride, row.stride);
    update(row, factors, given, row.x + p, p, row.next + p, row.x0 + p);
  }
  // What remains goes through padded copies.
  const int64_t left = row.pixels - p;
  if (left == 0) {
    return;
  }
  typename Format::Storage packed[kWidth] = {};
  for (int64_t i = 0; i < left; ++i) {
    packed[i] = output[(p + i) * row.stride];
  }
  float x[kWidth] = {}, next[kWidth], x0[kWidth];
  std::memcpy(x, row.x + p, left * sizeof(float));
  SolverRow without_terms = row;
  without_terms.count = 0;
  update(without_terms, factors, Format::load(packed), x, 0, next, x0);
  for (int64_t t = 0; t < row.count; ++t) {
    float term[kWidth] = {};
    std::memcpy(term, row.terms[t] + p, left * sizeof(float));
    Float32::store(next, Float32::load(next) + row.weights[t] * Float32::load(term));
  }
  std::memcpy(row.next + p, next, left * sizeof(float));
  std::memcpy(row.x0 + p, x0, left * sizeof(float));
}

}  // namespace

const SolverStepLoops RCDM_FAST_LOOPS = {&step<Float32>, &step<BFloat16>, &step<Float16>};

}  // namespace rcdm_fast::cpu
