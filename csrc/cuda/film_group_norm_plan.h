// How film_group_norm is cut into blocks. Depends on one image only, never on the batch: equal images give equal
// bits in any batch. Plain arithmetic, without CUDA.
//
// A slab is a run of channels that holds whole groups and whole vectors; a block works on one slab of one image. If
// all pixels of a slab fit into shared memory, one kernel does everything and reads x once ("fused"). Otherwise the
// pixels are cut into chunks: one kernel finds the moments of every chunk, a second one joins them and writes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

#include "cuda/film_group_norm_launch.h"
#include "cuda/threads.h"

namespace rcdm_fast::cuda {

constexpr int kSector = 32;                // bytes that memory moves at least
constexpr int kChunkBytes = 16 * 1024;     // below, starting a block costs more than it saves
constexpr int kBlocksPerImage = 256;     // enough to fill the chip with one image
constexpr int kMostShared = 96 * 1024;     // what a block may have on every chip from sm_80
constexpr int kSharedIfWide = 32 * 1024;   // slabs of 64 bytes must leave room for several blocks
constexpr int kReduceFloats = kThreads + kJoinFloats;  // the threads' counts, and what joins their moments

struct FilmGroupNormPlan {
  int channels;
  int per_group;
  int vector;         // channels that a thread handles together: 16 bytes of them, or 1
  int same;           // of these, neighbors that always belong to the same group
  int slab_channels;  // the last slab may have fewer
  int slabs;
  int chunks;  // 1 when fused
  bool fused;
  int pixels;
  int items;         // what the writing loop counts: output pixels when halving, else input pixels
  int chunk_pixels;
  int chunk_items;
  int64_t kept_bytes;    // of the fused kernel's slab
  int64_t shared_bytes;  // of the fused kernel, or of the kernel for moments
  int64_t shared_bytes_apply;
};

inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

inline int64_t at_most(int64_t value, int64_t limit) {
  return value < limit ? value : limit;
}

// Channels of a slab of about `target_bytes` per pixel, made of `unit` channels each.
inline int slab_channels(int channels, int unit, int vector, int itemsize, int target_bytes, bool whole_sectors) {
  const int unit_bytes = unit * itemsize;
  const int units = channels / unit;
  int taken = static_cast<int>((target_bytes + unit_bytes - 1) / unit_bytes);
  if (whole_sectors && vector > 1 && taken * unit_bytes % kSector != 0) {
    ++taken;  // units are multiples of half a sector
  }
  const int columns = unit / vector;
  if (taken > 1 && taken * columns > kThreads) {
    taken = columns < kThreads ? kThreads / columns : 1;
  }
  return unit * static_cast<int>(at_most(taken, units));
}

inline int64_t tile_channels(const FilmGroupNormPlan& plan) {
  return plan.vector * at_most(plan.slab_channels / plan.vector, kThreads);
}

inline int64_t coefficient_bytes(const FilmGroupNormPlan& plan) {
  return round_up(3 * tile_channels(plan) * static_cast<int64_t>(sizeof(float)), 16);
}

inline int64_t moments_bytes(const FilmGroupNormPlan& plan) {  // a mean and an m2 for every set of every thread
  return int64_t{kThreads} * (plan.vector / plan.same) * 2 * static_cast<int64_t>(sizeof(float));
}

inline int itemsize_of(const FilmGroupNormProblem& problem) {
  return problem.format == Format::kFloat32 ? 4 : 2;
}

// Sizes, and how many channels a thread can handle together.
inline FilmGroupNormPlan begin_plan(const FilmGroupNormProblem& problem) {
  const int full = 16 / itemsize_of(problem);
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };

  FilmGroupNormPlan plan = {};
  plan.channels = problem.x_channels + problem.skip_channels;
  plan.per_group = plan.channels / problem.groups;
  plan.pixels = problem.height * problem.width;
  plan.items = problem.resample == -1 ? plan.pixels / 4 : plan.pixels;
  const bool wide = problem.x_channels % full == 0 && problem.skip_channels % full == 0 && aligned(problem.x) &&
                    aligned(problem.skip) && aligned(problem.out);
  plan.vector = wide ? full : 1;
  return plan;
}

// Cuts slabs into chunks of pixels; one, or enough to fill the chip.
inline void cut_pixels(FilmGroupNormPlan& plan, int itemsize, bool whole) {
  plan.slabs = (plan.channels + plan.slab_channels - 1) / plan.slab_channels;
  int64_t chunks = 1;
  if (!whole) {
    const int64_t slab = int64_t{plan.pixels} * plan.slab_channels * itemsize;
    const int64_t most = kBlocksPerImage / plan.slabs > 1 ? kBlocksPerImage / plan.slabs : 1;
    chunks = at_most((slab + kChunkBytes - 1) / kChunkBytes, most);
  }
  plan.chunk_pixels = static_cast<int>((plan.pixels + chunks - 1) / chunks);
  plan.chunks = (plan.pixels + plan.chunk_pixels - 1) / plan.chunk_pixels;
  plan.chunk_items = (plan.items + plan.chunks - 1) / plan.chunks;
}

inline FilmGroupNormPlan make_plan(const FilmGroupNormProblem& problem) {
  const int itemsize = itemsize_of(problem);
  FilmGroupNormPlan plan = begin_plan(problem);
  plan.same = std::gcd(plan.vector, plan.per_group);
  int unit = plan.per_group / plan.same * plan.vector;
  plan.same = plan.same == 2 ? 1 : plan.same;  // not worth kernels of its own
  if (plan.vector > plan.same && unit / plan.vector > kThreads) {  // several groups, too many columns for one block
    plan.vector = plan.same = 1;
    unit = plan.per_group;
  }

  const int64_t reduce_bytes = kReduceFloats * static_cast<int64_t>(sizeof(float));
  constexpr struct {
    int target_bytes;
    bool whole_sectors;
    int most_shared;
  } kFused[] = {{2 * kSector, true, kSharedIfWide}, {kSector, true, kMostShared}, {kSector, false, kMostShared}};
  for (const auto& choice : kFused) {
    plan.slab_channels =
        slab_channels(plan.channels, unit, plan.vector, itemsize, choice.target_bytes, choice.whole_sectors);
    plan.kept_bytes = round_up(int64_t{plan.pixels} * plan.slab_channels * itemsize, 16);
    plan.shared_bytes = plan.kept_bytes + moments_bytes(plan) + reduce_bytes + coefficient_bytes(plan);
    plan.fused = plan.shared_bytes <= choice.most_shared;
    if (plan.fused) {
      break;
    }
  }
  if (!plan.fused) {
    plan.slab_channels = slab_channels(plan.channels, unit, plan.vector, itemsize, 4 * kSector, true);
    plan.shared_bytes = moments_bytes(plan) + reduce_bytes;
  }
  plan.shared_bytes_apply = reduce_bytes + coefficient_bytes(plan);
  cut_pixels(plan, itemsize, plan.fused);
  return plan;
}

// Where the moments are given, only the writing is cut; slabs need not hold whole groups.
inline FilmGroupNormPlan make_given_plan(const FilmGroupNormProblem& problem) {
  const int itemsize = itemsize_of(problem);
  FilmGroupNormPlan plan = begin_plan(problem);
  plan.slab_channels = slab_channels(plan.channels, plan.vector, plan.vector, itemsize, 4 * kSector, true);
  cut_pixels(plan, itemsize, false);
  return plan;
}

}  // namespace rcdm_fast::cuda
