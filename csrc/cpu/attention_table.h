// The table through which attention reaches its loops. Includes nothing but <cstdint>: the files that set an instruction
// set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// One head of one image: rows of q, k and v, `stride` elements apart; rows of the result, `out_stride` apart.
struct Head {
  const void* q;
  const void* k;
  const void* v;
  int64_t stride;
  void* out;
  int64_t out_stride;
  int64_t length;  // rows
  int64_t width;   // elements of a row
  int64_t begin;   // rows of q that are wanted
  int64_t end;
};

struct AttentionLoops {
  struct Format {
    int64_t (*scratch)(int64_t length, int64_t width);  // bytes that `attend` needs, aligned to 64
    void (*attend)(const Head& head, char* memory);
  };
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const AttentionLoops kAttentionBase;
extern const AttentionLoops kAttentionAvx2;
extern const AttentionLoops kAttentionAvx512;
extern const AttentionLoops kAttentionAvx512Bf16;

}  // namespace rcdm_fast::cpu
