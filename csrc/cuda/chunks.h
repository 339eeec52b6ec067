// Moments of chunks as rcdm_fast/ops/schema_moments.py declares them: float32 [N,chunks,3,C], of every channel in every
// run of kChunk pixels the mean's distance from a pivot, the sum of squared deviations, and the pivot, which is one of
// the pixels. Plain arithmetic, without CUDA.

#pragma once

#include <cstdint>

namespace rcdm_fast::cuda {

constexpr int kChunk = 128;  // pixels
constexpr int kOnce = 1024;  // pixels of an image that a norm reads once anyway
constexpr int kMomentsOfChannel = 3;

// How many chunks an image has; 0: it has no moments.
inline int64_t chunks_of(int64_t height, int64_t width) {
  const int64_t pixels = height * width;
  return pixels <= kOnce || pixels % kChunk != 0 ? 0 : pixels / kChunk;
}

}  // namespace rcdm_fast::cuda
