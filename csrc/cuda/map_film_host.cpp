#include "cuda/map_film.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/host.h"
#include "cuda/map_film_launch.h"

namespace rcdm_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* weights_of(const Tensor& matrix, int64_t pixels, int64_t places, const Tensor& like, const char* name) {
  RCDM_FAST_CHECK(matrix.dim() == 2 && matrix.size(0) == pixels && matrix.size(1) == places && matrix.is_contiguous() &&
                      matrix.scalar_type() == ScalarType::Float && on_same_device(matrix, like),
                  "map_film: ", name, " must be float32 [", pixels, ",", places, "], contiguous, on the device of x");
  return static_cast<const float*>(matrix.const_data_ptr());
}

}  // namespace

void map_film(const Tensor& x, const Tensor& film, const Tensor& rows, const Tensor& down, const Tensor& across) {
  RCDM_FAST_CHECK(is_channels_last(x), "map_film: x must be [N,C,H,W] in channels-last memory without gaps");
  MapFilmProblem problem = {};
  problem.format = format_of(x, "map_film's x");
  const int64_t channels = x.size(1);
  RCDM_FAST_CHECK(film.dim() == 4 && film.scalar_type() == ScalarType::Float && film.size(1) == 2 * channels &&
                      film.stride(1) == 1 && film.size(2) > 0 && film.size(3) > 0 && on_same_device(film, x),
                  "map_film: film must be float32 [R,", 2 * channels,
                  ",h,w], its channels side by side, on the device of x");
  RCDM_FAST_CHECK(rows.dim() == 1 && rows.size(0) == x.size(0) && rows.is_contiguous() &&
                      rows.scalar_type() == ScalarType::Long && on_same_device(rows, x),
                  "map_film: rows must be int64 [", x.size(0), "], contiguous, on the device of x");
  problem.down = weights_of(down, x.size(2), film.size(2), x, "down");
  problem.across = weights_of(across, x.size(3), film.size(3), x, "across");
  if (x.numel() == 0) {
    return;
  }
  RCDM_FAST_CHECK(film.size(0) > 0, "map_film: film has no rows");
  RCDM_FAST_CHECK(x.numel() / x.size(0) <= kMostNumbers && film.numel() / film.size(0) <= kMostNumbers,
                  "map_film: an image or a map is too large");
  problem.x = x.mutable_data_ptr();
  problem.film = static_cast<const float*>(film.const_data_ptr());
  problem.rows = static_cast<const int64_t*>(rows.const_data_ptr());
  problem.batch = x.size(0);
  problem.film_rows = film.size(0);
  problem.of_map = film.stride(0);
  problem.of_line = film.stride(2);
  problem.of_place = film.stride(3);
  problem.channels = static_cast<int>(channels);
  problem.height = static_cast<int>(x.size(2));
  problem.width = static_cast<int>(x.size(3));
  problem.lines = static_cast<int>(film.size(2));
  problem.places = static_cast<int>(film.size(3));
  const OnDevice device(x);
  check_launch("map_film", rcdm_fast_map_film(&problem, device.stream()));
}

}  // namespace rcdm_fast::cuda
