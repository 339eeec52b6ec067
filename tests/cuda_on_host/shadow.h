// Follows every access of a kernel and finds races: two threads of a block that touch the same byte of shared memory
// between two barriers, one of them writing; two threads of a launch that write the same byte of global memory.
//
// The compiler calls the functions below for each access when it is told to instrument for its thread sanitizer, whose
// own library is not linked: it knows nothing of fibers. Included by cuda_runtime.h.

#pragma once

#include <unordered_map>

namespace cuda_on_host {

// What happened to a byte of shared memory, and in which interval between barriers; readers: one of them, and whether
// there were others.
struct Shadow {
  unsigned written = 0, read = 0;
  unsigned short writer = 0, reader = 0;
  bool several = false;
};

inline std::vector<Shadow> shadows;
inline std::unordered_map<uintptr_t, uint64_t> global_writers;  // of this launch: byte -> block and thread
inline uint64_t block_number;

inline void start_block(unsigned x, unsigned y) {
  if (x == 0 && y == 0) {
    global_writers.clear();
  }
  block_number = (uint64_t{y} << 32 | x) << 10;
  shadows.assign(shared.size(), Shadow());
}

RCDM_FAST_UNFOLLOWED inline void follow_shared(size_t place, bool writes) {
  Shadow& byte = shadows[place];
  const auto thread = static_cast<unsigned short>(running);
  if (byte.written == interval && byte.writer != thread) {
    problem = writes ? "two threads write the same shared memory between two barriers"
                     : "a thread reads shared memory that another one writes between the same two barriers";
  }
  if (writes && byte.read == interval && (byte.several || byte.reader != thread)) {
    problem = "a thread writes shared memory that another one reads between the same two barriers";
  }
  if (writes) {
    byte.written = interval;
    byte.writer = thread;
  } else {
    byte.several = byte.read == interval && (byte.several || byte.reader != thread);
    byte.read = interval;
    byte.reader = thread;
  }
}

RCDM_FAST_UNFOLLOWED inline void follow(const void* pointer, size_t bytes, bool writes) {
  if (!in_kernel) {
    return;
  }
  in_kernel = false;
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  const auto first_shared = reinterpret_cast<uintptr_t>(shared.data());
  const auto first_stack = reinterpret_cast<uintptr_t>(stacks.data());
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    if (at - first_shared < shared.size()) {
      follow_shared(at - first_shared, writes);
    } else if (writes && at - first_stack >= stacks.size()) {
      const uint64_t writer = block_number | running;
      if (global_writers.try_emplace(at, writer).first->second != writer) {
        problem = "two threads of a launch write the same global memory";
      }
    }
  }
  in_kernel = true;
}

}  // namespace cuda_on_host

#define RCDM_FAST_FOLLOW(bytes)                                                                        \
  extern "C" RCDM_FAST_UNFOLLOWED inline void __tsan_read##bytes(void* pointer) {                      \
    cuda_on_host::follow(pointer, bytes, false);                                                       \
  }                                                                                                    \
  extern "C" RCDM_FAST_UNFOLLOWED inline void __tsan_write##bytes(void* pointer) {                     \
    cuda_on_host::follow(pointer, bytes, true);                                                        \
  }                                                                                                    \
  extern "C" RCDM_FAST_UNFOLLOWED inline void __tsan_unaligned_read##bytes(void* pointer) {            \
    cuda_on_host::follow(pointer, bytes, false);                                                       \
  }                                                                                                    \
  extern "C" RCDM_FAST_UNFOLLOWED inline void __tsan_unaligned_write##bytes(void* pointer) {           \
    cuda_on_host::follow(pointer, bytes, true);                                                        \
  }
RCDM_FAST_FOLLOW(1)
RCDM_FAST_FOLLOW(2)
RCDM_FAST_FOLLOW(4)
RCDM_FAST_FOLLOW(8)
RCDM_FAST_FOLLOW(16)
#undef RCDM_FAST_FOLLOW

extern "C" {
RCDM_FAST_UNFOLLOWED inline void __tsan_read_range(void* pointer, size_t bytes) {
  cuda_on_host::follow(pointer, bytes, false);
}
RCDM_FAST_UNFOLLOWED inline void __tsan_write_range(void* pointer, size_t bytes) {
  cuda_on_host::follow(pointer, bytes, true);
}
// Atomics are host code's: kernels have none.
RCDM_FAST_UNFOLLOWED inline unsigned char __tsan_atomic8_load(const volatile void* pointer, int) {
  return __atomic_load_n(static_cast<const volatile unsigned char*>(pointer), __ATOMIC_SEQ_CST);
}
RCDM_FAST_UNFOLLOWED inline void __tsan_atomic8_store(volatile void* pointer, unsigned char value, int) {
  __atomic_store_n(static_cast<volatile unsigned char*>(pointer), value, __ATOMIC_SEQ_CST);
}
RCDM_FAST_UNFOLLOWED inline void __tsan_vptr_update(void*, void*) {}
RCDM_FAST_UNFOLLOWED inline void __tsan_func_entry(void*) {}
RCDM_FAST_UNFOLLOWED inline void __tsan_func_exit() {}
RCDM_FAST_UNFOLLOWED inline void __tsan_init() {}
}
