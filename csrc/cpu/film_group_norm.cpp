#include "cpu/film_group_norm.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cpu/film_group_norm_table.h"
#include "cpu/instruction_set.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Statistics are taken over runs of so many pixels and then merged. The size is fixed, so that a picture's result does
// not depend on its batch or on the number of threads; 64 pixels of 64 channels stay in the first-level cache.
constexpr int64_t kRun = 64;

// Elements that make it worth starting another thread.
constexpr int64_t kGrain = 1 << 14;

struct Input {
  const char* data;
  int64_t channels;
};

// One call: where everything lies. A run is a stretch of pixels for the statistics; a line is what `apply` does at once.
struct Work {
  Input inputs[2];
  int input_count;
  char* out;
  int64_t element_bytes;
  int64_t n, channels, height, width;  // of the picture before resampling
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

  int64_t runs() const {
    return phases ? 2 * height : (height * width + kRun - 1) / kRun;
  }

  int64_t run_pixels(int64_t run) const {
    return phases ? width / 2 : std::min(kRun, height * width - run * kRun);
  }

  int64_t lines() const {
    return resample == 1 ? height : resample == -1 ? height / 2 : runs();
  }

  // The pixels of a run. With phases it is row y of one of the four: [N, H/2+1, W/2+1, phase, C].
  Pixels run_of(const Input& input, int64_t image, int64_t run) const {
    int64_t start = (image * height * width + run * kRun) * input.channels, stride = input.channels;
    if (phases) {
      const int64_t h = height / 2, w = width / 2, phase = run / h, y = run % h + phase / 2;
      start = (((image * (h + 1) + y) * (w + 1) + phase % 2) * 4 + phase) * input.channels;
      stride = 4 * input.channels;
    }
    return {input.data + start * element_bytes, stride, run_pixels(run), input.channels};
  }

  // Floats of scratch memory for one picture: moments of every run, then centre, scale and shift.
  int64_t scratch() const {
    return (2 * runs() + 3) * channels;
  }

  void take_moments(int64_t image, int64_t run, float* memory) const {
    float* mean = memory + 2 * run * channels;
    for (int i = 0; i < input_count; ++i) {
      loops->moments(run_of(inputs[i], image, run), mean, mean + channels);
      mean += inputs[i].channels;
    }
  }

  Affine affine(const float* memory) const {
    const float* centre = memory + 2 * runs() * channels;
    return {centre, centre + channels, centre + 2 * channels};
  }

  void merge_moments(int64_t image, float* memory) const;
  void apply(int64_t image, int64_t line, const float* memory) const;
};

// Merges the runs' moments per channel, then the channels' per group (Chan, Golub and LeVeque 1979), and turns them
// into the factors of every channel. Sums of means are taken relative to the first one: they round less.
void Work::merge_moments(int64_t image, float* memory) const {
  const int64_t per_group = channels / groups;
  const float pixels = static_cast<float>(height * width);
  float* centre = memory + 2 * runs() * channels;
  float* scale = centre + channels;
  float* shift = scale + channels;
  std::fill(centre, shift, 0.0f);
  for (int64_t run = 0; run < runs(); ++run) {
    const float share = static_cast<float>(run_pixels(run)) / pixels;
    const float* mean = memory + 2 * run * channels;
    for (int64_t c = 0; c < channels; ++c) {
      centre[c] += share * (mean[c] - memory[c]);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    centre[c] += memory[c];
  }
  for (int64_t run = 0; run < runs(); ++run) {
    const float count = static_cast<float>(run_pixels(run));
    const float* mean = memory + 2 * run * channels;
    const float* squares = mean + channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float difference = mean[c] - centre[c];
      scale[c] += squares[c] + count * difference * difference;
    }
  }
  const float* row = film == nullptr ? nullptr : film + rows[image] * film_stride;
  const float* added = film_is_added ? row : nullptr;
  const float* modulation = film_is_added ? nullptr : row;
  for (int64_t begin = 0; begin < channels; begin += per_group) {
    const int64_t end = begin + per_group;
    const float first = centre[begin] + (added ? added[begin] : 0.0f);
    float mean = 0.0f, squares = 0.0f;
    for (int64_t c = begin; c < end; ++c) {
      mean += centre[c] + (added ? added[c] : 0.0f) - first;
    }
    mean = mean / static_cast<float>(per_group) + first;
    for (int64_t c = begin; c < end; ++c) {
      const float difference = centre[c] + (added ? added[c] : 0.0f) - mean;
      squares += scale[c] + pixels * difference * difference;
    }
    const float variance = squares / (pixels * static_cast<float>(per_group));
    const float inverse = static_cast<float>(1.0 / std::sqrt(static_cast<double>(variance) + eps));
    for (int64_t c = begin; c < end; ++c) {
      const float gain = modulation ? 1.0f + modulation[c] : 1.0f;
      centre[c] = mean - (added ? added[c] : 0.0f);
      scale[c] = inverse * weight[c] * gain;
      shift[c] = modulation ? bias[c] * gain + modulation[channels + c] : bias[c];
    }
  }
}

