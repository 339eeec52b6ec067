// map_film on plain pointers: what map_film_host.cpp asks of map_film.cu. Neither torch nor CUDA here.

#pragma once

#include <cstdint>

#include "cuda/format.h"

namespace rcdm_fast::cuda {

// Pointers are device memory.
struct MapFilmProblem {
  void* x;              // [N,H,W,C]
  const float* film;    // [R,h,w,2C] by the strides below; scales, then shifts
  const int64_t* rows;  // [N]
  const float* down;    // [H,h]
  const float* across;  // [W,w]
  int64_t batch;
  int64_t film_rows;
  int64_t of_map;  // strides of film, in numbers
  int64_t of_line;
  int64_t of_place;
  int channels;
  int height;
  int width;
  int lines;   // h
  int places;  // w
  Format format;
};

}  // namespace rcdm_fast::cuda

extern "C" {

// Enqueues on a cudaStream_t. nullptr, or what went wrong.
const char* rcdm_fast_map_film(const rcdm_fast::cuda::MapFilmProblem* problem, void* stream);
}
