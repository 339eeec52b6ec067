// Included before csrc/binding_cuda.cpp and csrc/cuda/*_host.cpp: their operators are registered for CPU tensors, so
// that the host code runs too, with the kernels that cuda_runtime.h of this folder runs on the CPU.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

// The stand-in's current device and streams: a launch on a stream of another device than the current one is an error.
extern "C" {
extern int cuda_on_host_device;
extern int cuda_on_host_streams;
}

namespace torch::stable::accelerator {
class HostGuard {
 public:
  explicit HostGuard(int32_t device) : before_(cuda_on_host_device) {
    cuda_on_host_device = device;
  }
  ~HostGuard() {
    cuda_on_host_device = before_;
  }

 private:
  int before_;
};
}  // namespace torch::stable::accelerator

inline AOTITorchError stream_on_host(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<intptr_t>(cuda_on_host_streams + device));
  return 0;
}

#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard HostGuard
#define aoti_torch_get_current_cuda_stream stream_on_host
