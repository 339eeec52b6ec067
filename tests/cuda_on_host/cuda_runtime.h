// A stand-in for the CUDA runtime that runs kernels on the CPU, so that their logic is tested without a GPU.
//
// Every CUDA thread of a block is a fiber; __syncthreads() hands over to the next one. Blocks run one after another.
// Shared memory is filled with NaN before every block and guarded behind its end. Found as errors: threads that miss a
// barrier, writes beyond shared memory, unaligned vectors, reads outside of the inputs. `cuda_on_host_backwards`
// reverses the order of threads between barriers: results that change show a missing barrier. Only what csrc/cuda uses
// is here.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define RCDM_FAST_DYNAMIC_SHARED(name) unsigned char* name = cuda_on_host::shared.data()

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
inline std::vector<std::pair<uintptr_t, uintptr_t>> readable;  // first and past-the-last byte; empty: anything
}

// What the tests set and read. `allow` adds memory that bulk loads may touch, `forget` clears that list.
extern "C" {
inline int cuda_on_host_backwards = 0;
inline int cuda_on_host_launches = 0;

__attribute__((used)) inline void cuda_on_host_allow(const void* first, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(first);
  cuda_on_host::readable.emplace_back(begin, begin + bytes);
}
__attribute__((used)) inline void cuda_on_host_forget() {
  cuda_on_host::readable.clear();
}
}

namespace cuda_on_host {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kGuard = 4096;
constexpr size_t kSharedByDefault = 48 * 1024;
constexpr size_t kSharedAtMost = 99 * 1024;  // sm_86, sm_89, sm_120

inline std::vector<unsigned char> shared;
inline std::string problem;
inline size_t shared_allowed = kSharedByDefault;

struct Fiber {
  ucontext_t context;
  bool finished = false;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<unsigned char> stacks;
inline unsigned running;
inline const std::function<void()>* body;

inline void fiber_main() {
  (*body)();
  fibers[running].finished = true;
  swapcontext(&fibers[running].context, &scheduler);
}

inline void run_block(unsigned threads, const std::function<void()>& kernel) {
  body = &kernel;
  fibers.assign(threads, Fiber());
  stacks.resize(threads * kStack);
  for (unsigned t = 0; t < threads; ++t) {
    getcontext(&fibers[t].context);
    fibers[t].context.uc_stack.ss_sp = stacks.data() + t * kStack;
    fibers[t].context.uc_stack.ss_size = kStack;
    makecontext(&fibers[t].context, fiber_main, 0);
  }
  for (unsigned finished = 0; finished == 0;) {
    for (unsigned i = 0; i < threads; ++i) {
      running = cuda_on_host_backwards ? threads - 1 - i : i;
      threadIdx = dim3(running);
      swapcontext(&scheduler, &fibers[running].context);
      finished += fibers[running].finished;
    }
    if (finished != 0 && finished != threads) {
      problem = "threads of one block did not reach the same barriers";
      return;
    }
  }
}

template <typename T>
void check_access(const T* pointer) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  bool inside = readable.empty();
  for (const auto& [first, end] : readable) {
    inside = inside || (first <= begin && begin + sizeof(T) <= end);
  }
  if (begin % sizeof(T) != 0) {
    problem = "unaligned access";
  } else if (!inside) {
    problem = "a read outside of every input";
  }
}

}  // namespace cuda_on_host

inline void __syncthreads() {
  using namespace cuda_on_host;
  swapcontext(&fibers[running].context, &scheduler);
}

template <typename T>
T __ldcg(const T* pointer) {
  cuda_on_host::check_access(pointer);
  return *pointer;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __int_as_float(int bits) {
  return __uint_as_float(static_cast<unsigned>(bits));
}
inline float __expf(float x) {
  return expf(x);
}
inline float __fdividef(float x, float y) {  // with CUDA's flaw for huge divisors
  return std::fabs(y) > 0x1p126f && std::isfinite(y) ? 0.0f : x / y;
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return cuda_on_host::problem.c_str();
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  cuda_on_host::problem = "more shared memory than every chip has";
  cuda_on_host::shared_allowed = static_cast<size_t>(bytes);
  return cuda_on_host::shared_allowed <= cuda_on_host::kSharedAtMost ? cudaSuccess : cudaErrorLaunchFailure;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using namespace cuda_on_host;
  ++cuda_on_host_launches;
  const size_t bytes = config->dynamicSmemBytes;
  const size_t allowed = shared_allowed;
  shared_allowed = kSharedByDefault;
  if (bytes > allowed) {
    problem = "more shared memory than was asked for";
    return cudaErrorLaunchFailure;
  }
  if (config->gridDim.y > 65535 || config->gridDim.z > 65535 || config->blockDim.x > 1024 || config->gridDim.x == 0 ||
      config->gridDim.y == 0) {
    problem = "no such grid";
    return cudaErrorLaunchFailure;
  }
  problem.clear();
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      shared.assign(bytes + kGuard, 0xff);
      run_block(blockDim.x, [&] { kernel(arguments...); });
      for (size_t i = bytes; i < shared.size(); ++i) {
        if (shared[i] != 0xff) {
          problem = "shared memory was written beyond its end";
        }
      }
      if (!problem.empty()) {
        return cudaErrorLaunchFailure;
      }
    }
  }
  return cudaSuccess;
}
