"""What a roofline says of one network evaluation on a GPU, without one: the native engine beside torch.compile.

    python benchmarks/gpu_model.py --device H100 A100 --batches 1 4 16 64 256 --json FILE

A model, not a measurement; its assumptions are printed with it (`roofline.ASSUMPTIONS`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import roofline, workload
from benchmarks.rows import markdown, table
from rcdm_fast import provenance, storage
from rcdm_fast.config import ConfigError

COLUMNS = (
    ("device", "device", "s"),
    ("", "name", "s"),
    ("batch", "batch", "d"),
    ("kernels", "kernels", "d"),
    ("GB", "gbyte", ".2f"),
    ("convolutions", "convolution_ms", ".2f"),
    ("biases", "bias_ms", ".2f"),
    ("residuals", "residual_ms", ".2f"),
    ("norms", "norm_ms", ".2f"),
    ("attention", "attention_ms", ".2f"),
    ("other", "other_ms", ".2f"),
    ("ms, modeled", "ms", ".2f"),
    ("MFU %", "mfu_percent", ".0f"),
    ("x compile", "of_compile", ".2f"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON or Markdown if asked to; the exit status is 2 for an unknown device."""
    parser = argparse.ArgumentParser(description="A roofline model of one network evaluation on GPUs.")
    parser.add_argument("--config", default="release128")
    parser.add_argument("--device", nargs="+", default=["H100"], help="names, or JSON files with numbers of a GPU")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    try:
        unet = workload.read_config(options.config).unet
        devices = [_device(name) for name in options.device]
    except ConfigError as error:
        print(f"gpu_model: {error}", file=sys.stderr)
        return 2
    rows = [
        {"device": device.name, **row, "gbyte": row["bytes"] * 1e-9}
        for device in devices
        for batch in options.batches
        for row in roofline.predict(unet, batch, device)
    ]
    print(f"{options.config}, 16-bit numbers: a model, not a measurement. It assumes that")
    print("\n".join(f"* {each}." for each in roofline.ASSUMPTIONS))
    print("\n".join((markdown if options.markdown else table)(rows, COLUMNS)))
    if options.json:
        found = {"config": options.config, "assumptions": roofline.ASSUMPTIONS, "rows": rows}
        storage.write_json(options.json, {**found, "made_by": provenance.made_by()})
    return 0


def _device(name: str) -> roofline.Device:
    found = roofline.read_device(Path(name)) if name.endswith(".json") else roofline.device_named(name)
    if found is None:
        known = ", ".join(device.name for device in roofline.DEVICES)
        raise ConfigError(f"no numbers of {name!r}; known: {known}; or give a JSON file")
    return found


if __name__ == "__main__":
    sys.exit(main())
