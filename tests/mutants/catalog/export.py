"""What other runtimes get."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GRAPH, _FILE = "rcdm_fast/exporters/graph.py", "tests/test_export_truth.py"
_TRUE = (f"{_FILE}::test_the_truth_is_the_model",)
_NORMS = (f"{_FILE}::test_norms_are_float32_in_reduced_precision",)
_HASHES = (f"{_FILE}::test_hashes_tell_every_field_and_every_tensor",)
_CHECKED = (f"{_FILE}::test_a_graph_that_leaves_something_out_fails_the_check",)
_OPENVINO = ("tests/test_openvino.py::test_signals_find_a_stack_when_engines_are_gone",)

EXPORT = (
    Mutant("labels take the timestep's place", _GRAPH, "emb = emb + network.label_emb(condition)", "emb = network.label_emb(condition)", _TRUE),
    Mutant("the representation is left out", _GRAPH, "emb = emb + network.ssl_emb(condition.to(self.dtype))", "emb = emb + network.ssl_emb(0 * condition.to(self.dtype))", _TRUE),
    Mutant("timesteps are not rescaled", _GRAPH, "times = [network_timestep(schedule, t)", "times = [float(t)", _TRUE),
    Mutant("norms in 16 bits", _GRAPH, "self.norm(x.float())", "self.norm.to(x.dtype)(x)", _NORMS),
    Mutant("the hash does not know the schedule", _GRAPH, "repr((network.config, schedule))", "repr((network.config, schedule.diffusion_steps))", _HASHES),
    Mutant("the hash does not know the structure", _GRAPH, "repr((network.config, schedule))", "repr((None, schedule))", _HASHES),
    Mutant("the hash knows shapes only", _GRAPH, "        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())\n", "", _HASHES),
    Mutant("exports are compared with the graph", "rcdm_fast/exporters/onnx.py", "model = truth(network, config.schedule)", "model = NetworkGraph(network, config.schedule).requires_grad_(False)", _CHECKED),
    Mutant("OpenVINO's signal stack becomes the caller's", "rcdm_fast/exporters/openvino_core.py", "pool.submit(_loaded).result()", "_loaded()", _OPENVINO),
    Mutant("a wrong number passes", "rcdm_fast/exporters/onnx.py", "if not error <= tolerance:", "if error > 1e3 * tolerance:", _CHECKED),
)  # fmt: skip
