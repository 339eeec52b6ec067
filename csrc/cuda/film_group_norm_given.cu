// A norm whose moments are given (rcdm_fast/ops/schema_moments.py): one small kernel joins them, once for every group
// of every image, and leaves three numbers per channel; a second one reads the image, once, and writes. No atomics and
// no order that depends on timing.

#include "cuda/chunks.h"
#include "cuda/film_group_norm_write.cuh"
#include "cuda/launch.cuh"

namespace rcdm_fast::cuda {
namespace {

struct GivenParameters {
  FilmGroupNormParameters norm;
  const float* moments;       // [N,chunks,3,C]
  const float* skip_moments;  // [N,chunks,3,C'], with skip
  float* coefficients;        // [N,3,C+C']: center, a, b; y = (x - center) a + b
  int chunks;
};

// Where the moments of a channel of an image are: `at` gives one of the three, of one chunk.
struct GivenChannel {
  const float* base;
  int64_t channels;

  __device__ __forceinline__ GivenChannel(const GivenParameters& p, int64_t image, int channel) {
    const bool of_skip = channel >= p.norm.problem.x_channels;
    channels = of_skip ? p.norm.problem.skip_channels : p.norm.problem.x_channels;
    base = (of_skip ? p.skip_moments : p.moments) + image * p.chunks * kMomentsOfChannel * channels +
           (of_skip ? channel - p.norm.problem.x_channels : channel);
  }

  __device__ __forceinline__ float at(int chunk, int which) const {
    return base[(static_cast<int64_t>(chunk) * kMomentsOfChannel + which) * channels];
  }
};

// A block for every group of every image. Means are distances from what the first pivot of the group's first channel
// becomes when its number is added: neither a large mean nor large numbers that are added cost digits.
__global__ void __launch_bounds__(kThreads) coefficients_kernel(const __grid_constant__ GivenParameters p) {
  RCDM_FAST_DYNAMIC_SHARED(shared);
  float* parts = reinterpret_cast<float*>(shared);  // [3][kThreads]: count, mean, m2
  float* reduce = parts + 3 * kThreads;

  const FilmGroupNormProblem& problem = p.norm.problem;
  const int per_group = p.norm.plan.per_group;
  const int64_t image = blockIdx.x / problem.groups;
  const int first_channel = blockIdx.x % problem.groups * per_group;
  const Film film(problem, image);
  const Added add(problem, film, p.norm.plan.channels);
  const float pivot = GivenChannel(p, image, first_channel).at(0, 2);
  const float added = add(first_channel);

  const int t = threadIdx.x;
  const int total = p.chunks * per_group;
  const auto part = [&](int i) {
    const int chunk = i / per_group;
    const int channel = first_channel + (i - chunk * per_group);
    const GivenChannel given(p, image, channel);
    const float distance = (given.at(chunk, 2) - pivot) + (add(channel) - added) + given.at(chunk, 0);
    return Moments{static_cast<float>(kChunk), distance, given.at(chunk, 1)};
  };
  if (t < total) {
    const Moments mine = join(part, t, total, kThreads);
    parts[t] = mine.count;
    parts[kThreads + t] = mine.mean;
    parts[2 * kThreads + t] = mine.m2;
  }
  __syncthreads();
  join_groups(1, min(total, kThreads), reduce, [&](int, int i) {
    return Moments{parts[i], parts[kThreads + i], parts[2 * kThreads + i]};
  });
  const float drift = reduce[3 * kThreads];
  const float numbers = static_cast<float>(static_cast<int64_t>(kChunk) * total);
  const float variance = reduce[3 * kThreads + kMostGroups] / numbers;

  const int64_t channels = p.norm.plan.channels;
  float* coefficients = p.coefficients + image * 3 * channels;
  for (int channel = first_channel + t; channel < first_channel + per_group; channel += kThreads) {
    const Scaling scaling(p.norm, film, channel, variance);
    // The center is pivot + apart, rounded; b takes what rounding lost.
    const float apart = drift + (added - add(channel));
    const float center = pivot + apart;
    const float taken = center - pivot;
    const float lost = (pivot - (center - taken)) + (apart - taken);
    coefficients[channel] = center;
    coefficients[channels + channel] = scaling.a;
    coefficients[2 * channels + channel] = scaling.b - lost * scaling.a;
  }
}

// A column of the image: neither phases nor moments here.
template <typename Element, int Size>
struct WholeColumn {
  const typename Element::Storage* base;
  int64_t pitch;

