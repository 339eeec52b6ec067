// What an operator refuses becomes an exception here, with a message that needs no stream.
//
// STD_TORCH_CHECK writes its message to a std::ostringstream. In a library that brings a C++ runtime of its own into the
// process (measured: linked with -static-libstdc++), streams cannot write numbers: the message ends at the first one.
// Strings can. No message can be had where the library has an unwinder of its own as well (-static-libgcc): torch 2.11
// then ends the process at any exception.

#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <concepts>
#include <stdexcept>
#include <string>

namespace rcdm_fast {

inline void add_to(std::string& text, const char* part) { text += part; }
inline void add_to(std::string& text, const std::string& part) { text += part; }
inline void add_to(std::string& text, torch::headeronly::ScalarType dtype) { text += c10::toString(dtype); }
template <std::integral T>
void add_to(std::string& text, T number) {
  text += std::to_string(number);
}
template <std::floating_point T>
void add_to(std::string& text, T number) {
  text += std::to_string(number);
}

template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void refuse(const Parts&... parts) {
  std::string text;
  (add_to(text, parts), ...);
  throw std::runtime_error(text);
}

}  // namespace rcdm_fast

// RCDM_FAST_CHECK(condition, parts of the message...)
#define RCDM_FAST_CHECK(condition, ...)  \
  do {                                   \
    if (!(condition)) [[unlikely]] {     \
      ::rcdm_fast::refuse(__VA_ARGS__);  \
    }                                    \
  } while (false)
