// The loops of pictures_to_uint8, compiled once per instruction set. A file that includes this one defines
// RCDM_FAST_LOOPS, the name of its table, and may set `#pragma GCC target` before; the compiler vectorises.
//
// Everything but the table has internal linkage: a function that two of those files shared would be kept once, for
// whichever instruction set the linker met first.

#pragma once

#include <cstdint>

#include "cpu/pictures_to_uint8_table.h"

namespace rcdm_fast::cpu {
namespace {

inline float float_from_bits(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

struct Float32 {
  using Storage = float;
  static inline float read(float value) {
    return value;
  }
};

struct BFloat16 {
  using Storage = uint16_t;
  static inline float read(uint16_t bits) {
    return float_from_bits(static_cast<uint32_t>(bits) << 16);
  }
};

struct Float16 {
  using Storage = uint16_t;

  // Widening is exact. Normal numbers: the fields move up by 13 bits and the exponent's bias changes from 15 to 127,
  // which is a product with 2^112; infinity becomes 2^16 and more, far outside [-1,1], which is all that matters here.
  // Subnormal numbers go through an integer, so that the result does not depend on the processor's denormal mode.
  static inline float read(uint16_t bits) {
    const uint32_t magnitude = bits & 0x7fffu;
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const float normal = float_from_bits(magnitude << 13) * 0x1p112f;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const float finite = magnitude < 0x0400u ? subnormal : normal;
    const float absolute = magnitude > 0x7c00u ? float_from_bits(0x7fc00000u) : finite;
    return float_from_bits(__builtin_bit_cast(uint32_t, absolute) | sign);
  }
};

// Clamping before rounding equals clamping after it, because both ends are integers. NaN fails the first comparison
// and becomes 0. Adding 2^23 leaves the value, rounded half to even, in the low bits.
inline uint8_t level(float value) {
  const float scaled = (value + 1.0f) * 127.5f;
  const float above = scaled > 0.0f ? scaled : 0.0f;
  const float inside = above < 255.0f ? above : 255.0f;
  return static_cast<uint8_t>(__builtin_bit_cast(uint32_t, inside + 0x1p23f));
}

template <typename Format>
void convert(const void* pictures, uint8_t* levels, int64_t begin, int64_t end) {
  const auto* __restrict source = static_cast<const typename Format::Storage*>(pictures);
  uint8_t* __restrict target = levels;
  for (int64_t i = begin; i < end; ++i) {
    target[i] = level(Format::read(source[i]));
  }
}

}  // namespace

const PicturesToUint8Loops RCDM_FAST_LOOPS = {&convert<Float32>, &convert<BFloat16>, &convert<Float16>};

}  // namespace rcdm_fast::cpu