void Work::apply(int64_t image, int64_t line, const float* memory) const {
  Affine factors = affine(memory);
  int64_t first = 0;  // channel of the result that the input begins with
  for (int i = 0; i < input_count; ++i) {
    const Input& input = inputs[i];
    Pixels from = run_of(input, image, line);
    Target to{nullptr, channels, 0};
    int64_t start = 0;  // of the result, in pixels
    FilmGroupNormLoops::Apply loop = loops->keep[silu];
    if (phases) {
      const int64_t h = height / 2, phase = line / h;
      start = (image * height + 2 * (line % h) + phase / 2) * width + phase % 2;
      to.stride = 2 * channels;
    } else if (resample == 0) {
      start = image * height * width + line * kRun;
    } else if (resample == 1) {
      from = {input.data + (image * height + line) * width * input.channels * element_bytes, input.channels, width,
              input.channels};
      start = (image * height + line) * 4 * width;
      to.stride = 2 * channels;
      to.row = 2 * width * channels;
      loop = loops->up[silu];
    } else {
      from = {input.data + (image * height + 2 * line) * width * input.channels * element_bytes, 2 * input.channels,
              width / 2, input.channels};
      start = (image * (height / 2) + line) * (width / 2);
      to.row = width * input.channels;
      loop = loops->down[silu];
    }
    to.data = out + (start * channels + first) * element_bytes;
    loop(from, {factors.centre + first, factors.scale + first, factors.shift + first}, to);
    first += input.channels;
  }
}

// A picture stays in one thread's cache when there are enough pictures for all threads; otherwise the threads share it.
void run(const Work& work) {
  const int64_t elements = work.channels * work.height * work.width, scratch = work.scratch();
  const int64_t threads = torch::stable::get_num_threads();
  if (work.n % threads == 0 || work.n >= 4 * threads || work.n * elements <= kGrain) {
    const int64_t grain = std::max<int64_t>(1, kGrain / elements);
    torch::stable::parallel_for(0, work.n, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> memory(scratch);
      for (int64_t image = begin; image < end; ++image) {
        for (int64_t r = 0; r < work.runs(); ++r) {
          work.take_moments(image, r, memory.data());
        }
        work.merge_moments(image, memory.data());
        for (int64_t line = 0; line < work.lines(); ++line) {
          work.apply(image, line, memory.data());
        }
      }
    });
    return;
  }
  std::vector<float> memory(work.n * scratch);
  const int64_t runs = work.runs(), lines = work.lines();
  const auto in_parallel = [&](int64_t per_image, auto&& step) {
    const int64_t grain = std::max<int64_t>(1, kGrain * per_image / elements);
    torch::stable::parallel_for(0, work.n * per_image, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        step(i / per_image, i % per_image, memory.data() + i / per_image * scratch);
      }
    });
  };
  in_parallel(runs, [&](int64_t image, int64_t r, float* at) { work.take_moments(image, r, at); });
  in_parallel(1, [&](int64_t image, int64_t, float* at) { work.merge_moments(image, at); });
  in_parallel(lines, [&](int64_t image, int64_t line, float* at) { work.apply(image, line, at); });
}

bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected && x.numel() > 0) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

const FilmGroupNormLoops::Format* loops_for(ScalarType dtype) {
  const auto* loops =
      choose(&kFilmGroupNormBase, &kFilmGroupNormAvx2, &kFilmGroupNormAvx512, &kFilmGroupNormAvx512Bf16);
  switch (dtype) {
    case ScalarType::Float:
      return &loops->float32;
    case ScalarType::BFloat16:
      return &loops->bfloat16;
    case ScalarType::Half:
      return &loops->float16;
    default:
      STD_TORCH_CHECK(false, "film_group_norm: expected float32, bfloat16 or float16, got ", dtype);
  }
}

void check_picture(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && is_channels_last(x), "film_group_norm: ", name,
                  " must be [N,C,H,W] in channels-last memory without gaps, on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), "film_group_norm: ", name, " has another dtype than x");
}

const float* parameter(const Tensor& values, int64_t channels, const char* name) {
  STD_TORCH_CHECK(values.is_cpu() && values.dim() == 1 && values.size(0) == channels && values.is_contiguous() &&
                      values.scalar_type() == ScalarType::Float,
                  "film_group_norm: ", name, " must be float32 [", channels, "], contiguous, on the CPU");
  return static_cast<const float*>(values.const_data_ptr());
}

