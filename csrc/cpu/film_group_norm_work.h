// One call of film_group_norm or of its gradient: the tensors it was given, checked, and where everything lies.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/film_group_norm_table.h"

namespace rcdm_fast::cpu {

// The inputs of the schema, in its order.
struct FilmGroupNormInputs {
  using Tensor = torch::stable::Tensor;
  const Tensor& x;
  const std::optional<Tensor>& skip;
  const Tensor& weight;
  const Tensor& bias;
  const std::optional<Tensor>& film;
  const std::optional<Tensor>& rows;
  int64_t groups;
  double eps;
  bool silu;
  int64_t resample;
  bool phases;
};

// Statistics are taken over runs of so many pixels and then merged. The size is fixed, so that an image's result does
// not depend on its batch or on the number of threads; 64 pixels of 64 channels stay in the first-level cache.
constexpr int64_t kRun = 64;

// Elements that make it worth starting another thread.
constexpr int64_t kGrain = 1 << 14;

// Some channels of an image: `count` of them, from `begin` on; whole groups. `memory` is theirs (`Work::scratch`).
struct Channels {
  int64_t image;
  int64_t begin;
  int64_t count;
  float* memory;
};

// What the statistics of some channels come to: result = (x - center) * scale + shift.
struct Factors {
  float* center;   // mean of the group, less what FiLM adds before the norm
  float* scale;    // inverse x weight x (1 + FiLM's scale)
  float* shift;
  float* inverse;  // 1 / sqrt(variance of the group + eps)
  float* mean;     // of the channel
};

struct FilmGroupNormWork {
  struct Input {
    const char* data;
    int64_t channels;
  };
  Input inputs[2];
  int input_count;
  int64_t element_bytes;
  int64_t n, channels, height, width;  // of the image before resampling
  bool phases;
  int64_t resample;
  const float* weight;
  const float* bias;
  const float* film;
  int64_t film_stride;
  bool film_is_added;
  const int64_t* rows;
  int64_t groups;
  double eps;
  bool silu;
  const FilmGroupNormLoops::Format* loops;

  // Checks everything but the result.
  explicit FilmGroupNormWork(const FilmGroupNormInputs& given);

  int64_t runs() const {
    return phases ? 2 * height : (height * width + kRun - 1) / kRun;
  }
  int64_t run_pixels(int64_t run) const {
    return phases ? width / 2 : std::min(kRun, height * width - run * kRun);
  }
  int64_t out_height() const {
    return resample == 1 ? 2 * height : resample == -1 ? height / 2 : height;
  }
  int64_t out_width() const {
    return resample == 1 ? 2 * width : resample == -1 ? width / 2 : width;
  }
  // First element of a run of an input of so many channels, and from pixel to pixel. With phases a run is row y of one
  // of the four: [N, H/2+1, W/2+1, phase, C].
  int64_t run_start(int64_t input_channels, int64_t image, int64_t run) const {
    if (!phases) {
      return (image * height * width + run * kRun) * input_channels;
    }
    const int64_t h = height / 2, w = width / 2, phase = run / h, y = run % h + phase / 2;
    return (((image * (h + 1) + y) * (w + 1) + phase % 2) * 4 + phase) * input_channels;
  }
  int64_t run_stride(int64_t input_channels) const {
    return phases ? 4 * input_channels : input_channels;
  }
  Pixels run_of(const Input& input, int64_t image, int64_t run) const {
    return {input.data + run_start(input.channels, image, run) * element_bytes, run_stride(input.channels),
            run_pixels(run), input.channels};
  }

  // Floats of scratch memory for so many channels of an image: moments of every run, then the factors.
  int64_t scratch(int64_t count) const {
    return (2 * runs() + 5) * count;
  }
  Factors factors(const Channels& some) const {
    float* at = some.memory + 2 * runs() * some.count;
    return {at, at + some.count, at + 2 * some.count, at + 3 * some.count, at + 4 * some.count};
  }

  // Calls use(input's index, its first wanted channel, how many, the first one's place among `some`).
  template <typename Use>
  void for_inputs(const Channels& some, Use&& use) const {
    int64_t start = 0;
    for (int i = 0; i < input_count; ++i) {
      const int64_t first = std::max(some.begin, start);
      const int64_t last = std::min(some.begin + some.count, start + inputs[i].channels);
      if (first < last) {
        use(i, first - start, last - first, first - some.begin);
      }
      start += inputs[i].channels;
    }
  }

  void take_moments(const Channels& some, int64_t run) const;
  // Merges the runs' moments and makes the factors.
  void merge_moments(const Channels& some) const;
};

// `name` for messages.
void check_image(const torch::stable::Tensor& x, const torch::stable::Tensor& like, const char* name);

}  // namespace rcdm_fast::cpu
