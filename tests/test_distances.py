"""Distances of distributions against closed forms, torchmetrics and plain loops; feature spaces; .npz files."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.data import sample_files
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import features
from rcdm_fast.evaluation import EvaluateConfig, compare, draw, evaluate
from rcdm_fast.images import to_uint8
from rcdm_fast.metrics import distances, distributions
from tests import small


def gaussian(count: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """Points [count,D] whose mean and unbiased covariance root' root hold to rounding, not only on average."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x -= x.mean(dim=0)
    whitening = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    points: Tensor = x @ whitening @ root + mean
    return points


def points(count: int, width: int = 5, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator) + shift


def some_images(count: int, labels: bool = False) -> ImageSet:
    pixels = to_uint8(small.make_images(count))
    paths = tuple(Path(str(number)) for number in range(count))
    return ImageSet(pixels, torch.arange(count) % 3 if labels else None, ("a", "b", "c") if labels else (), paths, "x")


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    scale_a, scale_b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 1.5, 0.1]).double()
    a, b = gaussian(200, 0 * ones, scale_a.diag()), gaussian(300, 2 * ones, scale_b.diag(), seed=1)
    expected = 4 * 4 + (scale_a - scale_b).square().sum()  # commuting covariances
    assert distances.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_frechet_distance_agrees_with_scipy_and_torchmetrics_on_other_covariances() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = points(120) @ points(5, seed=2), points(90, seed=1) @ points(5, seed=3) + 1
    mu_a, mu_b, cov_a, cov_b = a.mean(dim=0), b.mean(dim=0), a.T.cov(), b.T.cov()
    root = linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = float((mu_a - mu_b).square().sum() + (cov_a + cov_b).trace()) - 2 * np.trace(root)
    got = distances.frechet_distance(a, b)
    assert got == pytest.approx(expected, rel=1e-9)
    assert got == pytest.approx(float(fid._compute_fid(mu_a, cov_a, mu_b, cov_b)), rel=1e-9)


def test_frechet_distance_is_symmetric_blind_to_rotation_and_zero_for_equal_sets() -> None:
    a, b = points(60), points(70, seed=1, shift=0.5)
    rotation = torch.linalg.qr(points(5, seed=2)).Q
    want = distances.frechet_distance(a, b)
    assert distances.frechet_distance(b, a) == pytest.approx(want)
    assert distances.frechet_distance(a @ rotation + 1e3, b @ rotation + 1e3) == pytest.approx(want)
    assert distances.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * want)
    assert distances.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("constant", [False, True])
def test_frechet_distance_holds_where_covariances_are_singular(constant: bool) -> None:
    few = points(4, width=9)
    if constant:
        few[:, 3:] = 1e4
    assert distances.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert distances.frechet_distance(few, few + 1) == pytest.approx(9, abs=1e-6)


def test_kernel_distance_is_unbiased_for_equal_distributions_and_sees_a_shift() -> None:
    found = [distances.kernel_distance(points(40, seed=s), points(30, seed=900 + s), 1)[0] for s in range(400)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3.5 * error  # with the diagonal kept, the mean is 50 errors away
    assert min(found) < 0
    value, spread = distances.kernel_distance(points(200), points(200, seed=1, shift=1.0), 20, 50)
    assert value > 5 * spread / np.sqrt(20) > 0


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = points(50), points(50, seed=1, shift=0.3)
    value, spread = distances.kernel_distance(a, b, subsets=3)
    assert value == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-12)  # each subset is the whole set


def test_precision_and_recall_of_equal_disjoint_and_nested_sets() -> None:
    a = points(80)
    assert distances.precision_recall(a, a) == (1, 1)
    assert distances.precision_recall(a, a + 100) == (0, 0)
    assert distances.density_coverage(a, a + 100) == (0, 0)
    assert distances.density_coverage(a, a)[1] == 1
    narrow = a[:40] * 0.01
    precision, recall = distances.precision_recall(a, narrow)
    assert precision == 1
    assert recall < 0.1
    assert distances.precision_recall(narrow, a) == (recall, precision)


