// The table through which the gradient of film_group_norm reaches its loops. Includes nothing but <cstdint> and the
// forward pass's table: the files that set an instruction set include it.

#pragma once

#include "cpu/film_group_norm_table.h"

namespace rcdm_fast::cpu {

// A line of pixels of x, `x_stride` elements apart, their gradients (to be written), and the gradients of the result.
//   keep: a gradient for every pixel;
//   up:   2x2 gradients for every pixel, the second row `grad_row` elements on, the second column half a `grad_stride`;
//   down: a gradient for two pixels, `pixels` counts gradients.
struct GradientLine {
  const void* x;
  void* of_x;
  int64_t x_stride;
  const void* grad;
  int64_t grad_stride;
  int64_t grad_row;
  int64_t pixels;
  int64_t channels;
};

struct FilmGroupNormBackwardLoops {
  // With g the gradient of y = (x - center) * scale + shift: per channel sums[c] += sum of g, products[c] += sum of
  // g (x - center).
  using Sums = void (*)(const GradientLine& line, const Affine& affine, float* sums, float* products);
  // of_x = g scale + (x - center) slope + offset.
  using Write = void (*)(const GradientLine& line, const Affine& affine, const float* slope, const float* offset);

  struct Mode {
    Sums sums[2];  // [SiLU or not]
    Write write[2];
  };
  struct Format {
    Mode keep;
    Mode up;
    Mode down;
  };
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const FilmGroupNormBackwardLoops kFilmGroupNormBackwardBase;
extern const FilmGroupNormBackwardLoops kFilmGroupNormBackwardAvx2;
extern const FilmGroupNormBackwardLoops kFilmGroupNormBackwardAvx512;
extern const FilmGroupNormBackwardLoops kFilmGroupNormBackwardAvx512Bf16;

}  // namespace rcdm_fast::cpu
