"""`rcdm export --to onnx`: a folder with ``network.onnx`` and, where the model has an encoder, ``encoder.onnx``."""

from __future__ import annotations

from pathlib import Path

from rcdm_fast.exporters import encoder, onnx
from rcdm_fast.exporters.job import Job

PRECISIONS = ("fp32", "fp16", "bf16")
missing_packages = onnx.missing_packages


def write(out: Path, job: Job) -> list[Path]:
    """Write both, each checked against PyTorch; the encoder always in fp32.

    Raises:
        onnx.ExportError, StorageError: see `onnx.export_network` and `encoder.export_encoder`; files already written
            stay, complete.
    """
    files = []
    if job.encoder is not None:
        job.report("encoder: exporting and checking")
        files.append(encoder.export_encoder(out / "encoder.onnx", job.encoder))
    job.report("network: exporting and checking")
    files.append(onnx.export_network(out / "network.onnx", job.network, job.config, job.precision))
    return files