  __device__ __forceinline__ WholeColumn(const FilmGroupNormProblem& problem, int64_t image, int channel) {
    const bool of_skip = channel >= problem.x_channels;
    pitch = of_skip ? problem.skip_channels : problem.x_channels;
    base = static_cast<const typename Element::Storage*>(of_skip ? problem.skip : problem.x) +
           image * problem.height * problem.width * pitch + (of_skip ? channel - problem.x_channels : channel);
  }

  __device__ __forceinline__ void load(Vector<Element, Size>& vector, int pixel) const {
    vector.load(base + pixel * pitch);
  }
};

// Writes one chunk of one slab. The blocks go backwards: what the kernel before wrote last may still be in the cache.
template <typename Element, int Size, int Resample>
__global__ void __launch_bounds__(kThreads, 3) write_given_kernel(const __grid_constant__ GivenParameters p) {
  const Place place(p.norm.plan, gridDim.x - 1 - blockIdx.x);
  if (!place.has(0)) {
    return;
  }
  const int64_t channels = p.norm.plan.channels;
  const int channel = place.first_channel + place.column * Size;
  const float* coefficients = p.coefficients + place.image * 3 * channels + channel;
  Transform<Element, Size> transform;
  transform.with_silu = p.norm.problem.silu;
  read_floats(coefficients, transform.mean);
  read_floats(coefficients + channels, transform.a);
  read_floats(coefficients + 2 * channels, transform.b);
  const int first = place.chunk * p.norm.plan.chunk_items;
  const int end = min(first + p.norm.plan.chunk_items, p.norm.plan.items);
  const WholeColumn<Element, Size> source(p.norm.problem, place.image, channel);
  write_column<Element, Size, Resample>(p.norm, place, channel, source, transform, first, end);
}

template <typename Element, int Size>
const char* launch_plan(const GivenParameters& p, void* stream) {
  const FilmGroupNormProblem& problem = p.norm.problem;
  const size_t shared_bytes = (3 * kThreads + kJoinFloats) * sizeof(float);
  const char* error =
      launch<&coefficients_kernel>({problem.batch * problem.groups, kThreads}, shared_bytes, stream, p);
  if (error != nullptr) {
    return error;
  }
  const Grid grid{problem.batch * p.norm.plan.chunks * p.norm.plan.slabs, kThreads};
  switch (problem.resample) {
    case 0:
      return launch<&write_given_kernel<Element, Size, 0>>(grid, 0, stream, p);
    case 1:
      return launch<&write_given_kernel<Element, Size, 1>>(grid, 0, stream, p);
    default:
      return launch<&write_given_kernel<Element, Size, -1>>(grid, 0, stream, p);
  }
}

template <typename Element>
const char* launch_format(const GivenParameters& p, void* stream) {
  return p.norm.plan.vector == 1 ? launch_plan<Element, 1>(p, stream)
                                 : launch_plan<Element, kFullVector<Element>>(p, stream);
}

}  // namespace
}  // namespace rcdm_fast::cuda

const char* rcdm_fast_film_group_norm_given(const rcdm_fast::cuda::FilmGroupNormProblem* problem,
                                            const rcdm_fast::cuda::GivenMoments* given, void* stream) {
  using namespace rcdm_fast::cuda;
  const GivenParameters parameters{{*problem, make_given_plan(*problem), nullptr},
                                   given->of_x,
                                   given->of_skip,
                                   given->coefficients,
                                   static_cast<int>(chunks_of(problem->height, problem->width))};
  switch (problem->format) {
    case Format::kFloat32:
      return launch_format<Float32>(parameters, stream);
    case Format::kBFloat16:
      return launch_format<BFloat16>(parameters, stream);
    default:
      return launch_format<Float16>(parameters, stream);
  }
}
