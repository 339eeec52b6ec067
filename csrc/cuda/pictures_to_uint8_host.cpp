#include "cuda/pictures_to_uint8.h"

#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/host.h"
#include "cuda/pictures_to_uint8_launch.h"

namespace rcdm_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// empty_like with another dtype: keeps the strides of a dense tensor and orders the others in the same way.
Tensor empty_uint8_like(const Tensor& like) {
  using torch::stable::detail::from;
  const std::optional<ScalarType> dtype = ScalarType::Byte;
  std::array<StableIValue, 6> stack{from(like),         from(dtype),        from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

bool same_order_in_memory(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

}  // namespace

Tensor pictures_to_uint8(const Tensor& pictures) {
  const Format format = format_of(pictures, "pictures_to_uint8");
  Tensor levels = empty_uint8_like(pictures);
  if (pictures.numel() == 0) {
    return levels;
  }
  const OnDevice device(pictures);
  const bool dense = same_order_in_memory(pictures, levels);
  const Tensor source = dense ? pictures : torch::stable::clone(pictures);
  STD_TORCH_CHECK(same_order_in_memory(source, levels), "pictures_to_uint8: a copy of the input is not dense");
  check_launch("pictures_to_uint8",
               rcdm_fast_pictures_to_uint8(source.const_data_ptr(), static_cast<uint8_t*>(levels.mutable_data_ptr()),
                                           pictures.numel(), format, device.stream()));
  return levels;
}

}  // namespace rcdm_fast::cuda
