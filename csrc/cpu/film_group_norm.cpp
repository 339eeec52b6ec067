#include "cpu/film_group_norm.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <vector>

#include "check.h"
#include "cpu/film_group_norm_work.h"

namespace rcdm_fast::cpu {
namespace {

using torch::stable::Tensor;

// A line is what `apply` does at once.
struct Call : FilmGroupNormWork {
  using FilmGroupNormWork::FilmGroupNormWork;
  char* out;

  int64_t lines() const {
    return resample == 1 ? height : resample == -1 ? height / 2 : runs();
  }
  void apply(int64_t image, int64_t line, float* memory) const;
};

void Call::apply(int64_t image, int64_t line, float* memory) const {
  const Factors factors = this->factors({image, 0, channels, memory});
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
    loop(from, {factors.center + first, factors.scale + first, factors.shift + first}, to);
    first += input.channels;
  }
}

// An image stays in one thread's cache when there are enough images for all threads; otherwise the threads share it.
void run(const Call& work) {
  const int64_t elements = work.channels * work.height * work.width, scratch = work.scratch(work.channels);
  const int64_t threads = torch::stable::get_num_threads();
  if (work.n % threads == 0 || work.n >= 4 * threads || work.n * elements <= kGrain) {
    const int64_t grain = std::max<int64_t>(1, kGrain / elements);
    torch::stable::parallel_for(0, work.n, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> memory(scratch);
      for (int64_t image = begin; image < end; ++image) {
        for (int64_t r = 0; r < work.runs(); ++r) {
          work.take_moments({image, 0, work.channels, memory.data()}, r);
        }
        work.merge_moments({image, 0, work.channels, memory.data()});
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
  in_parallel(runs, [&](int64_t image, int64_t r, float* at) { work.take_moments({image, 0, work.channels, at}, r); });
  in_parallel(1, [&](int64_t image, int64_t, float* at) { work.merge_moments({image, 0, work.channels, at}); });
  in_parallel(lines, [&](int64_t image, int64_t line, float* at) { work.apply(image, line, at); });
}

}  // namespace

void film_group_norm_out(const Tensor& out, const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight,
                         const Tensor& bias, const std::optional<Tensor>& film, const std::optional<Tensor>& rows,
                         int64_t groups, double eps, bool silu, int64_t resample, bool phases) {
  Call work({x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases});
  const int64_t height = work.out_height(), width = work.out_width();
  check_image(out, x, "out");
  RCDM_FAST_CHECK(out.size(0) == work.n && out.size(1) == work.channels && out.size(2) == height &&
                      out.size(3) == width,
                  "film_group_norm: out must be [", work.n, ",", work.channels, ",", height, ",", width, "]");
  work.out = static_cast<char*>(out.mutable_data_ptr());
  if (out.numel() > 0) {
    run(work);
  }
}

Tensor film_group_norm(const Tensor& x, const std::optional<Tensor>& skip, const Tensor& weight, const Tensor& bias,
                       const std::optional<Tensor>& film, const std::optional<Tensor>& rows, int64_t groups, double eps,
                       bool silu, int64_t resample, bool phases) {
  RCDM_FAST_CHECK(x.dim() == 4, "film_group_norm: x must be [N,C,H,W]");
  const int64_t channels = phases ? x.size(1) / 4 : x.size(1) + (skip ? skip->size(1) : 0);
  int64_t height = phases ? 2 * (x.size(2) - 1) : x.size(2), width = phases ? 2 * (x.size(3) - 1) : x.size(3);
  height = resample == 1 ? 2 * height : resample == -1 ? height / 2 : height;
  width = resample == 1 ? 2 * width : resample == -1 ? width / 2 : width;
  RCDM_FAST_CHECK(height >= 0 && width >= 0, "film_group_norm: phases need x [N,4C,H+1,W+1]");
  const std::array<int64_t, 4> shape{x.size(0), channels, height, width};
  Tensor out = torch::stable::empty(shape, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  film_group_norm_out(out, x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases);
  return out;
}

}  // namespace rcdm_fast::cpu
