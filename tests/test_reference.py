"""The network, the schedules and the solvers agree with outputs of the published code (tests/reference)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rcdm_fast
from rcdm_fast.diffusion import conditioning, solvers
from rcdm_fast.diffusion.schedule import Schedule
from tests.reference_weights import CASES, FOLDER, flags_path, state_dict
from tests.tolerances import BATCH_SPLIT_ABS, FORWARD_L2, TRAJECTORY_L2


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(
    scope="module", params=[(case, engine) for case in CASES for engine in ("eager", "native")], ids="-".join
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[rcdm_fast.Model, dict[str, Tensor]]:
    name, engine = request.param
    path = tmp_path_factory.mktemp(name) / "checkpoint.pt"
    torch.save(state_dict(name), path)
    model = rcdm_fast.load(path, flags_path(name), device="cpu", engine=engine)
    return model, load_file(FOLDER / name / "reference.safetensors")


def test_forward(case: tuple[rcdm_fast.Model, dict[str, Tensor]]) -> None:
    model, reference = case
    for key in [key for key in reference if key.startswith("forward_t")]:
        t = torch.full((3,), int(key.removeprefix("forward_t")))
        out = model.network(reference["x"], t, reference["representation"])
        assert relative(out, reference[key]) <= FORWARD_L2, key


@pytest.mark.parametrize("spec", ["ddim25", "10"])
def test_kept_timesteps(case: tuple[rcdm_fast.Model, dict[str, Tensor]], spec: str) -> None:
    model, reference = case
    key = {"ddim25": "ddim25_timesteps", "10": "uniform10_timesteps"}[spec]
    assert sorted(reference[key].tolist()) == list(Schedule.make(model.config.schedule, spec).timesteps)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("ddim25_ddim_eta0", {"steps": "ddim25"}),
        pytest.param(
            "uniform10_ddim_eta0", {"steps": 10, "solver": "ddim"}, marks=pytest.mark.long
        ),  # below every step of it is compared
        ("uniform10_ddim_eta0.7", {"steps": "10", "eta": 0.7}),
        ("uniform10_ancestral", {"steps": "10", "solver": "ancestral"}),
    ],
)
def test_trajectory(case: tuple[rcdm_fast.Model, dict[str, Tensor]], key: str, settings: dict[str, object]) -> None:
    model, reference = case
    out = model.sample(
        reference["representation"],
        per=1,
        noise=reference["noise"][:, None],
        step_noise=None if settings["steps"] == "ddim25" else reference["ancestral_noise"][:, :, None],
        **settings,  # type: ignore[arg-type]
    )
    assert relative(out[:, 0], reference[key]) <= TRAJECTORY_L2


def test_every_step_of_a_trajectory(case: tuple[rcdm_fast.Model, dict[str, Tensor]]) -> None:
    model, reference = case
    schedule = Schedule.make(model.config.schedule, "10")
    plan = conditioning.make_plan(model.unet, schedule, reference["representation"], None)
    predict = model.engine.bind(plan, torch.arange(3)).predict
    seen: list[Tensor] = []
    options = solvers.SolverOptions(observer=lambda _, x: seen.append(x))
    solvers.ddim(predict, reference["noise"], schedule, options, lambda _: torch.empty(0))
    expected = reference["uniform10_ddim_eta0_trajectory"]
    assert len(seen) == len(expected) == 10
    for step in range(10):
        assert relative(seen[step], expected[step]) <= TRAJECTORY_L2, step


def test_inversion(case: tuple[rcdm_fast.Model, dict[str, Tensor]]) -> None:
    model, reference = case
    images = reference["reverse_input"]
    assert float(images.abs().max()) <= 1
    x_T = model.invert(images, reference["representation"], steps="10", iterations=0)
    assert relative(x_T, reference["uniform10_ddim_reverse"]) <= TRAJECTORY_L2


# Beside other tests two threads wait for each other by spinning: a hundred times as long as one.
@pytest.mark.parametrize(
    ("threads", "rows", "per"),
    [(1, 2, 3), *(pytest.param(each, 5, 7, marks=pytest.mark.long(short=each == 1)) for each in (1, 2))],
)
def test_batch_split_changes_nothing(
    case: tuple[rcdm_fast.Model, dict[str, Tensor]], threads: int, rows: int, per: int
) -> None:
    """The cosine case magnifies rounding in its first step 2e4 times, so this needs equal bits, not near ones."""
    model, reference = case
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_batch_splits(model, torch.randn(rows, reference["representation"].shape[1]), per)
    finally:
        torch.set_num_threads(before)


def check_batch_splits(model: rcdm_fast.Model, h: Tensor, per: int) -> None:
    whole = model.sample(h, per=per, steps=2, batch_size=len(h) * per)
    for size in (1, 4):  # 4: batches that begin and end inside an item
        assert float((model.sample(h, per=per, steps=2, batch_size=size) - whole).abs().max()) <= BATCH_SPLIT_ABS
    alone = [model.sample(h[row : row + 1], items=[row], per=2, steps=2) for row in range(len(h[:3]))]
    assert float((torch.cat(alone) - whole[:3, :2]).abs().max()) <= BATCH_SPLIT_ABS
