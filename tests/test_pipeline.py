"""Model: sampling requests of every shape, encoding, inversion, interpolation, and wrong input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import noise, sampling
from rcdm_fast.diffusion.sampling import SamplingError, interpolation_path
from rcdm_fast.images import ImageError, from_uint8, load_image, to_uint8
from rcdm_fast.model import Model
from tests import small
from tests.tolerances import BATCH_SPLIT_ABS


@pytest.fixture(scope="module")
def model() -> Model:
    return small.model()


@pytest.fixture(scope="module")
def h() -> Tensor:
    return torch.randn(5, small.DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", [{}, {"eta": 0.6}, {"solver": "ancestral"}])
def test_batch_size_changes_nothing(model: Model, h: Tensor, settings: dict[str, object]) -> None:
    whole = model.sample(h, per=4, steps=5, batch_size=20, **settings)  # type: ignore[arg-type]
    assert whole.shape == (5, 4, 3, 8, 8)
    for size in (1, 3):  # 3: batches that begin and end inside an item
        split = model.sample(h, per=4, steps=5, batch_size=size, **settings)  # type: ignore[arg-type]
        assert float((split - whole).abs().max()) <= BATCH_SPLIT_ABS


def test_a_batch_equals_single_runs(model: Model, h: Tensor) -> None:
    together = model.sample(h[:3], items=[10, 20, 30], per=2, steps=5, eta=0.5)
    for row, item in enumerate((10, 20, 30)):
        alone = model.sample(h[row : row + 1], items=[item], per=2, steps=5, eta=0.5)
        assert float((alone[0] - together[row]).abs().max()) <= BATCH_SPLIT_ABS


def test_representations_are_not_mixed_up(model: Model, h: Tensor) -> None:
    """Same noise, other h: other images; and each row follows its own h."""
    out = model.sample(h[:2], items=[0, 0], per=1, steps=5)
    swapped = model.sample(h[[1, 0]], items=[0, 0], per=1, steps=5)
    assert float((out[0] - out[1]).abs().max()) > 1e-2
    torch.testing.assert_close(swapped, out[[1, 0]], atol=BATCH_SPLIT_ABS, rtol=0)


def test_same_item_and_representation_give_the_same_images(model: Model, h: Tensor) -> None:
    out = model.sample(h[[0, 0]], items=[3, 3], per=2, steps=5, solver="ancestral")
    torch.testing.assert_close(out[0], out[1], atol=BATCH_SPLIT_ABS, rtol=0)
    assert float((out[0, 0] - out[0, 1]).abs().max()) > 1e-2


def test_seed_changes_images(model: Model, h: Tensor) -> None:
    assert not torch.equal(model.sample(h[:1], per=1, steps=2), model.sample(h[:1], per=1, steps=2, seed=1))


def test_given_noise_replaces_the_keyed_one(model: Model, h: Tensor) -> None:
    shape = (3, 8, 8)
    x_T = noise.keyed_noise(0, [(r, s) for r in range(5) for s in range(2)], 0, shape, "cpu").view(5, 2, *shape)
    steps = torch.stack(
        [
            noise.keyed_noise(0, [(r, s) for r in range(5) for s in range(2)], i + 1, shape, "cpu").view(5, 2, *shape)
            for i in range(4)
        ]
    )
    keyed = model.sample(h, per=2, steps=4, solver="ancestral")
    given = model.sample(h, per=2, steps=4, solver="ancestral", noise=x_T, step_noise=steps, seed=99, batch_size=3)
    torch.testing.assert_close(given, keyed, atol=BATCH_SPLIT_ABS, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near(h: Tensor, precision: str) -> None:
    full = small.model()
    from rcdm_fast import engines

    reduced = small.model()
    reduced.engine = engines.make("eager", reduced.unet, reduced.config, reduced.device, precision)
    x = torch.randn(3, 3, 8, 8)
    expected = full.network(x, torch.full((3,), 500), h[:3])
    from rcdm_fast.diffusion import conditioning
    from rcdm_fast.diffusion.schedule import Schedule

    plan = conditioning.make_plan(reduced.unet, Schedule.make(reduced.config.schedule), h[:3], None)
    actual = reduced.engine.bind(plan, torch.arange(3)).predict(x, 500)
    assert actual.dtype == torch.float32
    error = float((actual - expected).norm() / expected.norm())
    assert 0 < error < 0.03
    assert precision in reduced.engine.describe()


def test_class_conditional_and_unconditional_models() -> None:
    labelled = small.model(representation_dim=0, num_classes=4)
    out = labelled.sample(label=torch.tensor([0, 3]), items=[0, 0], per=2, steps=3)
    assert out.shape == (2, 2, 3, 8, 8)
    assert float((out[0] - out[1]).abs().max()) > 1e-3
    assert labelled.invert(small.make_images(2), label=torch.tensor([1, 2]), steps=3).shape == (2, 3, 8, 8)
    free = small.model(representation_dim=0)
    assert free.sample(per=3, steps=3).shape == (1, 3, 3, 8, 8)
    assert free.sample(items=[4, 5], per=1, steps=3).shape == (2, 1, 3, 8, 8)
    assert free.invert(small.make_images(2), steps=3).shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match="label"):
        labelled.sample(per=1)
    with pytest.raises(ConfigError, match=r"0\.\.3"):
        labelled.sample(label=torch.tensor([4]))
    with pytest.raises(ConfigError, match="no representation"):
        free.sample(torch.zeros(1, 6))


def test_fixed_variance_model() -> None:
    fixed = small.model(learn_sigma=False)
    assert fixed.sample(torch.zeros(1, small.DIM), per=2, steps=4, solver="ancestral").isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": torch.zeros(2, 5)}, r"\[R,6\]"),
        ({"h": torch.zeros(6)}, r"\[R,6\]"),
        ({"h": torch.full((1, 6), torch.nan)}, "NaN"),
        ({}, r"needs h \[R,6\]"),
        ({"h": torch.zeros(2, 6), "items": [1]}, "1 items for 2"),
        ({"h": torch.zeros(2, 6), "per": 0}, "per"),
        ({"h": torch.zeros(2, 6), "steps": 0}, "steps must be at least 1, got 0"),
        ({"h": torch.zeros(2, 6), "solver": "magic"}, "no solver"),
        ({"h": torch.zeros(2, 6), "noise": torch.zeros(2, 8, 3, 4, 4)}, "noise must be"),
        ({"h": torch.zeros(2, 6), "step_noise": torch.zeros(2, 2, 8, 3, 8, 8)}, "step_noise must be"),
        ({"h": torch.zeros(2, 6), "label": torch.zeros(2)}, "no label"),
        ({"h": torch.zeros(2, 6), "batch_size": -1}, "batch_size"),
        ({"h": torch.zeros(2, 6), "batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_requests(model: Model, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(**arguments)  # type: ignore[arg-type]


def test_samples_that_are_not_finite_are_reported(h: Tensor) -> None:
    broken = small.model()
    with torch.no_grad():
        broken.unet.get_parameter("out.2.bias").fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        broken.sample(h[:1], per=1, steps=2)


def test_encode_takes_files_images_and_tensors(model: Model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pixels = (np.random.default_rng(0).random((20, 30, 3)) * 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    from_file = model.encode(tmp_path / "a.png")
    assert from_file.shape == (1, small.DIM)
    assert from_file.dtype == torch.float32
    assert torch.equal(from_file, model.encode(image))
    assert torch.equal(from_file, model.encode(load_image(image)))
    both = model.encode([str(tmp_path / "a.png"), image])
    assert both.shape == (2, small.DIM)
    assert model.view(image).shape == (1, 3, 8, 8)
    with pytest.raises(ImageError, match="no images"):
        model.encode([])
    with pytest.raises(ImageError, match=r"\[-1,1\]"):
        model.encode(torch.full((1, 3, 8, 8), 255.0))


def test_levels_are_no_images_in_floats(model: Model) -> None:
    """Values 0..255 are refused wherever images are taken, also where none is encoded; 8-bit ones are understood."""
    photos = small.make_images(2)
    h, levels = model.encode(photos), (photos + 1) * 127.5
    forms: tuple[Any, ...] = (levels, levels.numpy(), list(levels), [levels[0].numpy(), levels[1]])
    for given in forms:
        for call in (model.encode, model.invert, lambda images: model.invert(images, h, steps=2)):
            with pytest.raises(ImageError, match=r"expected images in \[-1,1\], got values in"):
                call(given)
    for given in (levels[0], levels[:1], photos[0] + 1):
        with pytest.raises(ImageError, match=r"expected images in \[-1,1\], got values in"):
            model.invert(given, h[:1])
    bytes_ = to_uint8(photos)
    exact = model.invert(from_uint8(bytes_), h, steps=2)
    assert torch.equal(model.invert(bytes_.permute(0, 2, 3, 1).numpy(), h, steps=2), exact)
    with pytest.raises(ImageError, match="uint8"):
        model.invert(bytes_, h)


def test_without_an_encoder_only_encode_fails(h: Tensor) -> None:
    bare = Model.from_network(small.network(), small.SCHEDULE)
    assert bare.sample(h[:1], per=1, steps=2).shape == (1, 1, 3, 8, 8)
    with pytest.raises(SamplingError, match="encoder"):
        bare.encode(small.make_images(1))
    with pytest.raises(SamplingError, match="encoder"):
        bare.invert(small.make_images(1))


def test_inversion_encodes_by_itself_and_batches_alike(model: Model) -> None:
    photos = small.make_images(5)
    given = model.invert(photos, model.encode(photos), steps=4)
    torch.testing.assert_close(model.invert(photos, steps=4, batch_size=2), given, atol=BATCH_SPLIT_ABS, rtol=0)
    assert model.invert(small.make_images(2, size=21), steps=2).shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match="iterations must be at least 0, got -1"):
        model.invert(photos, iterations=-1)


def test_inversion_leads_back_with_few_steps(model: Model) -> None:
    photos = small.make_images(4)
    h = model.encode(photos)

    def error(iterations: int) -> float:
        x_T = model.invert(photos, h, steps=25, iterations=iterations)
        return float(
            (model.sample(h, per=1, steps=25, solver="ddim", noise=x_T[:, None])[:, 0].cpu() - photos).abs().mean()
        )

    published, one, three = error(0), error(1), error(3)
    assert three < one < published


def test_interpolation_ends_exactly_at_both(model: Model, h: Tensor) -> None:
    ways = model.interpolate(h[0], h[1], frames=4, per=2, steps=4)
    assert ways.shape == (2, 4, 3, 8, 8)
    ends = model.sample(h[:2], items=[0, 0], per=2, steps=4)
    torch.testing.assert_close(ways[:, 0], ends[0], atol=BATCH_SPLIT_ABS, rtol=0)
    torch.testing.assert_close(ways[:, -1], ends[1], atol=BATCH_SPLIT_ABS, rtol=0)
    with pytest.raises(ConfigError, match="2 frames"):
        model.interpolate(h[0], h[1], frames=1)


def test_an_inversion_that_is_not_finite_is_an_error() -> None:
    model = small.quick_model()
    with torch.no_grad():
        for value in model.unet.out[2].parameters():
            value.fill_(3e38)
    h = torch.zeros(3, small.DIM)
    for solver in ("ddim", "unipc_2"):
        with pytest.raises(SamplingError, match=r"x_T of images 0\.\.1 are not finite \(fp32, eager\)"):
            model.invert(small.make_images(3), h, steps=4, clip=False, solver=solver, batch_size=2)


def test_interpolation_paths() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    linear = interpolation_path(a, b, 3, "linear")
    torch.testing.assert_close(linear, torch.tensor([[2.0, 0.0], [1.0, 2.0], [0.0, 4.0]]))
    spherical = interpolation_path(a, b, 5, "spherical")
    one, other = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    for mode in ("linear", "spherical"):  # the ends are those that were given, not up to rounding
        path = interpolation_path(one, other, 7, mode)
        assert torch.equal(path[0], one)
        assert torch.equal(path[-1], other)
    torch.testing.assert_close(spherical.norm(dim=1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    angles = torch.atan2(spherical[:, 1], spherical[:, 0])
    torch.testing.assert_close(angles.diff(), torch.full((4,), torch.pi / 8))
    with pytest.raises(ConfigError, match="not zero"):
        interpolation_path(a, torch.zeros(2), 3, "spherical")
    with pytest.raises(ConfigError, match="widths"):
        interpolation_path(a, torch.zeros(3), 3, "linear")


def test_network_checks_its_input(model: Model, h: Tensor) -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"0\.\.999"):
        model.network(x, torch.tensor([0, 1000]), h[:2])
    with pytest.raises(ConfigError, match="5 rows for 2"):
        model.network(x, torch.tensor([0, 1]), h)
    with pytest.raises(ConfigError, match=r"\[N,3,8,8\]"):
        model.network(torch.zeros(2, 3, 9, 9), torch.tensor([0, 1]), h[:2])
    assert model.network(x, torch.tensor([0, 1]), h[:2]).shape == (2, 6, 8, 8)


def test_interrupted_work_keeps_what_is_finished(model: Model, h: Tensor) -> None:
    request = model.request(h, per=2, steps=2)
    stream = model.batches(request, batch_size=4)
    place, images = next(stream)
    del stream
    assert (place.start, place.stop) == (0, 4)
    expected = model.sample(h, per=2, steps=2).flatten(0, 1)[:4]
    torch.testing.assert_close(images, expected, atol=BATCH_SPLIT_ABS, rtol=0)


@pytest.mark.parametrize("way", ["sample", "sequence", "interpolate", "invert"])
def test_batches_and_progress_are_as_asked(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = small.quick_model(), torch.randn(5, small.DIM)
    seen: list[tuple[int, bool]] = []
    real = sampling.run

    def run(engine: Any, plan: Any, request: Any, size: int, progress: bool, *rest: Any) -> Any:
        seen.append((size, progress))
        return real(engine, plan, request, size, False, *rest)

    evaluated: list[int] = []
    evaluate = model.engine.evaluate

    def counted(batch: Any, x: Tensor, k: int) -> Tensor:
        evaluated.append(len(x))
        return evaluate(batch, x, k)

    monkeypatch.setattr(sampling, "run", run)
    monkeypatch.setattr(model.engine, "evaluate", counted)
    if way == "invert":
        model.invert(small.make_images(5), h, steps=1, batch_size=2)
    elif way == "interpolate":
        model.interpolate(h[0], h[1], 5, steps=1, batch_size=2, progress=True)
    else:
        getattr(model, way)(h, per=1, steps=1, batch_size=2, progress=True)
    assert set(evaluated) == {2, 1}
    assert seen == ([] if way == "invert" else [(2, True)])
