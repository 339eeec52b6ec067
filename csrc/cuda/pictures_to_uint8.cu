// Float values in [-1,1] to levels 0..255, bit for bit as rcdm_fast/ops/reference.py defines them.

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/pictures_to_uint8_launch.h"

namespace rcdm_fast::cuda {
namespace {

constexpr int kLevelThreads = 256;
constexpr int kLevels = 16;  // of one thread: 16 bytes to write

// Clamping before rounding equals clamping after it, because both ends are integers. NaN fails the first comparison
// and becomes 0. The sum and the product are rounded one by one.
__device__ __forceinline__ unsigned level(float value) {
  const float scaled = __fmul_rn(__fadd_rn(value, 1.0f), 127.5f);
  const float above = scaled > 0.0f ? scaled : 0.0f;
  return static_cast<unsigned>(__float2int_rn(above < 255.0f ? above : 255.0f));
}

template <typename Element>
__global__ void __launch_bounds__(kLevelThreads)
    levels_kernel(const typename Element::Storage* pictures, uint8_t* levels, int64_t count, bool aligned) {
  constexpr int kFull = kFullVector<Element>;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kLevelThreads + threadIdx.x;
  if (aligned && (thread + 1) * kLevels <= count) {
    Vector<Element, kFull> read[kLevels / kFull];
#pragma unroll
    for (int j = 0; j < kLevels / kFull; ++j) {
      read[j].load(pictures + thread * kLevels + j * kFull);
    }
    unsigned words[kLevels / 4] = {};
#pragma unroll
    for (int j = 0; j < kLevels / kFull; ++j) {
      float values[kFull];
      read[j].widen(values);
#pragma unroll
      for (int i = 0; i < kFull; ++i) {
        const int place = j * kFull + i;
        words[place / 4] |= level(values[i]) << place % 4 * 8;
      }
    }
    *reinterpret_cast<uint4*>(levels + thread * kLevels) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
  // What is left of an aligned block lies at its thread's place; without alignment neighbours take neighbours.
  const int64_t first = aligned ? thread * kLevels : blockIdx.x * int64_t{kLevelThreads} * kLevels + threadIdx.x;
  const int64_t step = aligned ? 1 : kLevelThreads;
  for (int k = 0; k < kLevels; ++k) {
    const int64_t index = first + k * step;
    if (index < count) {
      Vector<Element, 1> number;
      float value[1];
      number.load(pictures + index);
      number.widen(value);
      levels[index] = static_cast<uint8_t>(level(value[0]));
    }
  }
}

template <typename Element>
const char* launch_levels(const void* pictures, uint8_t* levels, int64_t count, void* stream) {
  constexpr int64_t kBlock = int64_t{kLevelThreads} * kLevels;
  const auto address = reinterpret_cast<uintptr_t>(pictures) | reinterpret_cast<uintptr_t>(levels);
  return launch<&levels_kernel<Element>>({(count + kBlock - 1) / kBlock, kLevelThreads}, 0, stream,
                static_cast<const typename Element::Storage*>(pictures), levels, count, address % 16 == 0);
}

}  // namespace
}  // namespace rcdm_fast::cuda

const char* rcdm_fast_pictures_to_uint8(const void* pictures, uint8_t* levels, int64_t count,
                                        rcdm_fast::cuda::Format format, void* stream) {
  using namespace rcdm_fast::cuda;
  switch (format) {
    case Format::kFloat32:
      return launch_levels<Float32>(pictures, levels, count, stream);
    case Format::kBFloat16:
      return launch_levels<BFloat16>(pictures, levels, count, stream);
    default:
      return launch_levels<Float16>(pictures, levels, count, stream);
  }
}
