// One update of a linear solver in one pass; see rcdm_fast/ops/reference.py.

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/solver_step_launch.h"

namespace rcdm_fast::cuda {
namespace {

constexpr int kStepThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kMostRows = 65535;  // of a grid; further images are done by the same blocks

template <int Size>
using Numbers = Vector<Float32, Size>;

// A thread does Size neighbors of a row in one channel. The warps of a block take the channels of the same pixels one
// after another: in a channels-last output these lie side by side and are read from memory once.
template <typename Element, int Size>
__global__ void __launch_bounds__(kStepThreads) solver_step_kernel(const __grid_constant__ SolverStepProblem p) {
  const unsigned pieces = static_cast<unsigned>(p.height) * p.width / Size;
  const unsigned warp = blockIdx.x * (kStepThreads / kWarp) + threadIdx.x / kWarp;
  const unsigned channel = warp % p.channels;
  const unsigned piece = warp / p.channels * kWarp + threadIdx.x % kWarp;
  if (piece >= pieces) {
    return;
  }
  const unsigned pixel = piece * Size;
  const unsigned row = pixel / p.width;
  const unsigned column = pixel - row * p.width;
  const int64_t plane = static_cast<int64_t>(p.height) * p.width;
  const auto* output = static_cast<const typename Element::Storage*>(p.output) + channel * p.strides[1] +
                       row * p.strides[2] + column * p.strides[3];
  for (int64_t image = blockIdx.y; image < p.batch; image += gridDim.y) {
    const int64_t index = (image * p.channels + channel) * plane + pixel;
    Numbers<Size> x;
    Numbers<Size> terms[kMostTerms];
    typename Element::Storage outputs[Size];
    x.load(p.x + index);
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      outputs[i] = output[image * p.strides[0] + i * p.strides[3]];
    }
#pragma unroll
    for (int k = 0; k < kMostTerms; ++k) {
      if (k < p.term_count) {
        terms[k].load(p.terms[k] + index);
      }
    }
    float from_x[Size];
    float x0[Size];
    float following[Size];
    x.widen(from_x);
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      const float free = p.x_to_x0 * from_x[i] + p.output_to_x0 * Element::widen(outputs[i]);
      const float above = free < -p.bound ? -p.bound : free;  // written so that NaN stays NaN
      x0[i] = above > p.bound ? p.bound : above;
      following[i] = p.x0_to_next * x0[i] + p.x_to_next * from_x[i];
    }
#pragma unroll
    for (int k = 0; k < kMostTerms; ++k) {
      if (k < p.term_count) {
        float term[Size];
        terms[k].widen(term);
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          following[i] += p.weights[k] * term[i];
        }
      }
    }
    Numbers<Size> result;
    result.narrow(x0);
    result.store(p.x0 + index);
    result.narrow(following);
    result.store(p.following + index);
  }
}

template <typename Element, int Size>
const char* launch_step(const SolverStepProblem& p, void* stream) {
  const int64_t pieces = static_cast<int64_t>(p.height) * p.width / Size;
  const int64_t warps = (pieces + kWarp - 1) / kWarp * p.channels;
  const int64_t blocks = (warps * kWarp + kStepThreads - 1) / kStepThreads;
  const auto rows = static_cast<unsigned>(p.batch < kMostRows ? p.batch : kMostRows);
  return launch<&solver_step_kernel<Element, Size>>({blocks, kStepThreads, rows}, 0, stream, p);
}

template <typename Element>
const char* launch_step(const SolverStepProblem& p, void* stream) {
  bool aligned = p.width % 4 == 0;
  const auto check = [&](const void* pointer) { aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  check(p.x);
  check(p.following);
  check(p.x0);
  for (int k = 0; k < p.term_count; ++k) {
    check(p.terms[k]);
  }
  return aligned ? launch_step<Element, 4>(p, stream) : launch_step<Element, 1>(p, stream);
}

}  // namespace
}  // namespace rcdm_fast::cuda

const char* rcdm_fast_solver_step(const rcdm_fast::cuda::SolverStepProblem* problem, void* stream) {
  using namespace rcdm_fast::cuda;
  switch (problem->format) {
    case Format::kFloat32:
      return launch_step<Float32>(*problem, stream);
    case Format::kBFloat16:
      return launch_step<BFloat16>(*problem, stream);
    default:
      return launch_step<Float16>(*problem, stream);
  }
}
