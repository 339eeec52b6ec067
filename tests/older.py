"""Older releases of packages, each in a folder of its own beside the environment's packages, to test against.

They are installed once per environment, without what they need: that comes from the environment. Putting the folder
first on the path makes Python find the older release.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

OLDEST_TORCH = "2.11.0"  # what pyproject.toml asks for at least
OLDEST_TRITON = "3.6.0"  # what that torch comes with


def installed(name: str, version: str) -> Path:
    """The folder that holds a release; installed by pip where it is not there yet."""
    folder = Path(sys.prefix) / "older" / f"{name}-{version}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-compile")
            command = (*pip, "--target", str(unfinished), f"{name}=={version}")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            unfinished.rename(folder)
    return folder
