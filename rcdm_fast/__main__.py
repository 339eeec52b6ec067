"""`python -m rcdm_fast`: the `rcdm` command, for launchers that start a module."""

from __future__ import annotations

import sys

from rcdm_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
