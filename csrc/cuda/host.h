// What the operators' host code shares: formats, checks, the current stream, errors of launches.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "check.h"
#include "cuda/format.h"

namespace rcdm_fast::cuda {

constexpr int64_t kMostNumbers = int64_t{1} << 30;  // pixels or numbers of one image; indices within it have 32 bits

// Makes a tensor's device the current one and gives the stream that torch uses there.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), device_(tensor.get_device_index()) {}

  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return stream;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
};

inline Format format_of(const torch::stable::Tensor& tensor, const char* what) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Format::kFloat32;
    case ScalarType::BFloat16:
      return Format::kBFloat16;
    case ScalarType::Half:
      return Format::kFloat16;
    default:
      RCDM_FAST_CHECK(false, what, ": expected float32, bfloat16 or float16, got ", tensor.scalar_type());
  }
}

inline bool on_same_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// [N,C,H,W] that lies in memory as [N,H,W,C] without gaps; strides of sizes 0 and 1 do not matter.
inline bool is_channels_last(const torch::stable::Tensor& tensor) {
  if (tensor.dim() != 4) {
    return false;
  }
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (tensor.size(d) > 1 && tensor.stride(d) != expected) {
      return false;
    }
    expected *= tensor.size(d);
  }
  return true;
}

inline void check_launch(const char* operator_name, const char* error) {
  RCDM_FAST_CHECK(error == nullptr, operator_name, ": ", error);
}

}  // namespace rcdm_fast::cuda
