// Questions about tensors that several operators ask.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "check.h"

namespace rcdm_fast::cpu {

// Whether [N,C,H,W] lies in memory as [N,H,W,C] without gaps.
inline bool is_channels_last(const torch::stable::Tensor& x) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected && x.numel() > 0) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

// The loops of a table for a dtype.
template <typename Loops>
const typename Loops::Format* format_of(const Loops& loops, torch::headeronly::ScalarType dtype, const char* name) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return &loops.float32;
    case ScalarType::BFloat16:
      return &loops.bfloat16;
    case ScalarType::Half:
      return &loops.float16;
    default:
      RCDM_FAST_CHECK(false, name, ": expected float32, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace rcdm_fast::cpu
