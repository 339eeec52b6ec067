// Starting a kernel without the <<<>>> syntax, so that the same file compiles for the host in the tests.

#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#ifndef RCDM_FAST_DYNAMIC_SHARED
#define RCDM_FAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace rcdm_fast::cuda {

constexpr size_t kSharedByDefault = 48 * 1024;  // bytes of shared memory that a block may have without asking
constexpr size_t kSharedAtMost = 96 * 1024;     // what it may have on every chip from sm_80
constexpr int kMostDevices = 64;                // on more, asking is repeated

struct Grid {
  int64_t blocks;  // the first dimension, the only one that may be large
  int threads;
  unsigned rows = 1;
};

// Asks for the most that a kernel may need, once per device: what was asked for holds for later launches of all threads,
// so an amount that varied would take it away from a launch that another thread is about to start.
template <auto kKernel>
cudaError_t allow_shared() {
  static std::atomic<bool> allowed[kMostDevices];
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || (device < kMostDevices && allowed[device].load(std::memory_order_acquire))) {
    return error;
  }
  error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(kSharedAtMost));
  if (error == cudaSuccess && device < kMostDevices) {
    allowed[device].store(true, std::memory_order_release);
  }
  return error;
}

// Starts kKernel on the current device; nullptr, or what went wrong.
template <auto kKernel, typename... Arguments>
const char* launch(const Grid& grid, size_t shared_bytes, void* stream, const Arguments&... arguments) {
  if (grid.blocks > 0x7fffffff) {
    return "too many blocks for one launch";
  }
  if (shared_bytes > kSharedAtMost) {
    return "more shared memory than every chip has";
  }
  cudaError_t error = shared_bytes > kSharedByDefault ? allow_shared<kKernel>() : cudaSuccess;
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks), grid.rows);
    config.blockDim = dim3(static_cast<unsigned>(grid.threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kKernel, arguments...);
  }
  const cudaError_t earlier = cudaGetLastError();  // also clears it, so that it is reported once
  error = error != cudaSuccess ? error : earlier;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace rcdm_fast::cuda
