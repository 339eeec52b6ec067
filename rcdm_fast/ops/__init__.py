"""Custom operators: one schema each, a readable reference, native implementations where they were built.

Importing this package declares the schemas and loads no native library; the first call of an operator does, or
`load()`. Before `torch.compile` or `torch.export` call `load()`: a library cannot be loaded while a graph is traced.

Knows nothing about models, engines or images files. How to add an operator: csrc/README.md.
"""

from __future__ import annotations

from rcdm_fast.ops import gradients, reference, schema, schema_backward, schema_winograd, selection
from rcdm_fast.ops.library import Part, describe, instruction_set, load
from rcdm_fast.ops.wrappers import attention, film_group_norm, solver_step

__all__ = [
    "Part",
    "attention",
    "describe",
    "film_group_norm",
    "gradients",
    "instruction_set",
    "load",
    "reference",
    "schema",
    "schema_backward",
    "schema_winograd",
    "selection",
    "solver_step",
]
