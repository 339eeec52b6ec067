// Numbers in memory: float32, bfloat16 or float16, one at a time or 16 bytes at a time; arithmetic is float32.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace rcdm_fast::cuda {

struct Float32 {
  using Storage = float;
  static constexpr int kPerWord = 1;  // numbers in 32 bits

  static __device__ __forceinline__ float widen(float value) {
    return value;
  }
  static __device__ __forceinline__ float narrow(float value) {
    return value;
  }
  static __device__ __forceinline__ void widen(unsigned word, float* values) {
    values[0] = __uint_as_float(word);
  }
  static __device__ __forceinline__ unsigned narrow(const float* values) {
    return __float_as_uint(values[0]);
  }
};

struct BFloat16 {
  using Storage = unsigned short;
  static constexpr int kPerWord = 2;

  static __device__ __forceinline__ float widen(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
  static __device__ __forceinline__ unsigned short narrow(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  static __device__ __forceinline__ void widen(unsigned word, float* values) {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ unsigned narrow(const float* values) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
    return __bfloat16_as_ushort(pair.x) | static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16;
  }
};

struct Float16 {
  using Storage = unsigned short;
  static constexpr int kPerWord = 2;

  static __device__ __forceinline__ float widen(unsigned short bits) {
    return __half2float(__ushort_as_half(bits));
  }
  static __device__ __forceinline__ unsigned short narrow(float value) {
    return __half_as_ushort(__float2half_rn(value));
  }
  static __device__ __forceinline__ void widen(unsigned word, float* values) {
    values[0] = widen(static_cast<unsigned short>(word));
    values[1] = widen(static_cast<unsigned short>(word >> 16));
  }
  static __device__ __forceinline__ unsigned narrow(const float* values) {
    const __half2 pair = __floats2half2_rn(values[0], values[1]);
    return __half_as_ushort(pair.x) | static_cast<unsigned>(__half_as_ushort(pair.y)) << 16;
  }
};

template <typename Element>
constexpr int kFullVector = 16 / static_cast<int>(sizeof(typename Element::Storage));

// Size neighbors in memory: 16 bytes of them, which must be aligned, or one.
template <typename Element, int Size>
struct Vector {
  static_assert(Size == kFullVector<Element>);
  using Storage = typename Element::Storage;
  uint4 words;

  __device__ __forceinline__ void load(const Storage* from) {  // past the first-level cache: nothing is read twice
    words = __ldcg(reinterpret_cast<const uint4*>(from));
  }
  __device__ __forceinline__ void store(Storage* to) const {
    *reinterpret_cast<uint4*>(to) = words;
  }
  __device__ __forceinline__ void widen(float (&values)[Size]) const {
    constexpr int n = Element::kPerWord;
    Element::widen(words.x, values);
    Element::widen(words.y, values + n);
    Element::widen(words.z, values + 2 * n);
    Element::widen(words.w, values + 3 * n);
  }
  __device__ __forceinline__ void narrow(const float (&values)[Size]) {
    constexpr int n = Element::kPerWord;
    words.x = Element::narrow(values);
    words.y = Element::narrow(values + n);
    words.z = Element::narrow(values + 2 * n);
    words.w = Element::narrow(values + 3 * n);
  }
};

template <typename Element>
struct Vector<Element, 1> {
  using Storage = typename Element::Storage;
  Storage number;

  __device__ __forceinline__ void load(const Storage* from) {
    number = __ldcg(from);
  }
  __device__ __forceinline__ void store(Storage* to) const {
    *to = number;
  }
  __device__ __forceinline__ void widen(float (&values)[1]) const {
    values[0] = Element::widen(number);
  }
  __device__ __forceinline__ void narrow(const float (&values)[1]) {
    number = Element::narrow(values[0]);
  }
};

// Size floats side by side, four at a time where there are as many, which must be aligned then.
template <int Size>
__device__ __forceinline__ void read_floats(const float* from, float (&values)[Size]) {
  if constexpr (Size % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Size; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      values[i] = from[i];
    }
  }
}

template <int Size>
__device__ __forceinline__ void write_floats(float* to, const float (&values)[Size]) {
  if constexpr (Size % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Size; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      to[i] = values[i];
    }
  }
}

}  // namespace rcdm_fast::cuda
