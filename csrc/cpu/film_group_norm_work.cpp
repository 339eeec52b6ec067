#include "cpu/film_group_norm_work.h"

#include <torch/headeronly/core/ScalarType.h>

#include <cmath>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* parameter(const Tensor& values, int64_t channels, const char* name) {
  RCDM_FAST_CHECK(values.is_cpu() && values.dim() == 1 && values.size(0) == channels && values.is_contiguous() &&
                      values.scalar_type() == ScalarType::Float,
                  "film_group_norm: ", name, " must be float32 [", channels, "], contiguous, on the CPU");
  return static_cast<const float*>(values.const_data_ptr());
}

void set_film(FilmGroupNormWork& work, const std::optional<Tensor>& film, const std::optional<Tensor>& rows) {
  RCDM_FAST_CHECK(film.has_value() == rows.has_value(), "film_group_norm: film and rows go together");
  if (!film) {
    return;
  }
  const bool fits = film->is_cpu() && film->dim() == 2 && film->scalar_type() == ScalarType::Float &&
                    (film->size(1) == work.channels || film->size(1) == 2 * work.channels) && film->stride(1) == 1;
  RCDM_FAST_CHECK(fits, "film_group_norm: film must be float32 [R,", 2 * work.channels, "] or [R,", work.channels,
                  "], dense along its rows, on the CPU");
  RCDM_FAST_CHECK(rows->is_cpu() && rows->dim() == 1 && rows->size(0) == work.n && rows->is_contiguous() &&
                      rows->scalar_type() == ScalarType::Long,
                  "film_group_norm: rows must be int64 [", work.n, "], contiguous, on the CPU");
  work.film = static_cast<const float*>(film->const_data_ptr());
  work.film_stride = film->stride(0);
  work.film_is_added = film->size(1) == work.channels;
  work.rows = static_cast<const int64_t*>(rows->const_data_ptr());
  for (int64_t image = 0; image < work.n; ++image) {
    const int64_t row = work.rows[image];
    RCDM_FAST_CHECK(0 <= row && row < film->size(0), "film_group_norm: row ", row, " of image ", image,
                    " is out of range: film has ", film->size(0), " rows");
  }
}

}  // namespace

void check_image(const Tensor& x, const Tensor& like, const char* name) {
  RCDM_FAST_CHECK(x.is_cpu() && x.dim() == 4 && is_channels_last(x), "film_group_norm: ", name,
                  " must be [N,C,H,W] in channels-last memory without gaps, on the CPU");
  RCDM_FAST_CHECK(x.scalar_type() == like.scalar_type(), "film_group_norm: ", name, " has another dtype than x");
}

FilmGroupNormWork::FilmGroupNormWork(const FilmGroupNormInputs& given)
    : phases(given.phases), resample(given.resample), film(nullptr), film_stride(0), film_is_added(false), rows(nullptr),
      groups(given.groups), eps(given.eps), silu(given.silu) {
  const Tensor& x = given.x;
  const auto* all = choose(&kFilmGroupNormBase, &kFilmGroupNormAvx2, &kFilmGroupNormAvx512, &kFilmGroupNormAvx512Bf16);
  loops = format_of(*all, x.scalar_type(), "film_group_norm");
  check_image(x, x, "x");
  n = x.size(0);
  channels = x.size(1);
  height = x.size(2);
  width = x.size(3);
  if (phases) {
    RCDM_FAST_CHECK(!given.skip && resample == 0, "film_group_norm: phases go with neither skip nor resample");
    RCDM_FAST_CHECK(channels % 4 == 0 && height > 1 && width > 1, "film_group_norm: phases need x [N,4C,H+1,W+1]");
    channels /= 4;
    height = 2 * (height - 1);
    width = 2 * (width - 1);
  }
  inputs[0] = {static_cast<const char*>(x.const_data_ptr()), channels};
  input_count = 1;
  if (given.skip) {
    const Tensor& skip = *given.skip;
    check_image(skip, x, "skip");
    RCDM_FAST_CHECK(skip.size(0) == n && skip.size(2) == height && skip.size(3) == width,
                    "film_group_norm: skip does not fit x");
    inputs[1] = {static_cast<const char*>(skip.const_data_ptr()), skip.size(1)};
    input_count = 2;
    channels += skip.size(1);
  }
  RCDM_FAST_CHECK(groups > 0 && channels > 0 && channels % groups == 0, "film_group_norm: ", channels,
                  " channels do not form ", groups, " groups");
  RCDM_FAST_CHECK(-1 <= resample && resample <= 1, "film_group_norm: resample must be -1, 0 or 1");
  RCDM_FAST_CHECK(resample != -1 || (height % 2 == 0 && width % 2 == 0),
                  "film_group_norm: an odd size cannot be halved");
  element_bytes = static_cast<int64_t>(x.element_size());
  weight = parameter(given.weight, channels, "weight");
  bias = parameter(given.bias, channels, "bias");
  set_film(*this, given.film, given.rows);
}

