"""All mutants, room by room."""

from __future__ import annotations

from tests.mutants.catalog.analysis import ANALYSIS
from tests.mutants.catalog.chosen import CHOSEN
from tests.mutants.catalog.commands import COMMANDS
from tests.mutants.catalog.cuda import CUDA
from tests.mutants.catalog.diffusion import DIFFUSION
from tests.mutants.catalog.engines import ENGINES
from tests.mutants.catalog.export import EXPORT
from tests.mutants.catalog.fifth import FIFTH
from tests.mutants.catalog.files import FILES
from tests.mutants.catalog.fourth import FOURTH
from tests.mutants.catalog.fp8 import FP8
from tests.mutants.catalog.jobs import JOBS
from tests.mutants.catalog.originals import ORIGINALS
from tests.mutants.catalog.second import SECOND
from tests.mutants.catalog.sixth import SIXTH
from tests.mutants.catalog.sources import SOURCES
from tests.mutants.catalog.third import THIRD
from tests.mutants.catalog.training import TRAINING
from tests.mutants.catalog.trajectories import TRAJECTORIES
from tests.mutants.catalog.winograd import WINOGRAD
from tests.mutants.catalog.world import WORLD
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *ANALYSIS,
    *CHOSEN,
    *COMMANDS,
    *CUDA,
    *DIFFUSION,
    *ENGINES,
    *EXPORT,
    *FIFTH,
    *FILES,
    *FOURTH,
    *FP8,
    *JOBS,
    *ORIGINALS,
    *SECOND,
    *SIXTH,
    *SOURCES,
    *THIRD,
    *TRAINING,
    *TRAJECTORIES,
    *WINOGRAD,
    *WORLD,
)
