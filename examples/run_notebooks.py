"""`make notebooks`: run the notebooks of this folder from top to bottom and keep what they print and draw in them.

A kernel of this very Python runs each in a fresh process, with this folder as its working directory. What would differ
between two runs of the same notebook is left out of the file: times of execution, versions and names of the kernel, and
JPEG copies of images that are there as PNG. Stops at the first cell that fails, and leaves that file as it was.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from rcdm_fast import storage

FOLDER = Path(__file__).resolve().parent
TIMEOUT_S = 600  # for one cell
QUIET = "ignore:IProgress not found"  # tqdm, where ipywidgets is missing
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: Any, folder: Path = FOLDER) -> Any:
    """Run a notebook (nbformat's node) in `folder`, in place, and return it cleaned.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; its message has the traceback.
    """
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return clean(client.execute(env={"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONWARNINGS": QUIET}))


def clean(notebook: Any) -> Any:
    """Leave out what differs between runs of the same notebook, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            output.pop("metadata", None)
            data = output.get("data", {})
            if "image/png" in data:
                data.pop("image/jpeg", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = nbformat.from_dict({})
    return notebook


def main() -> None:
    """Run the notebooks that are named, all of them if none is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of this folder")
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        text = nbformat.writes(execute(nbformat.read(path, as_version=4)))
        storage.write_text(path, text.rstrip("\n") + "\n")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {len(text) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
