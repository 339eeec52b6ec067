#include "cpu/pictures_to_uint8.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>

#include "cpu/instruction_set.h"
#include "cpu/pictures_to_uint8_table.h"

namespace rcdm_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 15;  // elements per thread at least; below, starting a thread costs more than it saves

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

PicturesToUint8Loops::Loop loop_for(ScalarType dtype) {
  const auto* loops = choose(&kPicturesToUint8Base, &kPicturesToUint8Avx2, &kPicturesToUint8Avx512);
  switch (dtype) {
    case ScalarType::Float:
      return loops->float32;
    case ScalarType::BFloat16:
      return loops->bfloat16;
    case ScalarType::Half:
      return loops->float16;
    default:
      STD_TORCH_CHECK(false, "pictures_to_uint8: expected float32, bfloat16 or float16 pictures, got ", dtype);
  }
}

}  // namespace

Tensor pictures_to_uint8(const Tensor& pictures) {
  const auto loop = loop_for(pictures.scalar_type());
  Tensor levels = empty_uint8_like(pictures);
  if (pictures.numel() == 0) {
    return levels;
  }
  const bool dense = same_order_in_memory(pictures, levels);
  const Tensor source = dense ? pictures : torch::stable::clone(pictures);
  STD_TORCH_CHECK(same_order_in_memory(source, levels), "pictures_to_uint8: a copy of the input is not dense");

  const void* from = source.const_data_ptr();
  auto* to = static_cast<uint8_t*>(levels.mutable_data_ptr());
  torch::stable::parallel_for(0, pictures.numel(), kGrain, [&](int64_t begin, int64_t end) {
    loop(from, to, begin, end);
  });
  return levels;
}

}  // namespace rcdm_fast::cpu
