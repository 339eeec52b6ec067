"""Model files that share tensors, names of before, whole jobs in one call, solvers that were learned."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_SHARED, _OF_SHARED = "rcdm_fast/models/shared.py", ("tests/test_shared_tensors.py",)
_WORKFLOWS, _OF_WORKFLOWS = "rcdm_fast/workflows.py", ("tests/test_workflows.py",)
_OF_NAMES, _OF_SHIPPED = ("tests/test_renamed_settings.py",), ("tests/test_training_bundled.py",)
_FITTED, _OF_FITTED = "rcdm_fast/diffusion/fitted.py", ("tests/test_fitted.py",)
_REGISTRY, _LEARNING = "rcdm_fast/diffusion/registry.py", "rcdm_fast/solver_learning.py"

FILES = (
    Mutant("the base's tensors win", _SHARED, "{**held, **tensors}", "{**tensors, **held}", _OF_SHARED),
    Mutant("any base will do", _SHARED, "if _checksum(base) != checksum:", "if not checksum:", _OF_SHARED),
    Mutant("equal shapes are equal tensors", _SHARED, " and torch.equal(one, other)", "", _OF_SHARED),
    Mutant("a base may need another", _SHARED, "if KEY in storage.read_metadata(base):", "if not base:", _OF_SHARED),
    Mutant("a name of before wins", "rcdm_fast/plain_data.py", "if RENAMED.get(key) not in stored", "if key", _OF_NAMES),
    Mutant("names of before at the top only", "rcdm_fast/plain_data.py", "RENAMED.get(key, key): migrated(value)", "RENAMED.get(key, key): value", _OF_NAMES),
    Mutant("a job of before is of another kind", "rcdm_fast/jobs/rows.py", 'items = {**items, "kind": "image"}', "pass", _OF_NAMES),
    Mutant("any module goes on with a run", "training/train.py", "settings |= representations.identity(encoder, data, given is not None, h, folder.path)", "pass", _OF_WORKFLOWS),
    Mutant("a file that says something else goes on with a run", "training/representations.py", 'if not given and not encoder.config.source.startswith("python:")', "if not given", ("tests/test_encoders_python.py",)),
    Mutant("trust is stored in the encoder's name", "rcdm_fast/encoders/__init__.py", "if key not in said}", "if key}", ("tests/test_encoders_python.py",)),
    Mutant("a run trusts everything", "training/trust.py", "trust_repo=allowed", "trust_repo=True", ("tests/test_encoders_python.py", "tests/test_trust.py")),
    Mutant("the first of several calls is guessed", "rcdm_fast/encoders/layers.py", "if self.call is None and calls > 1:", "if False:", ("tests/test_encoders_layers.py",)),
    Mutant("what a branch reads is cut off", "rcdm_fast/encoders/onnx_graph.py", "yield from _uses(each)", "yield from ()", ("tests/test_encoders_layers.py",)),
    Mutant("two images share a representation", "rcdm_fast/data/aligned.py", "if len(set(found)) < len(found):", "if False:", ("tests/test_aligned.py",)),
    Mutant("representations without ids are cut short", "rcdm_fast/data/aligned.py", "elif len(source) != len(data):", "elif len(source) < len(data):", ("tests/test_aligned.py",)),
    Mutant("a given representation is that of a mirrored image, too", "training/train.py", "encoder=None, random_flip=False,", "encoder=None,", ("tests/test_aligned.py",)),
    Mutant("changes do not arrive", _WORKFLOWS, "{**values, **changes}", "{**changes, **values}", _OF_WORKFLOWS),
    Mutant("adapting forgets its settings", _WORKFLOWS, '"model": os.fspath(model), **changes}', '"model": os.fspath(model)}', _OF_WORKFLOWS),
    Mutant("bundled files name this machine", "training/bundled.py", 'text = text.replace(path, stage.name)', "pass", _OF_SHIPPED),
    Mutant("nothing is shared", "training/bundled.py", "if stage.base else None", "if not stage.base else None", _OF_SHIPPED),
    Mutant("a fitted solver of other weights", _REGISTRY, "if chosen.weights != weights:", "if not weights:", _OF_FITTED),
    Mutant("guided by a solver fitted without", _REGISTRY, "options.clip and not guided", "options.clip", _OF_FITTED),
    Mutant("the doubtful is kept", _LEARNING, "difference.high < 0", "difference.value < 0", ("tests/test_solver_learning.py::test_what_may_be_by_chance_is_not_kept",)),
)  # fmt: skip
