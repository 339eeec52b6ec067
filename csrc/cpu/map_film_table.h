// The table through which map_film reaches its loops. Includes nothing but <cstdint>: the files that set an
// instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

// Which of a line's places a pixel takes, one after another from `first` on, and how much of each.
struct Taps {
  const int64_t* first;
  const int64_t* count;
  const float* weights;  // `most` of every pixel
  int64_t most;
};

// One row of an image: `pixels` pixels of `channels` channels, dense.
struct MapFilmRow {
  void* x;
  int64_t pixels;
  int64_t channels;
  const float* line;  // of every place across the map: 1 + scale of the channels, then their shift
  Taps taps;
};

struct MapFilmLoops {
  // to[e] = plus + the sum over k of weights[k] * (from + k * stride)[e].
  using Blend = void (*)(const float* from, int64_t stride, const float* weights, int64_t count, float plus, float* to,
                         int64_t elements);
  using Format = void (*)(const MapFilmRow& row);
  Blend blend;
  Format float32;
  Format bfloat16;
  Format float16;
};

extern const MapFilmLoops kMapFilmBase;
extern const MapFilmLoops kMapFilmAvx2;
extern const MapFilmLoops kMapFilmAvx512;
extern const MapFilmLoops kMapFilmAvx512Bf16;

}  // namespace rcdm_fast::cpu
