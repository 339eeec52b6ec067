// What kernels that take moments agree on. Plain numbers, without CUDA.

#pragma once

namespace rcdm_fast::cuda {

constexpr int kThreads = 256;    // of a block
constexpr int kMostGroups = 64;  // of which a block may find the moments
constexpr int kJoinFloats = 3 * kThreads + 2 * kMostGroups;  // of shared memory: partial results, the groups' result

}  // namespace rcdm_fast::cuda
