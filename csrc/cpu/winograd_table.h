// The table through which winograd_convolution reaches its loops. Includes nothing but <cstdint>: the files that set an
// instruction set include it.

#pragma once

#include <cstdint>

namespace rcdm_fast::cpu {

constexpr int kSide = 4;                    // pixels of a tile's side
constexpr int kSeen = kSide + 2;            // of what it sees
constexpr int kPlaces = kSeen * kSeen;      // products of a tile
constexpr int kPanel = 16;                  // output channels that are computed at once
constexpr int kTileBlock = 6;               // tiles of a task are a multiple of this

struct WinogradLoops {
  // 3x3 weights of kPanel outputs for one input, [9][panel] -> what they are at the points, [36] rows `step` floats apart.
  void (*bring)(const float* from, float* to, int64_t step);

  // What a tile sees: of each of 36 pixels its channels, or null outside the image -> [36] rows, `step` floats apart, the
  // panels of a row `panel_step` floats apart.
  void (*see)(const float* const* pixels, int64_t channels, float* to, int64_t step, int64_t panel_step);

  // to[tile][panel] = sum over inputs of from[tile][input] weight[input][panel]; the rows of `to` are `outputs` long.
  void (*multiply)(const float* from, int64_t tiles, int64_t inputs, const float* weight, float* to, int64_t outputs);

  // The 4x4 pixels of a tile from its 36 products, `step` floats apart, with bias and residual (both may be null).
  // A pixel outside the image is null.
  void (*give)(const float* from, int64_t step, int64_t channels, const float* bias, const float* const* add,
               float* const* pixels);

  // For the gradient of a weight. The gradient of a tile's 4x4 pixels (null outside the image) -> that of its 36
  // products, in rows and panels as of `see`.
  void (*spread)(const float* const* pixels, int64_t channels, float* to, int64_t step, int64_t panel_step);

  // to[output][input] += sum over tiles of grad[tile][output] x[tile][input]; kPanel of both.
  void (*gather)(const float* grad, const float* x, int64_t tiles, float* to);

  // The gradient of a weight at 36 places, of kPanel inputs, `step` floats apart -> [9] rows, `tap_step` floats apart.
  void (*take_back)(const float* from, int64_t step, float* to, int64_t tap_step);
};

extern const WinogradLoops kWinogradBase;
extern const WinogradLoops kWinogradAvx2;
extern const WinogradLoops kWinogradAvx512;

}  // namespace rcdm_fast::cpu
