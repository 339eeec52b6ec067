"""Schedules, solvers, noise and the ways between representations."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_SCHEDULE, _SOLVERS, _NOISE = (
    "rcdm_fast/diffusion/schedule.py",
    "rcdm_fast/diffusion/solvers.py",
    "rcdm_fast/diffusion/noise.py",
)
_MULTISTEP, _REGISTRY = "rcdm_fast/diffusion/multistep.py", "rcdm_fast/diffusion/registry.py"
_UNIPC = "rcdm_fast/diffusion/unipc.py"
_OF_MULTISTEP = ("tests/test_multistep.py",)
_SAMPLING = "rcdm_fast/diffusion/sampling.py"

_OF_SCHEDULE, _OF_SOLVERS, _OF_NOISE = ("tests/test_schedule.py",), ("tests/test_solvers.py",), ("tests/test_noise.py",)

DIFFUSION = (
    Mutant(
        "every frame has an x_T of its own",
        "rcdm_fast/sampler.py",
        "items = [number for number in range(count) for _ in range(frames)]",
        "items = list(range(count * frames))",
        ("tests/test_sequences.py::test_frames_of_a_sequence_share_their_noise",),
    ),
    Mutant(
        "a map's step is forgotten",
        "rcdm_fast/diffusion/conditioning.py",
        "whole = self._film_of_vectors(k)[:, :, None, None]",
        "whole = self._film_of_vectors(0)[:, :, None, None]",
        ("tests/test_maps.py::test_engines_compute_the_network",),
    ),
    Mutant(
        "a larger map is looked at here and there",
        "rcdm_fast/models/condition_map.py",
        "reach = max(1.0, ratio)",
        "reach = 1.0",
        ("tests/test_maps.py::test_resizing_is_bilinear_and_over_all_that_a_pixel_covers",),
    ),
    Mutant(
        "the class token is a patch",
        "rcdm_fast/encoders/layers.py",
        "maps.of_tokens(tokens[:, prefix_tokens or 0 :])",
        "maps.of_tokens(tokens[:, : tokens.shape[1] - (prefix_tokens or 0)])",
        ("tests/test_maps_use.py::test_positions_stay_where_they_are",),
    ),
    Mutant(
        "the way ends anywhere",
        "rcdm_fast/solver_fit.py",
        "(least[count - 1] + last).argmin()",
        "least[count - 1].argmin()",
        ("tests/test_solver_fit.py::test_the_cheapest_way_is_the_one_of_all",),
    ),
    Mutant(
        "what is held out is fitted too",
        "rcdm_fast/solver_fit.py",
        "survey(ask, grid, ~held)",
        "survey(ask, grid, held | ~held)",
        ("tests/test_solver_fit.py::test_what_is_held_out_has_no_part_in_the_costs",),
    ),
    Mutant(
        "a doubtful placement is recommended",
        "rcdm_fast/solver_fit.py",
        "found if difference.high < 0",
        "found if difference.value < 0",
        ("tests/test_solver_fit.py::test_only_what_is_better_beyond_doubt_is_recommended",),
    ),
    Mutant(
        "distances to the reference are absolute",
        "rcdm_fast/solver_quality.py",
        "- want).norm(dim=1) / want.norm(dim=1)",
        "- want).norm(dim=1)",
        ("tests/test_solver_quality.py",),
    ),
    Mutant(
        "a guide is asked at the model's timesteps",
        "rcdm_fast/sampler.py",
        "Schedule(guide.config.schedule, request.schedule.timesteps, request.schedule.asked)",
        "request.schedule",
        ("tests/test_guidance.py",),
    ),
    Mutant(
        "a guide pulls",
        "rcdm_fast/diffusion/sampling.py",
        "away(output, weaker, request.guidance)",
        "away(weaker, output, request.guidance)",
        ("tests/test_guidance.py",),
    ),
    Mutant(
        "a guide has the rows of the batch before",
        "rcdm_fast/diffusion/sampling.py",
        "guide[0].bind(guide[1], rows)",
        "guide[0].bind(guide[1], rows * 0)",
        ("tests/test_guidance.py",),
    ),
    Mutant(
        "any number of images goes to a bound batch",
        "rcdm_fast/diffusion/engine.py",
        "if count != len(self.batch):",
        "if count > len(self.batch):",
        ("tests/test_engines.py::test_wrong_use",),
    ),
    Mutant(
        "a graph has the rows of the batch that was bound last",
        "rcdm_fast/engines/cuda_graphs.py",
        "if self._filled is not None and self._filled[0] is batch:",
        "if self._filled is not None and len(self._filled[0]) == len(batch):",
        ("tests/test_graphs.py::test_batches_that_are_bound_beside_each_other",),
    ),
    Mutant(
        "a norm of the native engine forgets its skip connection",
        "rcdm_fast/engines/program.py",
        "NormInputs(x, skip, *own, film, rows,",
        "NormInputs(x, None, *own, film, rows,",
        ("tests/test_engines.py::test_native_computes_the_network",),
    ),
    Mutant(
        "a folded bias is lost on its way through a projection",
        "rcdm_fast/engines/folded.py",
        '.to("cpu", torch.float64) @ missing, bias_of(convolution))',
        '.to("cpu", torch.float64) @ (0 * missing), bias_of(convolution))',
        ("tests/test_folded.py::test_it_computes_the_same_network",),
    ),
    Mutant(
        "the slowest form of a program is kept",
        "rcdm_fast/engines/cuda_graphs.py",
        "if took_ms < least_ms:",
        "if best is None or took_ms > least_ms:",
        ("tests/test_graphs_forms.py",),
    ),
    Mutant(
        "a form that cannot run takes the engine down",
        "rcdm_fast/engines/cuda_graphs.py",
        "or (best is None and form == last):",
        "or True:",
        ("tests/test_graphs_forms.py::test_a_form_that_cannot_run_is_left_out_and_reported",),
    ),
    Mutant(
        "a form that runs out of memory is left out like one that cannot run",
        "rcdm_fast/engines/cuda_graphs.py",
        "if memory.out_of_memory(error) or (",
        "if (",
        ("tests/test_graphs_forms.py::test_what_leaving_a_form_out_does_not_mend_is_raised",),
    ),
    Mutant(
        "a roofline forgets that tiles are filled up",
        "benchmarks/roofline.py",
        "tiles = ceil(rows / tile[0]) * ceil(columns / tile[1])",
        "tiles = rows / tile[0] * columns / tile[1]",
        ("tests/test_gpu_model.py::test_times_of_a_kernel",),
    ),
    Mutant(
        "models take turns in the order they are named",
        "rcdm_fast/sampler.py",
        "sorted((self, *others), key=id)",
        "[self, *others]",
        ("tests/test_guidance.py",),
    ),
    Mutant(
        "errors of x0 are those of one noise",
        "rcdm_fast/denoising.py",
        "step_generator(seed, number, stream=t)",
        "step_generator(0, number, stream=t)",
        ("tests/test_denoising.py",),
    ),
    Mutant(
        "steps left over go to the last sections",
        _SCHEDULE,
        "1 if section < extra else 0",
        "1 if section >= len(counts) - extra else 0",
        _OF_SCHEDULE,
    ),
    Mutant("a section begins where the one before began", _SCHEDULE, "start += length", "start += size", _OF_SCHEDULE),
    Mutant(
        "the last timestep is left out",
        _SCHEDULE,
        "gap = (length - 1) / (count - 1)",
        "gap = length / count",
        _OF_SCHEDULE,
    ),
    Mutant(
        "a cosine without its offset", _SCHEDULE, "math.cos((time + 0.008) / 1.008", "math.cos(time / 1.0", _OF_SCHEDULE
    ),
    Mutant(
        "the posterior has the forward variance",
        _SCHEDULE,
        "self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)\n\n    @cached_property\n    def posterior_log",
        "self.betas\n\n    @cached_property\n    def posterior_log",
        _OF_SCHEDULE,
    ),
    Mutant(
        "timesteps are rescaled the other way",
        _SCHEDULE,
        "t * 1000.0 / config.diffusion_steps",
        "t * config.diffusion_steps / 1000.0",
        _OF_SCHEDULE,
    ),
    Mutant(
        "the first step of an inversion is repeated too",
        _SOLVERS,
        "iterations if k > 0 else 1",
        "iterations",
        _OF_SOLVERS,
    ),
    Mutant(
        "an inversion steps from the last guess", _SOLVERS, "        y = x\n", "        y = x * scale\n", _OF_SOLVERS
    ),
    Mutant(
        "the variance is not held from below",
        _SOLVERS,
        "fraction = fraction.clamp(0, 1)",
        "fraction = fraction.clamp(max=1)",
        _OF_SOLVERS,
    ),
    Mutant(
        "the variance is not held from above",
        _SOLVERS,
        "fraction = fraction.clamp(0, 1)",
        "fraction = fraction.clamp(min=0)",
        _OF_SOLVERS,
    ),
    Mutant(
        "noise in the last step",
        _SOLVERS,
        "noisy = variance > 0 and k > 0",
        "noisy = variance > 0 or k == 0 and options.eta > 0",
        _OF_SOLVERS,
    ),
    Mutant(
        "the direction keeps the variance",
        _SOLVERS,
        "direction = 1 - target - variance",
        "direction = 1 - target",
        _OF_SOLVERS,
    ),
    Mutant(
        "bounds are exchanged",
        _SOLVERS,
        "fraction * float(high[k]) + (1 - fraction) * float(low[k])",
        "fraction * float(low[k]) + (1 - fraction) * float(high[k])",
        _OF_SOLVERS,
    ),
    Mutant(
        "v has the other sign",
        _SOLVERS,
        "return math.sqrt(alpha_bar), -math.sqrt(1 - alpha_bar)",
        "return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)",
        _OF_SOLVERS,
    ),
    Mutant("items lose their sign", _NOISE, "item & (MAX_SEED - 1)", "abs(item)", _OF_NOISE),
    Mutant(
        "samples fraction their noise", _NOISE, "np.array([0, 0, sample, step]", "np.array([0, 0, 0, step]", _OF_NOISE
    ),
    Mutant(
        "steps fraction their noise", _NOISE, "np.array([0, 0, sample, step]", "np.array([0, 0, sample, 0]", _OF_NOISE
    ),
    Mutant(
        "steps continue samples",
        _NOISE,
        "np.array([0, 0, sample, step]",
        "np.array([0, 0, 0, sample + step]",
        _OF_NOISE,
    ),
    Mutant(
        "opposite representations take the straight way",
        _SAMPLING,
        "if float(unit_a @ unit_b) < 0:",
        "if False:",
        ("tests/test_sampling.py",),
    ),
    Mutant(
        "lengths are not interpolated",
        _SAMPLING,
        "* torch.lerp(length_a, length_b, weight)",
        "* length_a",
        ("tests/test_sampling.py",),
    ),
    Mutant(
        "steps that fell together stay",
        _SCHEDULE,
        "steps[i] = max(steps[i], steps[i - 1] + 1)",
        "steps[i] = max(steps[i], steps[i - 1])",
        _OF_SCHEDULE,
    ),
    Mutant("quadratic steps are even", _SCHEDULE, "fraction**2 * last", "fraction * last", _OF_SCHEDULE),
    Mutant("eta for everyone", _REGISTRY, "if eta and not known.eta", 'if eta and name == "ancestral"', _OF_MULTISTEP),
    Mutant("even evaluations of heun", _REGISTRY, "if count % 2 == 0", "if count == 0", ("tests/test_nfe.py",)),
    Mutant(
        "a corrector reads the old estimate",
        _UNIPC,
        "[others[-1], begin, *others[:-1]] if corrects",
        "[begin, others[-1], *others[:-1]] if corrects",
        _OF_MULTISTEP,
    ),
    Mutant("B makes no difference", _UNIPC, "bracket = growth(back)", "bracket = math.expm1(back)", _OF_MULTISTEP),
    Mutant(
        "a corrector of DDIM's order",
        _UNIPC,
        "_keep(gaps, h, order)",
        "_keep(gaps, h, 1)",
        ("tests/test_convergence.py",),
    ),
    Mutant(
        "an inversion never goes on from an estimate",
        "rcdm_fast/diffusion/multistep_inversion.py",
        "            last = estimate",
        "            last = None",
        ("tests/test_convergence.py",),
    ),
    Mutant(
        "fresh noise of another step",
        _MULTISTEP,
        "sigma * math.sqrt(-math.expm1(-2 * h))",
        "sigma * math.sqrt(-math.expm1(-h))",
        ("tests/test_convergence.py",),
    ),
    Mutant(
        "a student takes any number of steps",
        _REGISTRY,
        "if count != len(own):",
        "if count > len(own):",
        ("tests/test_distill.py",),
    ),
    Mutant(
        "the moments of another step",
        _MULTISTEP,
        "found.append(h**n - n * found[-1])",
        "found.append(h**n - found[-1])",
        ("tests/test_convergence.py",),
    ),
)
