"""What a paper says of how a report's numbers were made: one paragraph, from the experiments' own descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcdm_fast.analysis.result import Analysis

_SOURCE = (
    "Representations were visualized by representation-conditioned diffusion (RCDM; Bordes, Balestriero and Vincent, "
    "2022) as implemented in rcdm_fast {version}."
)


def paragraph(results: Sequence[Analysis], facts: Mapping[str, Any]) -> str:
    """The paragraph.

    Args:
        results: the report's experiments.
        facts: what `provenance.made_by` says of them.
    """
    sentences = [_SOURCE.format(version=facts["rcdm_fast"])]
    for model in facts["models"]:
        encoder = f", representations from {model['encoder']['source']}" if "encoder" in model else ""
        runs = f"{model['engine']} engine, {model['precision']}"
        sentences.append(f"Decoder {model['name'] or '(unnamed)'} (weights {model['weights'][:12]}; {runs}){encoder}.")
    for name, images in facts["data"].items():
        shown = "images" if name == "data" else name
        sentences.append(f"{images['images']:,} {shown} (fingerprint {images['fingerprint']}).")
    for each in results:
        drawn = [f"{key} {each.settings[key]}" for key in ("sources", "per", "steps", "solver") if key in each.settings]
        settings = f" Settings: {', '.join(drawn)}." if drawn else ""
        said: list[str] = [part for part in (each.method,) if part and part not in " ".join(sentences)]
        sentences.append(f"{each.title}.{settings}" + "".join(f" {part}" for part in said))
    return " ".join(sentences)
