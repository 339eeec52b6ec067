// Ties the operators' implementations to the schemas that rcdm_fast/ops/schema.py declares.
// One line per operator and device; no operator logic here.

#include <torch/csrc/stable/library.h>

#include "cpu/attention.h"
#include "cpu/attention_backward.h"
#include "cpu/film_group_norm.h"
#include "cpu/film_group_norm_backward.h"
#include "cpu/instruction_set.h"
#include "cpu/map_film.h"
#include "cpu/solver_step.h"
#include "cpu/weight_gradient.h"
#include "cpu/winograd.h"

STABLE_TORCH_LIBRARY_IMPL(rcdm_fast, CPU, m) {
  m.impl("attention", TORCH_BOX(&rcdm_fast::cpu::attention));
  m.impl("attention_backward", TORCH_BOX(&rcdm_fast::cpu::attention_backward));
  m.impl("convolution_weight_gradient", TORCH_BOX(&rcdm_fast::cpu::convolution_weight_gradient));
  m.impl("film_group_norm", TORCH_BOX(&rcdm_fast::cpu::film_group_norm));
  m.impl("film_group_norm_backward", TORCH_BOX(&rcdm_fast::cpu::film_group_norm_backward));
  m.impl("film_group_norm_out", TORCH_BOX(&rcdm_fast::cpu::film_group_norm_out));
  m.impl("map_film", TORCH_BOX(&rcdm_fast::cpu::map_film));
  m.impl("solver_step", TORCH_BOX(&rcdm_fast::cpu::solver_step));
  m.impl("winograd_convolution", TORCH_BOX(&rcdm_fast::cpu::winograd_convolution));
  m.impl("winograd_weight", TORCH_BOX(&rcdm_fast::cpu::winograd_weight));
  m.impl("winograd_weight_gradient", TORCH_BOX(&rcdm_fast::cpu::winograd_weight_gradient));
}

// Read by rcdm_fast/ops/library.py through ctypes, for reports.
extern "C" __attribute__((visibility("default"))) const char* rcdm_fast_cpu_instruction_set() {
  return rcdm_fast::cpu::instruction_set_report();
}