def test_precision_recall_density_and_coverage_agree_with_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "CHUNK", 7)
    real, samples = points(31) + 50, points(23, seed=1) + 51

    def radius(set_: Tensor, index: int, k: int) -> float:
        others = [float((set_[index] - set_[j]).norm()) for j in range(len(set_)) if j != index]
        return sorted(others)[k - 1]

    def inside(point: Tensor, set_: Tensor, k: int) -> list[bool]:
        return [float((point - set_[i]).norm()) <= radius(set_, i, k) for i in range(len(set_))]

    precision = np.mean([any(inside(s, real, 3)) for s in samples])
    recall = np.mean([any(inside(r, samples, 3)) for r in real])
    assert distances.precision_recall(real, samples) == pytest.approx((precision, recall))
    assert 0 < precision < recall < 1
    held = np.array([inside(s, real, 5) for s in samples])
    expected = (held.sum() / (5 * len(samples)), held.any(axis=0).mean())
    assert distances.density_coverage(real, samples) == pytest.approx(expected)


def test_repeated_images_lie_in_their_own_balls() -> None:
    repeated = points(3, width=40).repeat(6, 1) * 1e3
    assert distances.precision_recall(repeated, repeated.flip(0)) == (1, 1)


def test_inception_score_of_certain_and_of_uncertain_classes() -> None:
    sure = 100 * torch.eye(4).repeat(30, 1)
    mean, spread = distances.inception_score(sure, splits=10)
    assert mean == pytest.approx(4)
    assert spread == pytest.approx(0, abs=1e-9)
    assert distances.inception_score(torch.zeros(50, 4))[0] == pytest.approx(1)


def test_errors_of_distances() -> None:
    with pytest.raises(ConfigError, match="not from one space"):
        distances.frechet_distance(points(9), points(9, width=4))
    with pytest.raises(ConfigError, match="samples: 3 images; this distance needs at least 4"):
        distances.precision_recall(points(9), points(3))
    with pytest.raises(ConfigError, match="NaN"):
        distances.kernel_distance(points(9), points(9) * torch.nan)
    with pytest.raises(ConfigError, match=r"\[N,D\]"):
        distances.frechet_distance(points(9)[0], points(9))
    with pytest.raises(ConfigError, match="at least 6 real images and 6 samples, got 9 and 5"):
        distributions.measure("made up", points(9), points(5))


def test_a_report_names_its_space_its_numbers_and_a_singular_covariance() -> None:
    enough = distributions.measure("made up", points(30), points(20, seed=1))
    assert (enough.features, enough.dim, enough.real, enough.samples) == ("made up", 5, 30, 20)
    assert (enough.rank_deficient, enough.kernel_subset_size) == (False, 20)
    assert "20 samples beside 30 real images; features: made up (5)" in distributions.table(enough)[0]
    assert enough.few
    assert "under 10 for each of 5 features" in distributions.table(enough)[-1]
    assert "warning" not in "\n".join(distributions.table(distributions.measure("x", points(50), points(50, seed=1))))
    assert not distributions.measure("x", points(6), points(6, seed=1)).rank_deficient
    singular = distributions.measure("x", points(30, width=20), points(20, width=20))
    assert singular.rank_deficient
    assert "under 21 images" in distributions.table(singular)[-1]
    for seed in (3, 4):  # of the subsets
        told = distributions.measure("made up", points(30), points(20, seed=1), seed=seed)
        own = distances.kernel_distance(points(30), points(20, seed=1), 100, 1000, seed)
        assert (told.kernel_distance, told.kernel_subset_spread) == own
        assert told.kernel_distance != enough.kernel_distance


