// GroupNorm with FiLM, SiLU and resampling over channels-last memory; see rcdm_fast/ops/reference.py for what it
// computes and film_group_norm_plan.h for how it is cut. No atomics and no order that depends on timing.

#include "cuda/film_group_norm_write.cuh"
#include "cuda/launch.cuh"

namespace rcdm_fast::cuda {
namespace {

static_assert(kMostShared <= kSharedAtMost);

// Blocks that should run on one multiprocessor at a time: it decides how many registers a thread may have, and a thread
// needs more the more sets of channels it keeps apart.
template <int Size, int Same>
constexpr int kBlocksPerProcessor = Size == Same ? 3 : 2;

// Moments of every group of one slab in one chunk of pixels.
template <typename Element, int Size, int Same>
__global__ void __launch_bounds__(kThreads, (kBlocksPerProcessor<Size, Same>))
    moments_kernel(const __grid_constant__ FilmGroupNormParameters p) {
  RCDM_FAST_DYNAMIC_SHARED(shared);
  auto* sets = reinterpret_cast<float2*>(shared);
  auto* counts = reinterpret_cast<float*>(sets + kThreads * (Size / Same));
  float* reduce = counts + kThreads;

  const Place place(p.plan, blockIdx.x);
  const Film film(p.problem, place.image);
  const int first = place.chunk * p.plan.chunk_pixels;
  const int end = min(first + p.plan.chunk_pixels, p.plan.pixels);
  ThreadMoments<Size, Same> moments;
  gather<Element, Size, Same>(p, place, film, first, end, nullptr, moments);
  join_threads(place, p.plan.per_group, moments, sets, counts, reduce);
  const int t = threadIdx.x;
  if (t < place.groups) {
    const float* groups = reduce + 3 * kThreads;
    const int group = place.first_channel / p.plan.per_group + t;
    p.moments[(place.image * p.plan.chunks + place.chunk) * p.problem.groups + group] =
        make_float2(groups[t], groups[kMostGroups + t]);
  }
}

// Joins the chunks' moments and writes one chunk of one slab. The blocks go backwards: what the kernel before read
// last may still be in the cache.
template <typename Element, int Size, int Resample>
__global__ void __launch_bounds__(kThreads, 3) write_kernel(const __grid_constant__ FilmGroupNormParameters p) {
  RCDM_FAST_DYNAMIC_SHARED(shared);
  float* reduce = reinterpret_cast<float*>(shared);
  float* coefficients = reduce + kReduceFloats;

  const Place place(p.plan, gridDim.x - 1 - blockIdx.x);
  const Film film(p.problem, place.image);
  const float2* moments = p.moments + place.image * p.plan.chunks * p.problem.groups +
                          place.first_channel / p.plan.per_group;
  join_groups(place.groups, p.plan.chunks, reduce, [&](int group, int chunk) {
    const int first = chunk * p.plan.chunk_pixels;
    const int pixels = min(p.plan.chunk_pixels, p.plan.pixels - first);
    const float2 part = moments[static_cast<int64_t>(chunk) * p.problem.groups + group];
    return Moments{static_cast<float>(static_cast<int64_t>(pixels) * p.plan.per_group), part.x, part.y};
  });
  const int first = place.chunk * p.plan.chunk_items;
  const int end = min(first + p.plan.chunk_items, p.plan.items);
  write_slab<Element, Size, Resample>(p, place, film, reduce + 3 * kThreads, coefficients, first, end,
                                      [&](int channel, int) {
                                        return FarColumn<Element, Size>{{p.problem, place.image, channel}};
                                      });
}

// Everything at once for one slab of one image, which stays in shared memory between the two halves.
template <typename Element, int Size, int Same>
__global__ void __launch_bounds__(kThreads, (kBlocksPerProcessor<Size, Same>))
    fused_kernel(const __grid_constant__ FilmGroupNormParameters p) {
  RCDM_FAST_DYNAMIC_SHARED(shared);
  auto* kept = reinterpret_cast<Vector<Element, Size>*>(shared);
  auto* sets = reinterpret_cast<float2*>(shared + p.plan.kept_bytes);
  auto* counts = reinterpret_cast<float*>(sets + kThreads * (Size / Same));
  float* reduce = counts + kThreads;
  float* coefficients = counts + kReduceFloats;

  const Place place(p.plan, blockIdx.x);
  const Film film(p.problem, place.image);
  ThreadMoments<Size, Same> moments;
  gather<Element, Size, Same>(p, place, film, 0, p.plan.pixels, kept, moments);
  join_threads(place, p.plan.per_group, moments, sets, counts, reduce);
  const float* groups = reduce + 3 * kThreads;
  const auto source = [&](int, int column) { return KeptColumn<Element, Size>{kept + column, place.columns}; };
  if (p.problem.resample == 0) {
    write_slab<Element, Size, 0>(p, place, film, groups, coefficients, 0, p.plan.items, source);
  } else if (p.problem.resample == 1) {
    write_slab<Element, Size, 1>(p, place, film, groups, coefficients, 0, p.plan.items, source);
  } else {
    write_slab<Element, Size, -1>(p, place, film, groups, coefficients, 0, p.plan.items, source);
  }
}

template <typename Element, int Size, int Same>
const char* launch_plan(const FilmGroupNormParameters& p, void* stream) {
  const FilmGroupNormPlan& plan = p.plan;
  const Grid grid{p.problem.batch * plan.chunks * plan.slabs, kThreads};
  if (plan.fused) {
    return launch<&fused_kernel<Element, Size, Same>>(grid, plan.shared_bytes, stream, p);
  }
  const char* error = launch<&moments_kernel<Element, Size, Same>>(grid, plan.shared_bytes, stream, p);
  if (error != nullptr) {
    return error;
  }
  switch (p.problem.resample) {
    case 0:
      return launch<&write_kernel<Element, Size, 0>>(grid, plan.shared_bytes_apply, stream, p);
    case 1:
      return launch<&write_kernel<Element, Size, 1>>(grid, plan.shared_bytes_apply, stream, p);
    default:
      return launch<&write_kernel<Element, Size, -1>>(grid, plan.shared_bytes_apply, stream, p);
  }
}

template <typename Element>
const char* launch_format(const FilmGroupNormParameters& p, void* stream) {
  constexpr int kFull = kFullVector<Element>;
  if (p.plan.vector == 1) {
    return launch_plan<Element, 1, 1>(p, stream);
  }
  switch (p.plan.same) {
    case 1:
      return launch_plan<Element, kFull, 1>(p, stream);
    case 4:
      return launch_plan<Element, kFull, 4>(p, stream);
    default:
      return launch_plan<Element, kFull, kFull>(p, stream);
  }
}

}  // namespace
}  // namespace rcdm_fast::cuda

using rcdm_fast::cuda::FilmGroupNormPlan;
using rcdm_fast::cuda::FilmGroupNormProblem;
using rcdm_fast::cuda::Format;

int64_t rcdm_fast_film_group_norm_workspace(const FilmGroupNormProblem* problem) {
  const FilmGroupNormPlan plan = rcdm_fast::cuda::make_plan(*problem);
  return plan.fused ? 0 : 2 * problem->batch * plan.chunks * problem->groups;
}

const char* rcdm_fast_film_group_norm(const FilmGroupNormProblem* problem, float* workspace, void* stream) {
  const rcdm_fast::cuda::FilmGroupNormParameters parameters{*problem, rcdm_fast::cuda::make_plan(*problem),
                                                            reinterpret_cast<float2*>(workspace)};
  switch (problem->format) {
    case Format::kFloat32:
      return rcdm_fast::cuda::launch_format<rcdm_fast::cuda::Float32>(parameters, stream);
    case Format::kBFloat16:
      return rcdm_fast::cuda::launch_format<rcdm_fast::cuda::BFloat16>(parameters, stream);
    default:
      return rcdm_fast::cuda::launch_format<rcdm_fast::cuda::Float16>(parameters, stream);
  }
}
