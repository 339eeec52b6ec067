// Films of maps and SiLU in one pass, in place; see rcdm_fast/ops/reference.py.
//
// A block does one line of an image, some of its channels. What the map says of these channels along that line is blended
// from the map's lines into shared memory, once; each pixel then takes its share of the places beside it.

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/map_film_launch.h"
#include "cuda/silu.cuh"

namespace rcdm_fast::cuda {
namespace {

constexpr int kFilmThreads = 128;
constexpr int kMostColumns = 32;  // vectors of channels in a block

// Of a row of weights: from the first to the last that is not zero.
struct Span {
  int first;
  int count;
};

__device__ __forceinline__ Span span_of(const float* weights, int places) {
  int first = 0, last = places - 1;
  while (first < last && weights[first] == 0.0f) {
    ++first;
  }
  while (last > first && weights[last] == 0.0f) {
    --last;
  }
  return {first, last - first + 1};
}

// sums += weight * values, which lie in shared memory, four at a time where there are as many.
template <int Size>
__device__ __forceinline__ void add_weighted(float weight, const float* values, float (&sums)[Size]) {
  if constexpr (Size % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Size; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(values + i);
      sums[i] += weight * four.x;
      sums[i + 1] += weight * four.y;
      sums[i + 2] += weight * four.z;
      sums[i + 3] += weight * four.w;
    }
  } else {
    sums[0] += weight * values[0];
  }
}

struct MapFilmParameters {
  MapFilmProblem problem;
  int columns;  // vectors of channels in a block
  int chunks;   // blocks that share a line
};

template <typename Element, int Size>
__global__ void __launch_bounds__(kFilmThreads) map_film_kernel(const __grid_constant__ MapFilmParameters p) {
  RCDM_FAST_DYNAMIC_SHARED(shared);
  const MapFilmProblem& problem = p.problem;
  const unsigned chunk = blockIdx.x % p.chunks;
  const unsigned line = blockIdx.x / p.chunks;  // of all images
  const int64_t image = line / problem.height;
  const int y = line % problem.height;
  const int block_channels = p.columns * Size;
  const int first_channel = chunk * block_channels;
  const int left = problem.channels - first_channel;
  const int channels = left < block_channels ? left : block_channels;
  auto* blended = reinterpret_cast<float*>(shared);  // [places, scale or shift, block_channels]
  auto* spans = reinterpret_cast<Span*>(blended + 2 * problem.places * block_channels);

  const int64_t row = problem.rows[image];
  const bool there = 0 <= row && row < problem.film_rows;
  const float* weights = problem.down + static_cast<int64_t>(y) * problem.lines;
  const Span lines = span_of(weights, problem.lines);
  const float* film = problem.film + (there ? row : 0) * problem.of_map + lines.first * problem.of_line + first_channel;
  for (int t = threadIdx.x; t < problem.places * 2 * channels; t += kFilmThreads) {
    const int half = t / channels;  // 2 place, or 2 place + 1: shifts
    const int channel = t - half * channels;
    const bool shift = half & 1;
    const float* from = film + half / 2 * problem.of_place + (shift ? problem.channels : 0) + channel;
    float sum = 0.0f;
    for (int k = 0; k < lines.count; ++k) {
      sum += weights[lines.first + k] * from[k * problem.of_line];
    }
    sum += shift ? 0.0f : 1.0f;
    blended[half * block_channels + channel] = there ? sum : __int_as_float(0x7fc00000);
  }
  for (int pixel = threadIdx.x; pixel < problem.width; pixel += kFilmThreads) {
    spans[pixel] = span_of(problem.across + static_cast<int64_t>(pixel) * problem.places, problem.places);
  }
  __syncthreads();

  auto* x = static_cast<typename Element::Storage*>(problem.x) +
            static_cast<int64_t>(line) * problem.width * problem.channels + first_channel;
  const int columns = channels / Size;
  for (int t = threadIdx.x; t < problem.width * columns; t += kFilmThreads) {
    const int pixel = t / columns;
    const int column = (t - pixel * columns) * Size;
    auto* at = x + static_cast<int64_t>(pixel) * problem.channels + column;
    Vector<Element, Size> vector;
    vector.load(at);
    const Span span = spans[pixel];
    const float* share = problem.across + static_cast<int64_t>(pixel) * problem.places + span.first;
    float scale[Size] = {}, shift[Size] = {}, values[Size];
    for (int k = 0; k < span.count; ++k) {
      const float* of_place = blended + 2 * (span.first + k) * block_channels + column;
      add_weighted(share[k], of_place, scale);
      add_weighted(share[k], of_place + block_channels, shift);
    }
    vector.widen(values);
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      values[i] = silu<Element>(values[i] * scale[i] + shift[i]);
    }
    vector.narrow(values);
    vector.store(at);
  }
}

template <typename Element, int Size>
const char* launch_film(const MapFilmProblem& problem, void* stream) {
  const int vectors = problem.channels / Size;
  MapFilmParameters p = {problem, vectors < kMostColumns ? vectors : kMostColumns, 0};
  const auto shared = [&] {
    return sizeof(float) * 2 * problem.places * p.columns * Size + sizeof(Span) * problem.width;
  };
  while (shared() > kSharedByDefault && p.columns > 1) {
    p.columns = (p.columns + 1) / 2;
  }
  p.chunks = (vectors + p.columns - 1) / p.columns;
  const int64_t blocks = problem.batch * problem.height * p.chunks;
  return launch<&map_film_kernel<Element, Size>>({blocks, kFilmThreads}, shared(), stream, p);
}

template <typename Element>
const char* launch_film(const MapFilmProblem& problem, void* stream) {
  constexpr int kSize = kFullVector<Element>;
  const bool aligned = problem.channels % kSize == 0 && reinterpret_cast<uintptr_t>(problem.x) % 16 == 0;
  return aligned ? launch_film<Element, kSize>(problem, stream) : launch_film<Element, 1>(problem, stream);
}

}  // namespace
}  // namespace rcdm_fast::cuda

const char* rcdm_fast_map_film(const rcdm_fast::cuda::MapFilmProblem* problem, void* stream) {
  using namespace rcdm_fast::cuda;
  switch (problem->format) {
    case Format::kFloat32:
      return launch_film<Float32>(*problem, stream);
    case Format::kBFloat16:
      return launch_film<BFloat16>(*problem, stream);
    default:
      return launch_film<Float16>(*problem, stream);
  }
}
