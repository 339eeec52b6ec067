// The table through which convolution_weight_gradient reaches its loops. Includes nothing but <cstdint>: the files that
// set an instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// Stretches of pixels: `images` of `rows` of `pixels`, each so many pixels apart in a packed panel.
struct Stretch {
  int64_t images, rows, pixels;
  int64_t image_step, row_step, pixel_step;
};

struct WeightGradientLoops {
  int inputs;   // channels of x in a panel
  int outputs;  // channels of the gradient in a panel

  // tile[outputs][inputs] += sum over the stretch of grad[pixel][output] x[pixel][input]. The gradient's pixels lie one
  // after the other.
  void (*tile)(const float* grad, const float* x, const Stretch& stretch, float* tile);

  struct Format {
    // `count` channels of `pixels` pixels, `stride` elements apart -> [pixel][panel] with zeros beyond `count`.
    void (*pack_inputs)(const void* from, int64_t stride, int64_t pixels, int64_t count, float* to);
    void (*pack_outputs)(const void* from, int64_t stride, int64_t pixels, int64_t count, float* to);
    // sums[channel] += sum over pixels.
    void (*add_pixels)(const void* from, int64_t stride, int64_t pixels, int64_t channels, float* sums);
  };
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const WeightGradientLoops kWeightGradientBase;
extern const WeightGradientLoops kWeightGradientAvx2;
extern const WeightGradientLoops kWeightGradientAvx512;

}  // namespace rcdm_fast::cpu