void set_film(Work& work, const std::optional<Tensor>& film, const std::optional<Tensor>& rows) {
  STD_TORCH_CHECK(film.has_value() == rows.has_value(), "film_group_norm: film and rows go together");
  if (!film) {
    return;
  }
  const bool fits = film->is_cpu() && film->dim() == 2 && film->scalar_type() == ScalarType::Float &&
                    (film->size(1) == work.channels || film->size(1) == 2 * work.channels) && film->stride(1) == 1;
  STD_TORCH_CHECK(fits, "film_group_norm: film must be float32 [R,", 2 * work.channels, "] or [R,", work.channels,
                  "], dense along its rows, on the CPU");
  STD_TORCH_CHECK(rows->is_cpu() && rows->dim() == 1 && rows->size(0) == work.n && rows->is_contiguous() &&
                      rows->scalar_type() == ScalarType::Long,
                  "film_group_norm: rows must be int64 [", work.n, "], contiguous, on the CPU");
  work.film = static_cast<const float*>(film->const_data_ptr());
  work.film_stride = film->stride(0);
  work.film_is_added = film->size(1) == work.channels;
  work.rows = static_cast<const int64_t*>(rows->const_data_ptr());
  for (int64_t image = 0; image < work.n; ++image) {
    const int64_t row = work.rows[image];
    STD_TORCH_CHECK(0 <= row && row < film->size(0), "film_group_norm: row ", row, " of picture ", image,
                    " is out of range: film has ", film->size(0), " rows");
  }
}

}  // namespace

void film_group_norm_out(const Tensor& out, const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight,
                         const Tensor& bias, const std::optional<Tensor>& film, const std::optional<Tensor>& rows,
                         int64_t groups, double eps, bool silu, int64_t resample, bool phases) {
  Work work{};
  work.loops = loops_for(x.scalar_type());
  check_picture(x, x, "x");
  work.n = x.size(0);
  work.channels = x.size(1);
  work.height = x.size(2);
  work.width = x.size(3);
  work.phases = phases;
  work.resample = resample;
  if (phases) {
    STD_TORCH_CHECK(!skip && resample == 0, "film_group_norm: phases go with neither skip nor resample");
    STD_TORCH_CHECK(work.channels % 4 == 0 && work.height > 1 && work.width > 1,
                    "film_group_norm: phases need x [N,4C,H+1,W+1]");
    work.channels /= 4;
    work.height = 2 * (work.height - 1);
    work.width = 2 * (work.width - 1);
  }
  work.inputs[0] = {static_cast<const char*>(x.const_data_ptr()), work.channels};
  work.input_count = 1;
  if (skip) {
    check_picture(*skip, x, "skip");
    STD_TORCH_CHECK(skip->size(0) == work.n && skip->size(2) == work.height && skip->size(3) == work.width,
                    "film_group_norm: skip does not fit x");
    work.inputs[1] = {static_cast<const char*>(skip->const_data_ptr()), skip->size(1)};
    work.input_count = 2;
    work.channels += skip->size(1);
  }
  STD_TORCH_CHECK(groups > 0 && work.channels > 0 && work.channels % groups == 0, "film_group_norm: ", work.channels,
                  " channels do not form ", groups, " groups");
  STD_TORCH_CHECK(-1 <= resample && resample <= 1, "film_group_norm: resample must be -1, 0 or 1");
  STD_TORCH_CHECK(resample != -1 || (work.height % 2 == 0 && work.width % 2 == 0),
                  "film_group_norm: an odd size cannot be halved");
  const int64_t height = resample == 1 ? 2 * work.height : resample == -1 ? work.height / 2 : work.height;
  const int64_t width = resample == 1 ? 2 * work.width : resample == -1 ? work.width / 2 : work.width;
  check_picture(out, x, "out");
  STD_TORCH_CHECK(out.size(0) == work.n && out.size(1) == work.channels && out.size(2) == height &&
                      out.size(3) == width,
                  "film_group_norm: out must be [", work.n, ",", work.channels, ",", height, ",", width, "]");
  work.out = static_cast<char*>(out.mutable_data_ptr());
  work.element_bytes = static_cast<int64_t>(x.element_size());
  work.weight = parameter(weight, work.channels, "weight");
  work.bias = parameter(bias, work.channels, "bias");
  set_film(work, film, rows);
  work.groups = groups;
  work.eps = eps;
  work.silu = silu;
  if (out.numel() > 0) {
    run(work);
  }
}

Tensor film_group_norm(const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
                       const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups, double eps,
                       bool silu, int64_t resample, bool phases) {
  STD_TORCH_CHECK(x.dim() == 4, "film_group_norm: x must be [N,C,H,W]");
  const int64_t channels = phases ? x.size(1) / 4 : x.size(1) + (skip ? skip->size(1) : 0);
  int64_t height = phases ? 2 * (x.size(2) - 1) : x.size(2), width = phases ? 2 * (x.size(3) - 1) : x.size(3);
  height = resample == 1 ? 2 * height : resample == -1 ? height / 2 : height;
  width = resample == 1 ? 2 * width : resample == -1 ? width / 2 : width;
  STD_TORCH_CHECK(height >= 0 && width >= 0, "film_group_norm: phases need x [N,4C,H+1,W+1]");
  const std::array<int64_t, 4> shape{x.size(0), channels, height, width};
  Tensor out = torch::stable::empty(shape, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  film_group_norm_out(out, x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  return out;
}

}  // namespace rcdm_fast::cpu
