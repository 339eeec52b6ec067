// The second half of film_group_norm: y = silu((x - mean) a + b) with resampling.

#pragma once

#include "cuda/film_group_norm_block.cuh"
#include "cuda/silu.cuh"

namespace rcdm_fast::cuda {

// What multiplies a channel's distance from its mean, and what is added then: the norm's weight and bias, FiLM's scale
// and shift. A row of film out of range makes NaN of everything.
struct Scaling {
  float a;
  float b;

  __device__ __forceinline__ Scaling(const FilmGroupNormParameters& p, const Film& film, int channel, float variance) {
    a = p.problem.weight[channel] / sqrtf(variance + p.problem.eps);
    b = p.problem.bias[channel];
    if (film.row != nullptr && p.problem.film_width != p.plan.channels) {
      const float scale = 1.0f + film.row[channel];
      a *= scale;
      b = b * scale + film.row[p.plan.channels + channel];
    }
    a = film.out_of_range ? __int_as_float(0x7fc00000) : a;
  }
};

// Mean, a and b of every channel of a tile into shared memory, [3][tile_channels]. `groups` holds the groups' means and
// m2 as join_groups leaves them.
__device__ __forceinline__ void stage_coefficients(const FilmGroupNormParameters& p, const Place& place,
                                                   const Film& film, const float* groups, int start, int size,
                                                   float* coefficients) {
  const int tile_channels = place.tile * size;
  const Added add(p.problem, film, p.plan.channels);
  const float numbers = static_cast<float>(static_cast<int64_t>(p.plan.pixels) * p.plan.per_group);
  const int channels = place.columns * size;
  for (int i = threadIdx.x; i < tile_channels && start * size + i < channels; i += kThreads) {
    const int within = start * size + i;
    const int channel = place.first_channel + within;
    const int group = within / p.plan.per_group;
    const Scaling scaling(p, film, channel, groups[kMostGroups + group] / numbers);
    coefficients[i] = groups[group] - add(channel);
    coefficients[tile_channels + i] = scaling.a;
    coefficients[2 * tile_channels + i] = scaling.b;
  }
}

template <typename Element, int Size>
struct Transform {
  float mean[Size];
  float a[Size];
  float b[Size];
  bool with_silu;

  __device__ __forceinline__ void read(const float* coefficients, int column, int tile_channels) {
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      mean[i] = coefficients[column * Size + i];
      a[i] = coefficients[tile_channels + column * Size + i];
      b[i] = coefficients[2 * tile_channels + column * Size + i];
    }
  }

  __device__ __forceinline__ void operator()(const Vector<Element, Size>& vector, float (&values)[Size]) const {
    vector.widen(values);
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      values[i] = (values[i] - mean[i]) * a[i] + b[i];
    }
    if (with_silu) {
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        values[i] = silu<Element>(values[i]);
      }
    }
  }
};

// Items first + lane, + lanes, ... below end of one column. An item is an output pixel when halving, else an input
// pixel. All loads of a round come before its first store.
template <typename Element, int Size, int Resample, typename Source>
__device__ __forceinline__ void write_column(const FilmGroupNormParameters& p, const Place& place, int channel,
                                             const Source& source, const Transform<Element, Size>& transform,
                                             int first, int end) {
  constexpr int kItems = Resample == -1 ? 1 : Resample == 1 ? 2 : 4;
  constexpr int kReads = Resample == -1 ? 4 : 1;
  const int width = p.problem.width;
  const int64_t channels = p.plan.channels;
  const int64_t pixels = p.plan.pixels;
  const int64_t pixels_out = Resample == -1 ? pixels / 4 : Resample == 1 ? 4 * pixels : pixels;
  auto* out = static_cast<typename Element::Storage*>(p.problem.out) + place.image * pixels_out * channels + channel;
  for (int item = first + place.lane; item < end; item += kItems * place.lanes) {
    Vector<Element, Size> read[kItems][kReads];
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int wanted = item + j * place.lanes;
      int pixel = wanted < end ? wanted : item;
      if constexpr (Resample == -1) {
        const int half = width / 2;
        pixel = 2 * pixel + pixel / half * width;  // 2y width + 2x
        source.load(read[j][1], pixel + 1);
        source.load(read[j][2], pixel + width);
        source.load(read[j][3], pixel + width + 1);
      }
      source.load(read[j][0], pixel);
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int wanted = item + j * place.lanes;
      if (wanted >= end) {
        break;
      }
      float values[Size];
      transform(read[j][0], values);
      if constexpr (Resample == -1) {
        float other[Size];
#pragma unroll
        for (int k = 1; k < kReads; ++k) {
          transform(read[j][k], other);
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
      Vector<Element, Size> result;
      result.narrow(values);
      if constexpr (Resample == 1) {
        const int y = wanted / width;
        const int x = wanted - y * width;
        auto* corner = out + 2 * channels * (static_cast<int64_t>(2) * y * width + x);
        result.store(corner);
        result.store(corner + channels);
        result.store(corner + 2 * channels * width);
        result.store(corner + 2 * channels * width + channels);
      } else {
        result.store(out + wanted * channels);
      }
    }
  }
}

// Items first to end of the whole slab. Sources are made by source(channel, column within the slab).
template <typename Element, int Size, int Resample, typename MakeSource>
__device__ __forceinline__ void write_slab(const FilmGroupNormParameters& p, const Place& place, const Film& film,
                                           const float* groups, float* coefficients, int first, int end,
                                           const MakeSource& make_source) {
  Transform<Element, Size> transform;
  transform.with_silu = p.problem.silu;
  for (int start = 0; start < place.columns; start += place.tile) {
    if (start > 0) {
      __syncthreads();  // the coefficients of the tile before are not needed any more
    }
    stage_coefficients(p, place, film, groups, start, Size, coefficients);
    __syncthreads();
    if (place.has(start)) {
      const int column = start + place.column;
      const int channel = place.first_channel + column * Size;
      transform.read(coefficients, place.column, place.tile * Size);
      write_column<Element, Size, Resample>(p, place, channel, make_source(channel, column), transform, first, end);
    }
  }
}

}  // namespace rcdm_fast::cuda
