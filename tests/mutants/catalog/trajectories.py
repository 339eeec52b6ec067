"""Whole trajectories as one CUDA graph: what would give another request's images, or cost more than it gains."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_TRAJECTORY, _GRAPHS = "rcdm_fast/diffusion/trajectory.py", "rcdm_fast/engines/trajectory_graphs.py"
_TESTS, _FAILING = "tests/test_trajectories.py", "tests/test_trajectories_failing.py"
_DIFFERS = (f"{_TESTS}::test_what_differs_has_a_graph_of_its_own",)
_MAPS = (f"{_TESTS}::test_rows_that_are_computed_and_maps",)
_USES = (f"{_TESTS}::test_a_few_uses_pay_for_no_capture",)
_FAILS = (f"{_FAILING}::test_what_cannot_be_captured_is_drawn_step_by_step",)
_LEAVES = (f"{_FAILING}::test_a_capture_that_fails_leaves_nothing_behind",)

TRAJECTORIES = (
    Mutant(
        "a captured trajectory serves other settings",
        _TRAJECTORY,
        "    options: SolverOptions\n",
        "    options: SolverOptions = field(compare=False)\n",
        _DIFFERS,
    ),
    Mutant(
        "a captured trajectory serves other steps",
        _TRAJECTORY,
        "    schedule: Schedule\n",
        "    schedule: Schedule = field(compare=False)\n",
        _DIFFERS,
    ),
    Mutant(
        "a captured trajectory serves another solver of as many evaluations",
        _TRAJECTORY,
        "    solver: Solver\n",
        "    solver: Solver = field(compare=False)\n",
        _DIFFERS,
    ),
    Mutant(
        "a captured trajectory serves another guidance",
        _TRAJECTORY,
        "    guidance: float | None = None\n",
        "    guidance: float | None = field(default=None, compare=False)\n",
        _DIFFERS,
    ),
    Mutant(
        "a fitted solver that is made anew is another one",
        "rcdm_fast/diffusion/fitted.py",
        "@dataclass(frozen=True)\nclass _Run:",
        "@dataclass(frozen=True, eq=False)\nclass _Run:",
        _DIFFERS,
    ),
    Mutant(
        "a trajectory is drawn with the rows of other steps",
        "rcdm_fast/diffusion/engine.py",
        "if asked != bound:",
        "if asked > bound:",
        (f"{_TESTS}::test_wrong_use",),
    ),
    Mutant(
        "images are pushed towards the null representation",
        _TRAJECTORY,
        "conditional, null = evaluate(",
        "null, conditional = evaluate(",
        ("tests/test_guidance.py::test_guidance_pushes_away_from_the_null_representation",),
    ),
    Mutant(
        "a captured trajectory keeps the representations of its first batch",
        _GRAPHS,
        "        batch.films(out=captured.films[:, : len(batch.distinct)])\n        captured.x",
        "        captured.x",
        _MAPS,
    ),
    Mutant(
        "a captured trajectory mixes representations up",
        _GRAPHS,
        "        captured.rows[: len(batch)].copy_(batch.inverse)\n",
        "",
        _MAPS,
    ),
    Mutant(
        "a captured trajectory has the noise of its first batch for ever",
        _GRAPHS,
        "            self._renew(captured, step_noise)\n            return",
        "            return",
        (f"{_TESTS}::test_every_solver_draws_what_it_draws_step_by_step[1]",),
    ),
    Mutant(
        "a captured trajectory does not wait for the stream of before",
        _GRAPHS,
        "        self._graphs.follow()\n        captured.rows",
        "        captured.rows",
        (f"{_TESTS}::test_streams_follow_each_other",),
    ),
    Mutant(
        "memory of padding is given back while a graph writes to it",
        _GRAPHS,
        "_Captured(graph, begin, padded, films",
        "_Captured(graph, begin, padded.clone(), films",
        (f"{_TESTS}::test_memory_that_a_graph_uses_is_held[3]",),
    ),
    Mutant(
        "the slower way is kept",
        _GRAPHS,
        "return self.whole_ms >= self.steps_ms > 0",
        "return self.steps_ms >= self.whole_ms > 0",
        (f"{_TESTS}::test_the_faster_way_is_kept",),
    ),
    Mutant(
        "a trajectory that cannot be captured is tried at every use",
        _GRAPHS,
        "(met.unable or met.slower or",
        "(met.slower or",
        _FAILS,
    ),
    Mutant(
        "a capture that fails breaks a model that was working",
        _GRAPHS,
        "        except Exception as error:\n            met.unable",
        "        except KeyError as error:\n            met.unable",
        _FAILS,
    ),
    Mutant(
        "a slower trajectory drops a faster one",
        _GRAPHS,
        "        if met.slower:\n            return None\n        self._make_room()\n",
        "        self._make_room()\n        if met.slower:\n            return None\n",
        (f"{_FAILING}::test_a_slower_one_drops_none",),
    ),
    Mutant(
        "a capture that fails leaves its stream the current one",
        "rcdm_fast/devices.py",
        "            torch.cuda.stream(stream),\n            torch.cuda.graph(",
        "            torch.cuda.graph(",
        _LEAVES,
    ),
    Mutant(
        "what goes wrong in a capture is hidden by the error of ending it",
        "rcdm_fast/devices.py",
        "    except Exception:\n        if first",
        "    except KeyError:\n        if first",
        _LEAVES,
    ),
    Mutant("a use less pays for a capture", _GRAPHS, "met.uses <= USES_BEFORE", "met.uses < USES_BEFORE", _USES),
    Mutant("a dropped trajectory is captured at once", _GRAPHS, "            self._met[key] = _Met()\n", "", _USES),
    Mutant("the trajectory used last is dropped", _GRAPHS, "            self._kept.move_to_end(key)\n", "", _USES),
    Mutant(
        "every trajectory is remembered",
        _GRAPHS,
        "while len(self._met) - len(self._kept) > REMEMBERED:",
        "while len(self._met) - len(self._kept) > 1e9:",
        _USES,
    ),
    Mutant(
        "any trajectory is captured, however large its tables",
        _GRAPHS,
        "return few and small and",
        "return few and",
        (f"{_TESTS}::test_what_is_too_much_for_a_graph",),
    ),
    Mutant(
        "who looks for the first bad layer sees no evaluation",
        "rcdm_fast/diffusion/sampling.py",
        "if look is None and weak is None else None",
        "if weak is None else None",
        (f"{_TESTS}::test_the_layer_that_is_not_finite_is_still_named",),
    ),
    Mutant(
        "a guide has no say in a trajectory that is drawn at once",
        "rcdm_fast/diffusion/sampling.py",
        "if look is None and weak is None else None",
        "if look is None else None",
        (f"{_TESTS}::test_a_guide_is_asked_step_by_step",),
    ),
    Mutant(
        "the bar forgets images that are drawn at once",
        "rcdm_fast/diffusion/sampling.py",
        "            drawn(len(flat) * request.evaluations)\n",
        "            drawn(len(flat))\n",
        (f"{_TESTS}::test_the_bar_counts_every_image",),
    ),
)
