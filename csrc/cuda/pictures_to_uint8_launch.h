// pictures_to_uint8 on plain pointers: what pictures_to_uint8_host.cpp asks of pictures_to_uint8.cu.

#pragma once

#include <cstdint>

#include "cuda/format.h"

extern "C" {

// `count` numbers without gaps -> levels. Enqueues on a cudaStream_t. nullptr, or what went wrong.
const char* rcdm_fast_pictures_to_uint8(const void* pictures, uint8_t* levels, int64_t count,
                                        rcdm_fast::cuda::Format format, void* stream);
}
