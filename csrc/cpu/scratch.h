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

}  // namespace rcdm_fast::cpu
