// Included before csrc/binding_cuda.cpp and csrc/cuda/*_host.cpp: their operators are registered for CPU tensors, so
// that the host code runs too, with the kernels that cuda_runtime.h of this folder runs on the CPU.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int32_t) {}
};
}  // namespace torch::stable::accelerator

inline AOTITorchError no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard NoGuard
#define aoti_torch_get_current_cuda_stream no_stream
