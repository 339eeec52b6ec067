"""What other runtimes get."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GRAPH, _FILE = "rcdm_fast/exporters/graph.py", "tests/test_export_truth.py"
_TRUE = (f"{_FILE}::test_the_truth_is_the_model",)
_NORMS = (f"{_FILE}::test_norms_are_float32_in_reduced_precision",)
_HASHES = (f"{_FILE}::test_hashes_tell_every_field_and_every_tensor",)
_CHECKED = (f"{_FILE}::test_a_graph_that_leaves_something_out_fails_the_check",)
_OPENVINO = ("tests/test_openvino.py::test_signals_find_a_stack_when_engines_are_gone",)
_TIMES = ("tests/test_export_timesteps.py",)
_PLANS = ("tests/test_tensorrt.py",)

EXPORT = (
    Mutant("labels take the timestep's place", _GRAPH, "emb = emb + network.label_emb(condition)", "emb = network.label_emb(condition)", _TRUE),
    Mutant("the representation is left out", _GRAPH, "emb = emb + network.condition(condition)", "emb = emb + network.condition(0 * condition)", _TRUE),
    Mutant("timesteps are not rescaled", _GRAPH, "times = [network_timestep(schedule, t)", "times = [float(t)", _TRUE),
    Mutant("rows are turned the other way", _GRAPH, "[cosines * cos - sines * sin, sines * cos + cosines * sin]", "[cosines * cos + sines * sin, sines * cos - cosines * sin]", _TRUE),
    Mutant("fractions are not rescaled", _GRAPH, "timestep_frequencies(network.config.num_channels) * network_timestep(schedule, 1)", "timestep_frequencies(network.config.num_channels)", _TRUE),
    Mutant("a fraction is rounded away", _GRAPH, "t - whole, dtype", "round(t - whole), dtype", _TIMES),
    Mutant("files of before are asked for what they do not know", "rcdm_fast/engines/onnx_runtime.py", "    if graph < 2 and between:\n", "    if graph < 1 and between:\n", _TIMES),
    Mutant("norms in 16 bits", _GRAPH, "self.norm(x.float())", "self.norm.to(x.dtype)(x)", _NORMS),
    Mutant("the hash does not know the schedule", _GRAPH, "repr((config, schedule))", "repr((config, schedule.diffusion_steps))", _HASHES),
    Mutant("the hash does not know the structure", _GRAPH, "repr((config, schedule))", "repr((None, schedule))", _HASHES),
    Mutant("the hash knows shapes only", _GRAPH, "        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())\n", "", _HASHES),
    Mutant("exports are compared with the graph", "rcdm_fast/exporters/onnx.py", "model = truth(network, config.schedule)", "model = NetworkGraph(network, config.schedule).requires_grad_(False)", _CHECKED),
    Mutant("OpenVINO's signal stack becomes the caller's", "rcdm_fast/exporters/openvino_core.py", "pool.submit(_loaded).result()", "_loaded()", _OPENVINO),
    Mutant("a plan need not be the one described", "rcdm_fast/exporters/plan_file.py", "if hashlib.sha256(plan).hexdigest() != header.sha256:", "if not header.sha256:", _PLANS),
    Mutant("a plan in a container is taken for one", "rcdm_fast/exporters/plan_file.py", "if start == CONTAINER:", "if not start:", _PLANS),
    Mutant("a wrong number passes", "rcdm_fast/exporters/onnx.py", "if not error <= tolerance:", "if error > 1e3 * tolerance:", _CHECKED),
    Mutant('a card names the hash of what is not stored', 'rcdm_fast/exporters/hub_folder.py', 'hash_of(config.unet, stored, config.schedule)', 'hash_of(config.unet, network.state_dict(), config.schedule)', ('tests/test_hub.py::test_the_card_of_any_model',)),
)  # fmt: skip
