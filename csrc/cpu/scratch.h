// Scratch memory of one task, aligned to a line of the cache.

#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace rcdm_fast::cpu {

constexpr std::align_val_t kScratchAlignment{64};

struct FreeScratch {
  void operator()(char* memory) const {
    ::operator delete[](memory, kScratchAlignment);
  }
};

using Scratch = std::unique_ptr<char[], FreeScratch>;

inline Scratch make_scratch(int64_t bytes) {
  return Scratch(static_cast<char*>(::operator new[](bytes, kScratchAlignment)));
}

// The thread's own, kept from call to call and as large as the largest asked for: memory that is given back and taken
// again for every call costs as much as a small convolution.
inline char* kept_scratch(int64_t bytes) {
  static thread_local Scratch memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    size = 0;
    memory = nullptr;
    memory = make_scratch(bytes);
    size = bytes;
  }
  return memory.get();
}

}  // namespace rcdm_fast::cpu
