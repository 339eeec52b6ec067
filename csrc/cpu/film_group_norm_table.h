// The table through which film_group_norm reaches its loops. Includes nothing but <cstdint>: the files that set an
// instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// `pixels` pixels, `stride` elements apart, of `channels` channels each.
struct Pixels {
  const void* data;
  int64_t stride;
  int64_t pixels;
  int64_t channels;
};

// Per channel: result = (x - center) * scale + shift.
struct Affine {
  const float* center;
  const float* scale;
  const float* shift;
};

// Where results go. `row`: upsampling writes a second row of pixels that far on (elements); averaging reads one.
struct Target {
  void* data;
  int64_t stride;
  int64_t row;
};

struct FilmGroupNormLoops {
  // Mean and sum of squared deviations from it, per channel.
  using Moments = void (*)(const Pixels& from, float* mean, float* squares);
  using Apply = void (*)(const Pixels& from, const Affine& affine, const Target& to);

  struct Format {
    Moments moments;
    // [SiLU or not]. `keep`: a pixel to a pixel. `up`: a pixel to 2x2 pixels. `down`: 2x2 pixels, the second row
    // `row` elements on, to one pixel; `from.stride` leads from one 2x2 block to the next.
    Apply keep[2];
    Apply up[2];
    Apply down[2];
  };
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const FilmGroupNormLoops kFilmGroupNormBase;
extern const FilmGroupNormLoops kFilmGroupNormAvx2;
extern const FilmGroupNormLoops kFilmGroupNormAvx512;
extern const FilmGroupNormLoops kFilmGroupNormAvx512Bf16;

}  // namespace rcdm_fast::cpu
