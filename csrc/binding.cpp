// Ties the operators' implementations to the schemas that rcdm_fast/ops/schema.py declares.
// One line per operator and device; no operator logic here.

#include <torch/csrc/stable/library.h>

#include "cpu/instruction_set.h"
#include "cpu/pictures_to_uint8.h"

STABLE_TORCH_LIBRARY_IMPL(rcdm_fast, CPU, m) {
  m.impl("pictures_to_uint8", TORCH_BOX(&rcdm_fast::cpu::pictures_to_uint8));
}

// Read by rcdm_fast/ops/library.py through ctypes, for reports.
extern "C" __attribute__((visibility("default"))) const char* rcdm_fast_cpu_instruction_set() {
  return rcdm_fast::cpu::instruction_set_report();
}
