// What ends a residual block: bias and residual added to a convolution's result in place, and the moments of what was
// written, or of an image as it is; see rcdm_fast/ops/reference.py and reference_moments.py.
//
// A block does a run of pixels of one image, some of its channels, each thread a few pixels of a vector of channels,
// which stay in its registers. Where moments are asked for, the run is one of their chunks: a thread takes those of its
// pixels by two passes over them, and the block joins these. How an image is cut depends on its size alone.

#include "cuda/chunks.h"
#include "cuda/elements.cuh"
#include "cuda/join_groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/residual_launch.h"

namespace rcdm_fast::cuda {
namespace {

constexpr int kNothing = 2;         // is added; beside the three ways of resampling
constexpr int kHeld = 4;            // pixels that a thread holds at most
constexpr int kColumns = 8;         // vectors of channels in a block at most: 128 bytes
constexpr int kPadding = 8;         // numbers between two lanes' moments: then lanes lie in different banks
constexpr int kEnoughBlocks = 256;  // for one image

static_assert(kHeld * kThreads / kColumns == kChunk);
static_assert(kColumns * kFullVector<BFloat16> <= kMostGroups);

struct ResidualParameters {
  ResidualProblem problem;
  int columns;  // vectors of channels of a pixel
  int tile;     // of these, in a block
  int slabs;    // blocks that share a run of pixels
  int lanes;    // pixels that a block does at a time
  int pixels;   // of an image
  int run;      // pixels of a block: lanes, or up to kHeld times as many
  int runs;
};

// What is added to a vector of a pixel: one of the residual, or the mean of four.
template <typename Element, int Size, int Add>
struct Residual {
  using Storage = typename Element::Storage;
  static constexpr int kReads = Add == -1 ? 4 : 1;
  Vector<Element, Size> read[kReads];

  // `from`: the thread's channels of the image's first pixel; `width`: of the image that it is added to.
  __device__ __forceinline__ void load(const Storage* from, int pixel, int width, int64_t channels) {
    if constexpr (Add == 0) {
      read[0].load(from + pixel * channels);
      return;
    }
    const int y = pixel / width;
    const int x = pixel - y * width;
    if constexpr (Add == 1) {
      read[0].load(from + (y / 2 * (width / 2) + x / 2) * channels);
    } else if constexpr (Add == -1) {
      const Storage* corner = from + (int64_t{4} * y * width + 2 * x) * channels;
      const Storage* below = corner + int64_t{2} * width * channels;
      read[0].load(corner);
      read[1].load(corner + channels);
      read[2].load(below);
      read[3].load(below + channels);
    }
  }

  __device__ __forceinline__ void widen(float (&values)[Size]) const {
    read[0].widen(values);
    if constexpr (Add == -1) {
      float other[Size];
#pragma unroll
      for (int k = 1; k < kReads; ++k) {
        read[k].widen(other);
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          values[i] += other[i];
        }
      }
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        values[i] *= 0.25f;
      }
    }
  }
};

// Where a block and a thread are.
struct Spot {
  int64_t image;
  int run;
  int first_column;  // of the block
  int columns;
  int lane;
  int column;  // of the thread, within the block
  int first;   // pixel of the thread
  int end;     // of the block's pixels
  bool works;

  __device__ __forceinline__ explicit Spot(const ResidualParameters& p) {
    const unsigned slab = blockIdx.x % p.slabs;
    const unsigned rest = blockIdx.x / p.slabs;
    run = rest % p.runs;
    image = rest / p.runs;
    first_column = slab * p.tile;
    columns = min(p.tile, p.columns - first_column);
    lane = threadIdx.x / p.tile;
    column = threadIdx.x % p.tile;
    first = run * p.run + lane;
    end = min(run * p.run + p.run, p.pixels);
    works = lane < p.lanes && column < columns && first < end;
  }
};

// Reads the thread's pixels, adds and writes. `held` keeps what was written, or what was read where nothing is added.
template <typename Element, int Size, int Add>
__device__ __forceinline__ void add_and_hold(const ResidualParameters& p, const Spot& spot,
                                             Vector<Element, Size> (&held)[kHeld]) {
  using Storage = typename Element::Storage;
  constexpr int kRound = Add == -1 ? 1 : kHeld;  // pixels that are read at once
  const int64_t channels = p.problem.channels;
  const int channel = (spot.first_column + spot.column) * Size;
  auto* out = static_cast<Storage*>(p.problem.out) + spot.image * p.pixels * channels + channel;
  const int64_t pixels_added = Add == 1 ? p.pixels / 4 : Add == -1 ? int64_t{4} * p.pixels : p.pixels;
  const auto* from = static_cast<const Storage*>(p.problem.add) + spot.image * pixels_added * channels + channel;
  float bias[Size];
  if constexpr (Add != kNothing) {
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      bias[i] = p.problem.bias[channel + i];
    }
  }
#pragma unroll
  for (int start = 0; start < kHeld; start += kRound) {
    Residual<Element, Size, Add> residual[kRound];
#pragma unroll
    for (int j = 0; j < kRound; ++j) {
      const int wanted = spot.first + (start + j) * p.lanes;
      const int pixel = wanted < spot.end ? wanted : spot.first;
      held[start + j].load(out + pixel * channels);
      if constexpr (Add != kNothing) {
        residual[j].load(from, pixel, p.problem.width, channels);
      }
    }
    if constexpr (Add != kNothing) {
#pragma unroll
      for (int j = 0; j < kRound; ++j) {
        const int wanted = spot.first + (start + j) * p.lanes;
        float values[Size], added[Size];
        held[start + j].widen(values);
        residual[j].widen(added);
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          values[i] = values[i] + bias[i] + added[i];
        }
        held[start + j].narrow(values);
        if (wanted < spot.end) {
          held[start + j].store(out + wanted * channels);
        }
      }
    }
  }
}

