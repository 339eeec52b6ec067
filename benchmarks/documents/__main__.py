"""``python -m benchmarks.documents``."""

import sys

from benchmarks.documents.check import main

sys.exit(main())
