// Mean and variance of many numbers without E[x^2] - E[x]^2: two passes over what is at hand, and the pairwise rule of
// Chan, Golub and LeVeque 1983 to join the results. Every order is fixed, so equal inputs give equal bits.

#pragma once

#include <cuda_runtime.h>

namespace rcdm_fast::cuda {

struct Moments {
  float count;
  float mean;
  float m2;  // sum of squared distances to the mean
};

// The moments of several sets together: get(i) for i = first, first + step, ... below end. Distances are taken from one
// of the means, so that a large common mean costs no digits.
template <typename Get>
__host__ __device__ __forceinline__ Moments join(const Get& get, int first, int end, int step) {
  float count = 0.0f;
  float drift = 0.0f;
  const float origin = first < end ? get(first).mean : 0.0f;
  for (int i = first; i < end; i += step) {
    const Moments part = get(i);
    count += part.count;
    drift += part.count * (part.mean - origin);
  }
  const float mean = count > 0.0f ? origin + drift / count : 0.0f;
  float m2 = 0.0f;
  for (int i = first; i < end; i += step) {
    const Moments part = get(i);
    const float distance = part.mean - mean;
    m2 += part.m2 + part.count * distance * distance;
  }
  return {count, mean, m2};
}

// What one thread knows about the numbers it has seen. Its Size channels fall into Size / Same sets of Same
// neighboring channels that belong to the same group; all sets have the same count.
template <int Size, int Same>
struct ThreadMoments {
  static constexpr int kSets = Size / Same;
  float count = 0.0f;
  float mean[kSets] = {};
  float m2[kSets] = {};

  // Adds the first `valid` of several pixels, which are still in registers: two passes over them, then Chan's rule.
  template <int Pixels>
  __host__ __device__ __forceinline__ void add(const float (&values)[Pixels][Size], int valid) {
    const float fresh = static_cast<float>((valid < Pixels ? valid : Pixels) * Same);
    const float total = count + fresh;
    const float one_of_fresh = 1.0f / fresh;
    const float share = fresh / total;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      float sum = 0.0f;
#pragma unroll
      for (int pixel = 0; pixel < Pixels; ++pixel) {
#pragma unroll
        for (int i = set * Same; i < (set + 1) * Same; ++i) {
          sum += pixel < valid ? values[pixel][i] : 0.0f;
        }
      }
      const float fresh_mean = sum * one_of_fresh;
      float squares = 0.0f;
#pragma unroll
      for (int pixel = 0; pixel < Pixels; ++pixel) {
#pragma unroll
        for (int i = set * Same; i < (set + 1) * Same; ++i) {
          const float distance = pixel < valid ? values[pixel][i] - fresh_mean : 0.0f;
          squares += distance * distance;
        }
      }
      const float apart = fresh_mean - mean[set];
      mean[set] += apart * share;
      m2[set] += squares + apart * apart * count * share;
    }
    count = total;
  }
};

}  // namespace rcdm_fast::cuda
