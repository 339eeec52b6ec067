// Which of the compiled instruction sets the CPU kernels use. Decided once per process.

#pragma once

namespace rcdm_fast::cpu {

enum class InstructionSet { base = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// The best one this processor supports, or the one named by the environment variable RCDM_FAST_CPU_ISA
// (base, avx2, avx512 or avx512_bf16; for tests and comparisons). Throws if that one is unknown or unsupported.
InstructionSet instruction_set();

// Its name, or why there is none; never throws.
const char* instruction_set_report();

// Of the builds of one kernel, the one to run; a kernel without bf16 arithmetic has three.
template <typename Kernel>
Kernel choose(Kernel base, Kernel avx2, Kernel avx512, Kernel avx512_bf16) {
  switch (instruction_set()) {
    case InstructionSet::avx512_bf16:
      return avx512_bf16;
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx2:
      return avx2;
    default:
      return base;
  }
}

template <typename Kernel>
Kernel choose(Kernel base, Kernel avx2, Kernel avx512) {
  return choose(base, avx2, avx512, avx512);
}

}  // namespace rcdm_fast::cpu
