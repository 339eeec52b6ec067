// Ties the CUDA implementations to the schemas that rcdm_fast/ops/schema*.py declare.
// One line per operator; no operator logic here.

#include <torch/csrc/stable/library.h>

#include "cuda/film_group_norm.h"
#include "cuda/map_film.h"
#include "cuda/residual.h"
#include "cuda/solver_step.h"

STABLE_TORCH_LIBRARY_IMPL(rcdm_fast, CUDA, m) {
  m.impl("film_group_norm", TORCH_BOX(&rcdm_fast::cuda::film_group_norm));
  m.impl("film_group_norm_out", TORCH_BOX(&rcdm_fast::cuda::film_group_norm_out));
  m.impl("film_group_norm_before_out", TORCH_BOX(&rcdm_fast::cuda::film_group_norm_before_out));
  m.impl("film_group_norm_given_out", TORCH_BOX(&rcdm_fast::cuda::film_group_norm_given_out));
  m.impl("add_residual", TORCH_BOX(&rcdm_fast::cuda::add_residual));
  m.impl("add_residual_moments", TORCH_BOX(&rcdm_fast::cuda::add_residual_moments));
  m.impl("moments", TORCH_BOX(&rcdm_fast::cuda::moments));
  m.impl("map_film", TORCH_BOX(&rcdm_fast::cuda::map_film));
  m.impl("solver_step", TORCH_BOX(&rcdm_fast::cuda::solver_step));
}
