#include "cpu/instruction_set.h"

#include <cstdlib>
#include <string>

#include "check.h"

namespace rcdm_fast::cpu {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16"};

struct Choice {
  InstructionSet chosen;
  std::string error;
};

InstructionSet best_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) {
    return __builtin_cpu_supports("avx512bf16") ? InstructionSet::avx512_bf16 : InstructionSet::avx512;
  }
  return avx2 ? InstructionSet::avx2 : InstructionSet::base;
#else
  return InstructionSet::base;
#endif
}

Choice decide() {
  const InstructionSet best = best_supported();
  const char* wanted = std::getenv("RCDM_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    return {best, ""};
  }
  const std::string prefix = "RCDM_FAST_CPU_ISA=" + std::string(wanted);
  for (int i = 0; i < 4; ++i) {
    if (std::string(wanted) == kNames[i]) {
      const bool supported = i <= static_cast<int>(best);
      return {static_cast<InstructionSet>(i), supported ? "" : prefix + ": not supported by this processor"};
    }
  }
  return {best, prefix + ": expected base, avx2, avx512 or avx512_bf16"};
}

const Choice& choice() {
  static const Choice decided = decide();
  return decided;
}

}  // namespace

InstructionSet instruction_set() {
  RCDM_FAST_CHECK(choice().error.empty(), choice().error);
  return choice().chosen;
}

const char* instruction_set_report() {
  return choice().error.empty() ? kNames[static_cast<int>(choice().chosen)] : choice().error.c_str();
}

}  // namespace rcdm_fast::cpu
