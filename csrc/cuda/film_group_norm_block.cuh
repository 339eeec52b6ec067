// What a block of film_group_norm does: find its place, gather moments, join them, normalize and write.

#pragma once

#include "cuda/elements.cuh"
#include "cuda/film_group_norm_plan.h"
#include "cuda/join_groups.cuh"

namespace rcdm_fast::cuda {

struct FilmGroupNormParameters {
  FilmGroupNormProblem problem;
  FilmGroupNormPlan plan;
  float2* moments;  // [N, chunks, groups]: mean and m2 of every chunk
};

// A block's image, chunk and slab, and its threads as `lanes` rows of `tile` columns; a column is one vector of
// channels. A slab wider than the block is one group, and its columns are done tile by tile.
struct Place {
  int64_t image;
  int chunk;
  int first_channel;
  int columns;
  int groups;
  int tile;
  int lanes;
  int lane;
  int column;  // within a tile

  __device__ __forceinline__ Place(const FilmGroupNormPlan& plan, unsigned block) {
    const unsigned slab = block % plan.slabs;
    const unsigned rest = block / plan.slabs;
    chunk = rest % plan.chunks;
    image = rest / plan.chunks;
    first_channel = slab * plan.slab_channels;
    const int left = plan.channels - first_channel;
    const int channels = left < plan.slab_channels ? left : plan.slab_channels;
    columns = channels / plan.vector;
    groups = channels / plan.per_group;
    tile = columns < kThreads ? columns : kThreads;
    lanes = kThreads / tile;
    lane = threadIdx.x / tile;
    column = threadIdx.x % tile;
  }

  // Whether this thread has a column in the tile that begins at `start`.
  __device__ __forceinline__ bool has(int start) const {
    return lane < lanes && start + column < columns;
  }
};

// Row of the film table for an image. `row` is nullptr without film, or when the image's row is out of range.
struct Film {
  const float* row;
  bool out_of_range;

  __device__ __forceinline__ Film(const FilmGroupNormProblem& problem, int64_t image) {
    row = nullptr;
    out_of_range = false;
    if (problem.film != nullptr) {
      const int64_t index = problem.rows[image];
      out_of_range = index < 0 || index >= problem.film_rows;
      row = out_of_range ? nullptr : problem.film + index * problem.film_stride;
    }
  }
};

// What is added to a channel of an image before the norm: `before`, a row of film of one number per channel, or both.
struct Added {
  const float* before;
  const float* film;

  __device__ __forceinline__ Added(const FilmGroupNormProblem& problem, const Film& row, int channels) {
    before = problem.before;
    film = problem.film_width == channels ? row.row : nullptr;
  }

  __device__ __forceinline__ float operator()(int channel) const {
    const float of_film = film != nullptr ? film[channel] : 0.0f;
    return before != nullptr ? before[channel] + of_film : of_film;
  }
};

// A thread's column in memory: where its channels of a pixel lie.
template <typename Element>
struct Column {
  using Storage = typename Element::Storage;
  const Storage* base;
  int64_t pitch;  // numbers from pixel to pixel
  unsigned width;
  int channels;
  bool phases;

  __device__ __forceinline__ Column(const FilmGroupNormProblem& problem, int64_t image, int channel) {
    phases = problem.phases;
    width = problem.width;
    channels = problem.x_channels;
    int64_t pixels = static_cast<int64_t>(problem.height) * problem.width;
    const void* source = problem.x;
    pitch = problem.x_channels;
    if (phases) {
      pitch = int64_t{4} * problem.x_channels;
      pixels = (static_cast<int64_t>(problem.height) / 2 + 1) * (problem.width / 2 + 1);
    } else if (channel >= problem.x_channels) {
      source = problem.skip;
      pitch = problem.skip_channels;
      channel -= problem.x_channels;
    }
    base = static_cast<const Storage*>(source) + image * pixels * pitch + channel;
  }

  __device__ __forceinline__ const Storage* at(unsigned pixel) const {
    if (!phases) {
      return base + pixel * pitch;
    }
    const unsigned y = pixel / width;
    const unsigned x = pixel - y * width;
    const int64_t cell = static_cast<int64_t>((y + 1) / 2) * (width / 2 + 1) + (x + 1) / 2;
    return base + cell * pitch + static_cast<int64_t>(2 * (y & 1) + (x & 1)) * channels;
  }
};

// The same column in shared memory, where the fused kernel keeps the slab.
template <typename Element, int Size>
struct KeptColumn {
  const Vector<Element, Size>* base;
  int columns;

  __device__ __forceinline__ void load(Vector<Element, Size>& vector, int pixel) const {
    vector = base[static_cast<int64_t>(pixel) * columns];
  }
};

template <typename Element, int Size>
struct FarColumn {
  Column<Element> column;

  __device__ __forceinline__ void load(Vector<Element, Size>& vector, int pixel) const {
    vector.load(column.at(pixel));
  }
};

// Moments of a thread's column over pixels first + lane, + lanes, ... below end. `keep` (or nullptr) receives what was
// read. Several loads are under way at once; past the end the last pixel is read again and not counted.
template <typename Element, int Size, int Same>
__device__ __forceinline__ void gather(const FilmGroupNormParameters& p, const Place& place, const Film& film,
                                       int first, int end, Vector<Element, Size>* keep,
                                       ThreadMoments<Size, Same>& moments) {
  constexpr int kPixels = 4;
  const Added add(p.problem, film, p.plan.channels);
  for (int start = 0; start < place.columns; start += place.tile) {
    if (!place.has(start)) {
      continue;
    }
    const int channel = place.first_channel + (start + place.column) * Size;
    const Column<Element> source(p.problem, place.image, channel);
    float added[Size];
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      added[i] = add(channel + i);
    }
    for (int pixel = first + place.lane; pixel < end; pixel += kPixels * place.lanes) {
      Vector<Element, Size> read[kPixels];
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int wanted = pixel + j * place.lanes;
        read[j].load(source.at(wanted < end ? wanted : pixel));
      }
      if (keep != nullptr) {
#pragma unroll
        for (int j = 0; j < kPixels; ++j) {
          const int wanted = pixel + j * place.lanes;
          if (wanted < end) {
            keep[static_cast<int64_t>(wanted) * place.columns + start + place.column] = read[j];
          }
        }
      }
      float values[kPixels][Size];
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        read[j].widen(values[j]);
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          values[j][i] += added[i];
        }
      }
      moments.add(values, (end - pixel + place.lanes - 1) / place.lanes);
    }
  }
}

// Moments of the block's groups from those of its threads; the result as in join_groups. `sets` has room for every set
// of every thread, `counts` for every thread.
template <int Size, int Same>
__device__ __forceinline__ void join_threads(const Place& place, int per_group,
                                             const ThreadMoments<Size, Same>& moments, float2* sets, float* counts,
                                             float* reduce) {
  constexpr int kSets = Size / Same;
  counts[threadIdx.x] = moments.count;
#pragma unroll
  for (int i = 0; i < kSets; ++i) {
    sets[threadIdx.x * kSets + i] = make_float2(moments.mean[i], moments.m2[i]);
  }
  __syncthreads();
  const int in_lane = place.tile * kSets;
  const int of_group = place.columns > place.tile ? in_lane : per_group / Same;  // of one lane
  join_groups(place.groups, place.lanes * of_group, reduce, [&](int group, int i) {
    const int index = i / of_group * in_lane + group * of_group + i % of_group;
    return Moments{counts[index / kSets], sets[index].x, sets[index].y};
  });
}

}  // namespace rcdm_fast::cuda
