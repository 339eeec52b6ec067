// A stand-in for the CUDA runtime that runs kernels on the CPU, so that their logic is tested without a GPU.
//
// Every CUDA thread of a block is a fiber; __syncthreads() hands over to the next one. Blocks run one after another.
// Shared memory is filled with NaN before every block and guarded behind its end. Found as errors: threads that miss a
// barrier, writes beyond shared memory, unaligned vectors, reads outside of the inputs, launches on a stream of another
// device than the current one. `cuda_on_host_backwards` reverses the order of threads between barriers: results that
// change show a missing barrier; compiled with RCDM_FAST_SHADOW, every access is followed and each race found
// (shadow.h). Only what csrc/cuda uses is here.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// The stand-in's own accesses are not a kernel's.
#define RCDM_FAST_UNFOLLOWED __attribute__((used, noinline, no_sanitize("thread")))
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

enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
inline std::vector<std::pair<uintptr_t, uintptr_t>> readable;  // first and past-the-last byte; empty: anything
}

// What the tests set and read. `allow` adds memory that bulk loads may touch, `forget` clears that list.
extern "C" {
inline int cuda_on_host_backwards = 0;
inline int cuda_on_host_launches = 0;
inline int cuda_on_host_device = 0;      // the current one
inline int cuda_on_host_attributes = 0;  // calls of cudaFuncSetAttribute
// A stream's handle is its device + cuda_on_host_streams; 0: streams are not looked at.
inline int cuda_on_host_streams = 0;

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
inline std::map<std::pair<const void*, int>, size_t> shared_allowed;  // (kernel, device) -> bytes

inline cudaError_t fail(const char* what) {
  problem = what;
  return cudaErrorLaunchFailure;
}

struct Fiber {
  ucontext_t context;
  bool finished = false;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<unsigned char> stacks;
inline unsigned running;
inline unsigned interval = 0;  // between two barriers; counts on through all blocks
inline bool in_kernel = false;
inline const std::function<void()>* body;

RCDM_FAST_UNFOLLOWED inline void fiber_main() {
  (*body)();
  in_kernel = false;
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
    ++interval;
    for (unsigned i = 0; i < threads; ++i) {
      running = cuda_on_host_backwards ? threads - 1 - i : i;
      threadIdx = dim3(running);
      in_kernel = true;
      swapcontext(&scheduler, &fibers[running].context);
      in_kernel = false;
      finished += fibers[running].finished;
    }
    if (finished != 0 && finished != threads) {
      problem = "threads of one block did not reach the same barriers";
      return;
    }
  }
}

RCDM_FAST_UNFOLLOWED inline void check_access(const void* pointer, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  bool inside = readable.empty();
  for (const auto& [first, end] : readable) {
    inside = inside || (first <= begin && begin + bytes <= end);
  }
  if (begin % bytes != 0) {
    problem = "unaligned access";
  } else if (!inside) {
    problem = "a read outside of every input";
  }
}

}  // namespace cuda_on_host

#ifdef RCDM_FAST_SHADOW
#include "shadow.h"
#endif

RCDM_FAST_UNFOLLOWED inline void __syncthreads() {
  using namespace cuda_on_host;
  in_kernel = false;
  swapcontext(&fibers[running].context, &scheduler);
}

template <typename T>
T __ldcg(const T* pointer) {
  cuda_on_host::check_access(pointer, sizeof(T));
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
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_host_device;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  using namespace cuda_on_host;
  ++cuda_on_host_attributes;
  if (static_cast<size_t>(bytes) > kSharedAtMost) {
    return fail("more shared memory than every chip has");
  }
  shared_allowed[{kernel, cuda_on_host_device}] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using namespace cuda_on_host;
  ++cuda_on_host_launches;
  const size_t bytes = config->dynamicSmemBytes;
  const auto found = shared_allowed.find({reinterpret_cast<const void*>(kernel), cuda_on_host_device});
  if (bytes > (found == shared_allowed.end() ? kSharedByDefault : found->second)) {
    return fail("more shared memory than was asked for");
  }
  if (config->gridDim.y > 65535 || config->gridDim.z > 65535 || config->blockDim.x > 1024 || config->gridDim.x == 0 ||
      config->gridDim.y == 0) {
    return fail("no such grid");
  }
  if (cuda_on_host_streams != 0 &&
      reinterpret_cast<intptr_t>(config->stream) != cuda_on_host_streams + cuda_on_host_device) {
    return fail("a stream of another device than the current one");
  }
  problem.clear();
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      shared.assign(bytes + kGuard, 0xff);
#ifdef RCDM_FAST_SHADOW
      start_block(x, y);
#endif
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
