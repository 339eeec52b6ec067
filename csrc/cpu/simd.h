// Vectors of floats as wide as the instruction set that the including file is compiled for, written with the compiler's
// vector extensions; what those cannot say is an intrinsic. No torch; everything has internal linkage.
//
// The file says by RCDM_FAST_ISA what its `#pragma GCC target` allows (0 base, 1 avx2, 2 avx512, 3 avx512_bf16): the
// compiler's own macros (__AVX2__...) do not follow the pragma in gcc 12.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rcdm_fast::cpu {
namespace {

#if !defined(__x86_64__)
#undef RCDM_FAST_ISA
#define RCDM_FAST_ISA 0
#endif

#if RCDM_FAST_ISA >= 2
constexpr int kWidth = 16;
#elif RCDM_FAST_ISA >= 1
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

inline Floats splat(float value) {
  return value - Floats{};
}

// The formats. `load` and `store` handle kWidth elements at any address.

struct Float32 {
  using Storage = float;
  static constexpr bool kCoarse = false;
  static inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static inline void store(float* to, Floats value) {
    std::memcpy(to, &value, sizeof(value));
  }
};

struct BFloat16 {
  using Storage = uint16_t;
  static constexpr bool kCoarse = true;
  static inline Floats load(const uint16_t* from) {
#if RCDM_FAST_ISA >= 2
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif RCDM_FAST_ISA >= 1
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
    Halves bits;
    std::memcpy(&bits, from, sizeof(bits));
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
#endif
  }
  // Rounded half to even; a NaN stays one.
  static inline void store(uint16_t* to, Floats value) {
#if RCDM_FAST_ISA >= 3
    const __m256bh bits = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &bits, sizeof(bits));
#else
    const Words word = (Words)value;
    const Words rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    const Words kept = value == value ? rounded : (word >> 16) | 0x40u;
#if RCDM_FAST_ISA >= 2
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)kept));
#else
    const Halves bits = __builtin_convertvector(kept, Halves);
    std::memcpy(to, &bits, sizeof(bits));
#endif
#endif
  }
};

struct Float16 {
  using Storage = uint16_t;
  static constexpr bool kCoarse = true;
  static inline Floats load(const uint16_t* from) {
#if RCDM_FAST_ISA >= 2
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif RCDM_FAST_ISA >= 1
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Halves bits;
    std::memcpy(&bits, from, sizeof(bits));
    const Words word = __builtin_convertvector(bits, Words);
    const Words magnitude = word & 0x7fffu;
    // The fields move up by 13 bits; the exponent's bias changes by a product with 2^112, exact for subnormals too.
    const Floats finite = (Floats)(magnitude << 13) * 0x1p112f;
    const Words special = (magnitude << 13) | 0x7f800000u;
    const Words absolute = magnitude >= 0x7c00u ? special : (Words)finite;
    return (Floats)(absolute | ((word & 0x8000u) << 16));
#endif
  }
  static inline void store(uint16_t* to, Floats value) {
#if RCDM_FAST_ISA >= 2
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif RCDM_FAST_ISA >= 1
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    const Words word = (Words)value;
    const Words sign = (word >> 16) & 0x8000u;
    const Floats magnitude = (Floats)(word & 0x7fffffffu);
    // Normal results: round in the integer, half to even. Subnormal ones: adding 0.5 leaves 2^-24 as the last place.
    const Words bits = (Words)magnitude;
    const Words normal = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
    const Words subnormal = (Words)(magnitude + 0.5f) - 0x3f000000u;
    Words result = magnitude < 0x1p-14f ? subnormal : normal;
    result = magnitude < 65520.0f ? result : Words{} + 0x7c00u;
    result = magnitude == magnitude ? result : Words{} + 0x7e00u;
    const Halves stored = __builtin_convertvector(result | sign, Halves);
    std::memcpy(to, &stored, sizeof(stored));
#endif
  }
};

inline Floats limited(Floats x, float low, float high) {  // a NaN passes unchanged
  const Floats above = x < low ? splat(low) : x;
  return above > high ? splat(high) : above;
}

// 2^(n + r) for r in [-0.5, 0.5], by a polynomial; n is the integer in the low bits of `shifted` = n + kIntegerBits.
// Relative error: 1e-8 and rounding, or (`kCoarse`, for results that are rounded to 16 bits) 1.1e-4.
constexpr float kIntegerBits = 0x1.8p23f;

template <bool kCoarse>
inline Floats power_of_two(Floats r, Floats shifted) {
  Floats power;
  if constexpr (kCoarse) {
    power = ((0.0550089297f * r + 0.242210972f) * r + 0.693282929f) * r + 1.0f;
  } else {
    power = 1.53533620e-4f * r + 1.33988747e-3f;
    power = power * r + 9.61843736e-3f;
    power = power * r + 5.55033247e-2f;
    power = power * r + 2.40226479e-1f;
    power = power * r + 6.93147203e-1f;
    power = power * r + 1.0f;
  }
  return (Floats)((Words)power + ((Words)shifted << 23));
}

// 2^t for t <= 0; 2^-126 below -126.
template <bool kCoarse>
inline Floats exp2_of(Floats t) {
  const Floats bounded = t < -126.0f ? splat(-126.0f) : t;
  const Floats shifted = bounded + kIntegerBits;
  return power_of_two<kCoarse>(bounded - (shifted - kIntegerBits), shifted);
}

// 1 / (1 + exp(-x)). Relative error: below 4e-7, or (`kCoarse`) 1.7e-4. Beyond +-87 the result is 0 or 1 to the last
// digit, and the exponential stays a number.
template <bool kCoarse>
inline Floats sigmoid(Floats x) {
  constexpr float kMinusLog2e = -1.44269504f, kMinusLog2eRest = -1.925963033e-8f;
  const Floats bounded = limited(x, -87.0f, 87.0f);
  const Floats t = bounded * kMinusLog2e;
  const Floats shifted = t + kIntegerBits;
  const Floats n = shifted - kIntegerBits;
  Floats r = t - n;
  if constexpr (!kCoarse) {
    r = bounded * kMinusLog2eRest + (bounded * kMinusLog2e - n);
  }
  const Floats divisor = power_of_two<kCoarse>(r, shifted) + 1.0f;
#if RCDM_FAST_ISA >= 2
  const Floats guess = (Floats)_mm512_rcp14_ps((__m512)divisor);
  if constexpr (kCoarse) {
    return guess;
  }
  return guess * (2.0f - divisor * guess);
#else
  return 1.0f / divisor;
#endif
}

template <bool kCoarse>
inline Floats silu(Floats x) {
  return x * sigmoid<kCoarse>(x);
}

}  // namespace
}  // namespace rcdm_fast::cpu
