// Starting a kernel without the <<<>>> syntax, so that the same file compiles for the host in the tests.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifndef RCDM_FAST_DYNAMIC_SHARED
#define RCDM_FAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace rcdm_fast::cuda {

constexpr size_t kSharedByDefault = 48 * 1024;  // bytes of shared memory that a block may have without asking

struct Grid {
  int64_t blocks;  // the first dimension, the only one that may be large
  int threads;
  unsigned rows = 1;
};

// nullptr, or what went wrong.
template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, size_t shared_bytes, void* stream,
                   const Arguments&... arguments) {
  if (grid.blocks > 0x7fffffff) {
    return "too many blocks for one launch";
  }
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedByDefault) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return cudaGetErrorString(error);
    }
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks), grid.rows);
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  error = cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t earlier = cudaGetLastError();  // also clears it, so that it is reported once
  error = error != cudaSuccess ? error : earlier;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace rcdm_fast::cuda