// Moments of the block's channels in its chunk. Every thread of the block must come here.
template <typename Element, int Size>
__device__ __forceinline__ void take_moments(const ResidualParameters& p, const Spot& spot,
                                             const Vector<Element, Size> (&held)[kHeld], float* shared) {
  const int pitch = p.tile * Size + kPadding;  // from lane to lane
  float* pivots = shared;
  float* reduce = pivots + kMostGroups;
  float* means = reduce + kJoinFloats;
  float* squares = means + p.lanes * pitch;
  const int mine = spot.column * Size;
  if (spot.works && spot.lane == 0) {
    float pivot[Size];
    held[0].widen(pivot);
    write_floats(pivots + mine, pivot);
  }
  __syncthreads();
  const int count = kChunk / p.lanes;  // pixels of every thread
  if (spot.works) {
    float pivot[Size], values[kHeld][Size];
    read_floats(pivots + mine, pivot);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      held[j].widen(values[j]);
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        values[j][i] -= pivot[i];
      }
    }
    ThreadMoments<Size, 1> moments;
    moments.add(values, count);
    write_floats(means + spot.lane * pitch + mine, moments.mean);
    write_floats(squares + spot.lane * pitch + mine, moments.m2);
  }
  __syncthreads();
  const int channels = spot.columns * Size;
  join_groups(channels, p.lanes, reduce, [&](int channel, int lane) {
    const int at = lane * pitch + channel;
    return Moments{static_cast<float>(count), means[at], squares[at]};
  });
  const int t = threadIdx.x;
  if (t < channels) {
    const int64_t pitch_out = p.problem.channels;
    float* to = p.problem.moments + (spot.image * p.runs + spot.run) * kMomentsOfChannel * pitch_out +
                spot.first_column * Size + t;
    to[0] = reduce[3 * kThreads + t];
    to[pitch_out] = reduce[3 * kThreads + kMostGroups + t];
    to[2 * pitch_out] = pivots[t];
  }
}

template <typename Element, int Size, int Add, bool Take>
__global__ void __launch_bounds__(kThreads, 3) residual_kernel(const __grid_constant__ ResidualParameters p) {
  const Spot spot(p);
  Vector<Element, Size> held[kHeld];
  if (spot.works) {
    add_and_hold<Element, Size, Add>(p, spot, held);
  }
  if constexpr (Take) {
    RCDM_FAST_DYNAMIC_SHARED(shared);
    take_moments<Element, Size>(p, spot, held, reinterpret_cast<float*>(shared));
  }
}

template <typename Element, int Size, bool Take>
const char* launch_cut(const ResidualParameters& p, void* stream) {
  const Grid grid{p.problem.batch * p.runs * p.slabs, kThreads};
  const int numbers = kMostGroups + kJoinFloats + 2 * p.lanes * (p.tile * Size + kPadding);
  const size_t shared_bytes = Take ? numbers * sizeof(float) : 0;
  if constexpr (Take) {
    if (p.problem.add == nullptr) {
      return launch<&residual_kernel<Element, Size, kNothing, true>>(grid, shared_bytes, stream, p);
    }
  }
  switch (p.problem.resample) {
    case 0:
      return launch<&residual_kernel<Element, Size, 0, Take>>(grid, shared_bytes, stream, p);
    case 1:
      return launch<&residual_kernel<Element, Size, 1, Take>>(grid, shared_bytes, stream, p);
    default:
      return launch<&residual_kernel<Element, Size, -1, Take>>(grid, shared_bytes, stream, p);
  }
}

template <typename Element, int Size>
const char* launch_vectors(const ResidualProblem& problem, void* stream) {
  const bool take = problem.moments != nullptr;
  ResidualParameters p = {};
  p.problem = problem;
  p.pixels = problem.height * problem.width;
  p.columns = problem.channels / Size;
  p.slabs = (p.columns + kColumns - 1) / kColumns;
  p.tile = (p.columns + p.slabs - 1) / p.slabs;
  p.lanes = kChunk;
  while (p.lanes * p.tile > kThreads) {
    p.lanes /= 2;
  }
  p.run = kChunk;
  const auto runs = [&] { return (p.pixels + p.run - 1) / p.run; };
  while (!take && p.run > p.lanes && int64_t{p.slabs} * runs() < kEnoughBlocks) {
    p.run /= 2;
  }
  p.runs = runs();
  return take ? launch_cut<Element, Size, true>(p, stream) : launch_cut<Element, Size, false>(p, stream);
}

template <typename Element>
const char* launch_format(const ResidualProblem& problem, void* stream) {
  constexpr int kSize = kFullVector<Element>;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const bool wide = problem.channels % kSize == 0 && aligned(problem.out) && aligned(problem.add);
  return wide ? launch_vectors<Element, kSize>(problem, stream) : launch_vectors<Element, 1>(problem, stream);
}

}  // namespace
}  // namespace rcdm_fast::cuda

const char* rcdm_fast_residual(const rcdm_fast::cuda::ResidualProblem* problem, void* stream) {
  using namespace rcdm_fast::cuda;
  switch (problem->format) {
    case Format::kFloat32:
      return launch_format<Float32>(*problem, stream);
    case Format::kBFloat16:
      return launch_format<BFloat16>(*problem, stream);
    default:
      return launch_format<Float16>(*problem, stream);
  }
}
