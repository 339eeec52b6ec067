// __half by the compiler's own 16-bit type; see cuda_runtime.h in this folder.

#pragma once

#include "cuda_runtime.h"

struct __half {
  _Float16 value;
};
struct __half2 {
  __half x, y;
};
inline __half __ushort_as_half(unsigned short bits) {
  __half half;
  std::memcpy(&half, &bits, 2);
  return half;
}
inline unsigned short __half_as_ushort(__half half) {
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float __half2float(__half half) {
  return static_cast<float>(half.value);
}
inline __half __float2half_rn(float value) {
  return {static_cast<_Float16>(value)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