def test_features_of_more_images_than_are_seen_at_once() -> None:
    pixels = to_uint8(small.make_images(features.BATCH + 3))
    encoder = small.encoder()
    seen: list[int] = []

    def network(part: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(part))
        return part.double().mean(dim=(2, 3)), part[:, :1, 0, 0]

    found, none = features.of_encoder(encoder).of(pixels)
    assert none is None
    torch.testing.assert_close(found, encoder.encode(pixels / 127.5 - 1))
    found, logits = features.FeatureSpace("made up", inception=network).of(pixels)
    assert logits is not None
    torch.testing.assert_close(found, pixels.float().mean(dim=(2, 3)))
    assert torch.equal(logits, pixels[:, :1, 0, 0].float())
    assert seen == [features.BATCH, 3]


def test_a_space_is_called_by_its_pooling_too() -> None:
    encoder = small.encoder()
    assert features.called(encoder) == "module, layer backbone"
    encoder._config = dataclasses.replace(encoder.config, layer="trunk", pooling="map")
    assert features.called(encoder) == "module, layer trunk, pooling map"


def test_fid_and_inception_score_are_named_only_in_the_space_of_inception() -> None:
    data = some_images(12)
    drawn = draw(small.model(), data, EvaluateConfig(per=2, steps=2))
    plain = compare(drawn, features.of_encoder(small.encoder()))
    text = "\n".join(distributions.table(plain))
    assert plain.inception is None
    assert "FID" not in text
    assert "Inception" not in text
    assert '"fid"' not in json.dumps(dataclasses.asdict(plain))
    assert "Fréchet distance" in text

    def network(pixels: Tensor) -> tuple[Tensor, Tensor]:
        assert pixels.dtype == torch.uint8
        return pixels.float().mean(dim=(2, 3)), torch.zeros(len(pixels), 1008)

    named = compare(drawn, features.FeatureSpace("Inception, made up", inception=network))
    assert named.inception is not None
    assert named.inception.fid == named.frechet_distance
    assert named.inception.inception_score == pytest.approx(1)
    text = "\n".join(distributions.table(named))
    assert "FID" in text
    assert "Inception Score" in text
    assert "Fréchet distance   " not in text


def test_inception_weights_are_known_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        features.of_inception(tmp_path / "none.pth")
    other = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, other)
    with pytest.raises(ConfigError, match="not the weights that FID is defined by"):
        features.of_inception(other)
    monkeypatch.setattr(features, "SHA256_START", "")
    with pytest.raises(ConfigError, match=r"damaged|pip install"):
        features.of_inception(other)


def test_the_inception_network_gives_features_and_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    state = module.FeatureExtractorInceptionV3("made-up", ["2048"]).state_dict()
    monkeypatch.undo()
    monkeypatch.setattr(features, "SHA256_START", "")
    torch.save(state, tmp_path / "weights.pth")
    space = features.of_inception(tmp_path / "weights.pth")
    found, logits = space.of(some_images(2).pixels)
    assert found.shape == (2, 2048)
    assert logits is not None
    torch.testing.assert_close(logits, found @ state["fc.weight"].T, rtol=1e-4, atol=1e-5)


def test_the_models_own_space_reuses_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = some_images(14, labels=True), EvaluateConfig(sources=6, per=3, steps=2)
    model = small.model()
    calls: list[int] = []
    sample = model.sample

    def counted(*given: object, **options: object) -> Tensor:
        calls.append(1)
        return sample(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "sample", counted)
    assert model.encoder is not None
    result = evaluate(model, data, config, space=features.of_encoder(model.encoder))
    assert len(calls) == 1
    assert result.distribution is not None
    assert (result.distribution.samples, result.distribution.real) == (6, 8)
    drawn = draw(model, data, config)
    assert drawn.labels is not None
    assert drawn.labels.tolist() == (drawn.sources % 3).repeat_interleave(3).tolist()
    again = compare(drawn, features.of_encoder(small.encoder()))  # the same network, encoding 8-bit images
    assert again.frechet_distance == pytest.approx(result.distribution.frechet_distance, rel=0.02)
    equal = compare(drawn, features.of_encoder(model.encoder), reference=drawn.images[:, 0])
    assert equal.frechet_distance < 1e-3
    few = dataclasses.replace(config, sources=5)
    with pytest.raises(ConfigError, match="at least 6 real"):
        evaluate(model, some_images(5), few, space=features.of_encoder(model.encoder))


