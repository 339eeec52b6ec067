#include "cpu/map_film.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "check.h"
#include "cpu/instruction_set.h"
#include "cpu/layout.h"
#include "cpu/map_film_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // elements that make it worth starting another thread

// A matrix [pixels, places] without its zeros at both ends of a row.
struct Spans {
  std::vector<int64_t> first, count;
  std::vector<float> weights;
  int64_t most = 1;

  Spans(const Tensor& matrix, int64_t pixels, int64_t places, const char* name) : first(pixels), count(pixels) {
    RCDM_FAST_CHECK(matrix.is_cpu() && matrix.dim() == 2 && matrix.size(0) == pixels && matrix.size(1) == places &&
                        matrix.is_contiguous() && matrix.scalar_type() == ScalarType::Float,
                    "map_film: ", name, " must be float32 [", pixels, ",", places, "], contiguous, on the CPU");
    const auto* all = static_cast<const float*>(matrix.const_data_ptr());
    for (int64_t p = 0; p < pixels; ++p) {
      int64_t begin = 0, end = places;
      while (begin < end - 1 && all[p * places + begin] == 0.0f) {
        ++begin;
      }
      while (end > begin + 1 && all[p * places + end - 1] == 0.0f) {
        --end;
      }
      first[p] = begin;
      count[p] = end - begin;
      most = std::max(most, count[p]);
    }
    weights.resize(pixels * most);
    for (int64_t p = 0; p < pixels; ++p) {
      std::copy_n(all + p * places + first[p], count[p], weights.begin() + p * most);
    }
  }
};

}  // namespace

void map_film(const Tensor& x, const Tensor& film, const Tensor& rows, const Tensor& down, const Tensor& across) {
  const auto& loops = *choose(&kMapFilmBase, &kMapFilmAvx2, &kMapFilmAvx512, &kMapFilmAvx512Bf16);
  const auto run = *format_of(loops, x.scalar_type(), "map_film");
  RCDM_FAST_CHECK(x.is_cpu() && x.dim() == 4 && is_channels_last(x),
                  "map_film: x must be [N,C,H,W] in channels-last memory without gaps, on the CPU");
  const int64_t n = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  RCDM_FAST_CHECK(film.is_cpu() && film.dim() == 4 && film.scalar_type() == ScalarType::Float &&
                      film.size(1) == 2 * channels && film.stride(1) == 1 && film.size(2) > 0 &&
                      film.size(3) > 0,
                  "map_film: film must be float32 [R,", 2 * channels, ",h,w], its channels side by side, on the CPU");
  RCDM_FAST_CHECK(rows.is_cpu() && rows.dim() == 1 && rows.size(0) == n && rows.is_contiguous() &&
                      rows.scalar_type() == ScalarType::Long,
                  "map_film: rows must be int64 [", n, "], contiguous, on the CPU");
  const auto* row_of = static_cast<const int64_t*>(rows.const_data_ptr());
  for (int64_t image = 0; image < n; ++image) {
    RCDM_FAST_CHECK(0 <= row_of[image] && row_of[image] < film.size(0), "map_film: row ", row_of[image], " of image ",
                    image, " is out of range: film has ", film.size(0), " rows");
  }
  const int64_t places = film.size(3);
  const Spans lines(down, height, film.size(2), "down"), columns(across, width, places, "across");
  if (x.numel() == 0) {
    return;
  }
  const auto* maps = static_cast<const float*>(film.const_data_ptr());
  auto* data = static_cast<char*>(x.mutable_data_ptr());
  const int64_t of_map = film.stride(0), of_line = film.stride(2), of_place = film.stride(3);
  const int64_t bytes = width * channels * static_cast<int64_t>(x.element_size());
  const Taps taps{columns.first.data(), columns.count.data(), columns.weights.data(), columns.most};
  const int64_t grain = std::max<int64_t>(1, kGrain / (width * channels));
  torch::stable::parallel_for(0, n * height, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> line(2 * channels * places);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t y = i % height;
      const float* weights = lines.weights.data() + y * lines.most;
      for (int64_t place = 0; place < places; ++place) {
        const float* from = maps + row_of[i / height] * of_map + lines.first[y] * of_line + place * of_place;
        float* to = line.data() + 2 * place * channels;
        loops.blend(from, of_line, weights, lines.count[y], 1.0f, to, channels);
        loops.blend(from + channels, of_line, weights, lines.count[y], 0.0f, to + channels, channels);
      }
      run({data + i * bytes, width, channels, line.data(), taps});
    }
  });
}

}  // namespace rcdm_fast::cpu
