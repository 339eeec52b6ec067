// How loops over channels read and write a vector: whole, or the first channels of it.

#pragma once

#include "cpu/simd.h"

namespace rcdm_fast::cpu {
namespace {

// Reads and writes whole vectors.
template <typename Format>
struct Whole {
  using Storage = typename Format::Storage;
  static inline Floats load(const Storage* from, int64_t) {
    return Format::load(from);
  }
  static inline void store(Storage* to, Floats value, int64_t) {
    Format::store(to, value);
  }
};

// Reads and writes the first `count` elements of a vector.
template <typename Format>
struct Partial {
  using Storage = typename Format::Storage;
  static inline Floats load(const Storage* from, int64_t count) {
    Storage padded[kWidth] = {};
    std::memcpy(padded, from, count * sizeof(Storage));
    return Format::load(padded);
  }
  static inline void store(Storage* to, Floats value, int64_t count) {
    Storage padded[kWidth];
    Format::store(padded, value);
    std::memcpy(to, padded, count * sizeof(Storage));
  }
};

}  // namespace
}  // namespace rcdm_fast::cpu
