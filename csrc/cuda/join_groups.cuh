// Moments that a block's threads join together.

#pragma once

#include "cuda/moments.cuh"
#include "cuda/threads.h"

namespace rcdm_fast::cuda {

// Joins `total` moments for each of the block's groups; get(group, i) gives one of them. Several threads share a group
// and one finishes it: two short loops instead of a long one. `reduce` has kJoinFloats floats; those
// behind 3 kThreads hold the result: mean and m2 for every group. Every thread of the block must come here.
template <typename Get>
__device__ __forceinline__ void join_groups(int groups, int total, float* reduce, const Get& get) {
  int helpers = 1;
  while (2 * helpers * groups <= kThreads && helpers * helpers < total) {
    helpers *= 2;
  }
  const int t = threadIdx.x;
  if (t < helpers * groups) {
    const int group = t / helpers;
    const Moments part = join([&](int i) { return get(group, i); }, t % helpers, total, helpers);
    reduce[t] = part.count;
    reduce[kThreads + t] = part.mean;
    reduce[2 * kThreads + t] = part.m2;
  }
  __syncthreads();
  if (t < groups) {
    const auto part = [&](int i) { return Moments{reduce[i], reduce[kThreads + i], reduce[2 * kThreads + i]}; };
    const Moments whole = join(part, t * helpers, (t + 1) * helpers, 1);
    reduce[3 * kThreads + t] = whole.mean;
    reduce[3 * kThreads + kMostGroups + t] = whole.m2;
  }
  __syncthreads();
}

}  // namespace rcdm_fast::cuda