def test_no_number_reaches_its_ideal_with_few_images_and_the_ceiling_says_so() -> None:
    """Two sets from one distribution: nothing is wrong with the samples, and everything looks as if."""
    found = distributions.measure("x", points(600, 20), points(60, 20, 1), others=points(60, 20, 2))
    assert found.of_real is not None
    assert found.coverage < 0.6
    assert found.frechet_distance > 2
    for name in ("frechet_distance", "precision", "coverage", "density"):
        assert getattr(found, name) == pytest.approx(getattr(found.of_real, name), rel=0.25)
    lines = distributions.table(found)
    assert "as many real images" in lines[1]
    row = next(line for line in lines if "coverage" in line)
    assert f"{found.coverage:.3f}" in row
    assert f"{found.of_real.coverage:.3f}" in row
    assert json.loads(json.dumps(dataclasses.asdict(found)))["of_real"]["coverage"] == found.of_real.coverage
    with pytest.raises(ConfigError, match="59 real images in the place of 60 samples"):
        distributions.measure("x", points(600, 20), points(60, 20, 1), others=points(59, 20, 2))


def test_the_warning_begins_where_numbers_alone_make_two_and_a_half_percent() -> None:
    dim = 20
    count = distributions.ENOUGH * dim
    found = [distances.frechet_distance(points(4000, dim, 99), points(count, dim, seed)) for seed in range(10)]
    assert np.mean(found) / dim == pytest.approx(1 / (4 * distributions.ENOUGH), rel=0.35)
    assert not distributions.measure("x", points(count, dim), points(count, dim, 1)).few
    few = distributions.measure("x", points(count, dim), points(count - 1, dim, 1))
    assert few.few
    assert "199 images are under 10 for each of 20 features" in distributions.table(few)[-1]


def test_what_subsets_differ_by_is_not_called_an_error() -> None:
    whole = distributions.measure("x", points(60), points(60, seed=1))
    assert whole.kernel_subset_spread == pytest.approx(0, abs=1e-12)  # every subset is the set, and nobody is certain
    said = "\n".join(distributions.table(whole))
    assert "+-" not in said
    assert "no standard error" in said


def test_distances_of_real_neighbors() -> None:
    data = some_images(20)
    result = evaluate(small.model(), data, EvaluateConfig(per=2, steps=2, resamples=100))
    h = small.encoder().encode(data.floats(slice(None))).double()
    squared = (h[:, None] - h[None]).square().sum(dim=2).sort(dim=1).values  # column 0 is the image itself
    assert set(result.nearest_real) == {1, 5, 10}
    for k, interval in result.nearest_real.items():
        assert interval.value == pytest.approx(float(squared[:, k].mean()))
        assert interval.low < interval.value < interval.high
    assert result.nearest == result.nearest_real[1].value
    assert set(evaluate(small.model(), some_images(6), EvaluateConfig(steps=2)).nearest_real) == {1, 5}


def test_npz_files_have_the_form_that_adm_reads(tmp_path: Path) -> None:
    pixels = some_images(4).pixels
    path = tmp_path / "new" / "samples.data"  # numpy would append .npz
    sample_files.write_npz(path, pixels, torch.tensor([2, 0, 1, 1]))
    assert [file.name for file in path.parent.iterdir()] == ["samples.data"]
    with np.load(path) as stored:
        assert set(stored) == {"arr_0", "arr_1"}
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_0"].shape == (4, 8, 8, 3)
        assert stored["arr_0"][1, 2, 3, 0] == pixels[1, 0, 2, 3]
        assert stored["arr_1"].tolist() == [2, 0, 1, 1]
    assert torch.equal(sample_files.read_npz(path), pixels)
    sample_files.write_npz(path, pixels)
    with np.load(path) as stored:
        assert set(stored) == {"arr_0"}


