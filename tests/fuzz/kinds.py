"""All kinds of input: how good ones are made, what reads them, and which errors its documentation promises.

The module is named to the workers, so that their own tests can give them other kinds.
"""

from __future__ import annotations

from tests.fuzz import kinds_data, kinds_images, kinds_models, kinds_options, kinds_runs
from tests.fuzz.kind import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (*kinds_images.KINDS, *kinds_data.KINDS, *kinds_models.KINDS, *kinds_runs.KINDS, *kinds_options.KINDS)
}