void FilmGroupNormWork::take_moments(const Channels& some, int64_t run) const {
  float* mean = some.memory + 2 * run * some.count;
  for_inputs(some, [&](int i, int64_t first, int64_t count, int64_t place) {
    Pixels pixels = run_of(inputs[i], some.image, run);
    pixels.data = static_cast<const char*>(pixels.data) + first * element_bytes;
    pixels.channels = count;
    loops->moments(pixels, mean + place, mean + some.count + place);
  });
}

// Merges the runs' moments per channel, then the channels' per group (Chan, Golub and LeVeque 1979), and turns them
// into the factors of every channel. Sums of means are taken relative to the first one: they round less.
void FilmGroupNormWork::merge_moments(const Channels& some) const {
  const int64_t per_group = channels / groups, count_of = some.count;
  const float pixels = static_cast<float>(height * width);
  const float* memory = some.memory;
  const auto [center, scale, shift, inverse, mean_of] = factors(some);
  std::fill(center, shift, 0.0f);
  for (int64_t run = 0; run < runs(); ++run) {
    const float share = static_cast<float>(run_pixels(run)) / pixels;
    const float* mean = memory + 2 * run * count_of;
    for (int64_t c = 0; c < count_of; ++c) {
      center[c] += share * (mean[c] - memory[c]);
    }
  }
  for (int64_t c = 0; c < count_of; ++c) {
    center[c] += memory[c];
    mean_of[c] = center[c];
  }
  for (int64_t run = 0; run < runs(); ++run) {
    const float count = static_cast<float>(run_pixels(run));
    const float* mean = memory + 2 * run * count_of;
    const float* squares = mean + count_of;
    for (int64_t c = 0; c < count_of; ++c) {
      const float difference = mean[c] - center[c];
      scale[c] += squares[c] + count * difference * difference;
    }
  }
  const float* row = film == nullptr ? nullptr : film + rows[some.image] * film_stride + some.begin;
  const float* added = film_is_added ? row : nullptr;
  const float* modulation = film_is_added ? nullptr : row;
  for (int64_t begin = 0; begin < count_of; begin += per_group) {
    const int64_t end = begin + per_group;
    const float first = center[begin] + (added ? added[begin] : 0.0f);
    float mean = 0.0f, squares = 0.0f;
    for (int64_t c = begin; c < end; ++c) {
      mean += center[c] + (added ? added[c] : 0.0f) - first;
    }
    mean = mean / static_cast<float>(per_group) + first;
    for (int64_t c = begin; c < end; ++c) {
      const float difference = center[c] + (added ? added[c] : 0.0f) - mean;
      squares += scale[c] + pixels * difference * difference;
    }
    const float variance = squares / (pixels * static_cast<float>(per_group));
    const float of_group = static_cast<float>(1.0 / std::sqrt(static_cast<double>(variance) + eps));
    for (int64_t c = begin; c < end; ++c) {
      const float gain = modulation ? 1.0f + modulation[c] : 1.0f;
      center[c] = mean - (added ? added[c] : 0.0f);
      scale[c] = of_group * weight[some.begin + c] * gain;
      shift[c] = modulation ? bias[some.begin + c] * gain + modulation[channels + c] : bias[some.begin + c];
      inverse[c] = of_group;
    }
  }
}

}  // namespace rcdm_fast::cpu