def test_npz_files_of_oblong_images(tmp_path: Path) -> None:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    sample_files.write_npz(tmp_path / "a.npz", pixels)
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["arr_0"].shape == (2, 4, 5, 3)
        assert stored["arr_0"][1, 3, 2].tolist() == pixels[1, :, 3, 2].tolist()
    assert torch.equal(sample_files.read_npz(tmp_path / "a.npz"), pixels)
    np.savez(tmp_path / "none.npz", np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"arr_0 must be uint8 \[N,H,W,3\], is uint8 \[0, 8, 8, 3\]"):
        sample_files.read_npz(tmp_path / "none.npz")


def test_errors_of_npz_files(tmp_path: Path) -> None:
    pixels = some_images(4).pixels
    path = tmp_path / "x.npz"
    with pytest.raises(ConfigError, match="uint8"):
        sample_files.write_npz(path, pixels.float())
    with pytest.raises(ConfigError, match="4 images with labels"):
        sample_files.write_npz(path, pixels, torch.zeros(3))
    assert not path.exists()
    with pytest.raises(ConfigError, match="no such file"):
        sample_files.read_npz(path)
    path.write_text("text")
    with pytest.raises(ConfigError, match=r"cannot be read .*not a zip"):
        sample_files.read_npz(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ConfigError, match="arr_0 is missing"):
        sample_files.read_npz(path)
    np.savez(path, np.zeros((2, 8, 8, 3)))
    with pytest.raises(ConfigError, match="must be uint8"):
        sample_files.read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00\x0a\x00{'shape': (")
    with pytest.raises(ConfigError, match="arr_0 cannot be read"):
        sample_files.read_npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as file:
        shape = (100, 1024, 1024, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(shape[0]):
            file.write(bytes(3 << 20))
    with pytest.raises(ConfigError, match=r"arr_0\.npy claims 3\.15e\+08 bytes"):
        sample_files.read_npz(path)


def test_parts_of_an_inception_score_are_mixed_by_the_seed() -> None:
    """Logits in the order of their classes: parts of them know one class each, unless they are mixed before."""
    logits = 50 * torch.eye(10).repeat_interleave(6, dim=0)
    found = [distributions.measure("x", points(60), points(60, seed=1), logits, seed).inception for seed in (0, 1)]
    for each in found:
        assert each is not None
        assert each.inception_score > 2
        assert each.inception_score_std > 0
    assert found[0] != found[1]
    assert distances.inception_score(logits)[0] == pytest.approx(1)


def test_real_images_stand_in_the_second_column_with_the_seed_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "SUBSET_SIZE", 6)
    real, samples, others = points(40), points(30, seed=1, shift=2.0), points(30, seed=2)
    found = distributions.measure("x", real, samples, seed=5, others=others)
    assert found.of_real == distributions.measure("x", real, others, seed=5)
    assert found.of_real != distributions.measure("x", real, others)
    lines = distributions.table(found)
    names = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")
    for line, name, form in zip(lines[2:8], names, (".4g", ".4g", *[".3f"] * 4), strict=True):
        assert line.split()[-2:] == [f"{getattr(each, name):{form}}" for each in (found, found.of_real)], name
    assert lines[1].split()[0] == "samples"


@pytest.mark.parametrize("sizes", [(9, 30), (30, 9)])
def test_the_smaller_set_says_whether_images_suffice(sizes: tuple[int, int]) -> None:
    found = distributions.measure("x", points(sizes[0], 9), points(sizes[1], 9, seed=1))
    assert found.rank_deficient
    assert found.few
    assert found.kernel_subset_size == 9
    enough = distributions.measure("x", points(50), points(60, seed=1))
    assert not enough.few
    few = distributions.measure("x", points(49 if sizes[0] == 9 else 60), points(60 if sizes[0] == 9 else 49, seed=1))
    assert "49 images are under 10 for each of 5" in distributions.table(few)[-1]
