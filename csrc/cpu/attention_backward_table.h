// The table through which the gradient of attention reaches its loops. Includes nothing but <cstdint>: the files that
// set an instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// One head of one image: rows of q, k and v, `stride` elements apart, and rows of their gradients, as far apart; rows
// of the result's gradient, `grad_stride` apart.
struct HeadGradient {
  const void* q;
  const void* k;
  const void* v;
  void* of_q;
  void* of_k;
  void* of_v;
  int64_t stride;
  const void* grad;
  int64_t grad_stride;
  int64_t length;  // rows
  int64_t width;   // elements of a row
};

struct AttentionBackwardLoops {
  int64_t (*scratch)(int64_t length, int64_t width);  // bytes that the others need, aligned to 64

  using Differentiate = void (*)(const HeadGradient& head, char* memory);
  struct Format {
    Differentiate differentiate;
  };
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const AttentionBackwardLoops kAttentionBackwardBase;
extern const AttentionBackwardLoops kAttentionBackwardAvx2;
extern const AttentionBackwardLoops kAttentionBackwardAvx512;

}  // namespace rcdm_fast::cpu
