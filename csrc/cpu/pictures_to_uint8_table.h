// The table through which pictures_to_uint8 reaches its loops. Includes nothing but <cstdint>: the files that set an
// instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

struct PicturesToUint8Loops {
  using Loop = void (*)(const void* pictures, uint8_t* levels, int64_t begin, int64_t end);
  Loop float32;
  Loop bfloat16;
  Loop float16;
};

extern const PicturesToUint8Loops kPicturesToUint8Base;
extern const PicturesToUint8Loops kPicturesToUint8Avx2;
extern const PicturesToUint8Loops kPicturesToUint8Avx512;

}  // namespace rcdm_fast::cpu
