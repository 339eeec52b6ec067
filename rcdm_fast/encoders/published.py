"""The five ResNet-50 encoders that the published RCDMs were trained on: ``published:NAME``.

simclr, barlow, vicreg and dino have a ``backbone`` (2048 dimensions, the pooled trunk) and a ``projector``, the input
of the "head" releases:

* simclr: linear, ReLU, linear to 128, before any L2 normalization;
* barlow: two linear + batch norm + ReLU layers of 8192 and a linear layer to 8192;
* vicreg: the same shape (the "expander"), with biases in its first two layers;
* dino: linear, batch norm, GELU, linear to the 256-wide bottleneck, before L2 normalization and prototypes.

supervised is torchvision's first ResNet-50 without its classifier and has a ``backbone`` only. All of them see a center
crop of 224 px in [-1,1] (mean and std 0.5, not ImageNet's), resized by halving and a bicubic step. Names and places
of the files are those of the published code (Bordes et al. 2022, facebookresearch/RCDM).

Does not know about caches or networks (`rcdm_fast.downloads`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.doors import printable
from rcdm_fast.encoders import weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, need
from rcdm_fast.encoders.sources import Source

OPTIONS = frozenset({"weights", "sha256"})
HOST = "https://dl.fbaipublicfiles.com"

State = dict[str, Tensor]
Parts = tuple[State, State]  # of the trunk (torchvision's names) and of the projector (our names)


@dataclass(frozen=True)
class Release:
    """One published encoder.

    `url` and `file` say where the checkpoint is and what it is called in the cache; `split` turns its content into
    the state dicts of `trunk` and `projector`.
    """

    url: str
    file: str
    trunk: Callable[[], nn.Module]
    projector: Callable[[], nn.Module] | None
    split: Callable[[Any], Parts]
    dim: int = 2048
    projector_dim: int = 0


def load(source: Source, fields: Mapping[str, Any]) -> Network:
    """A published encoder; downloaded once unless ``weights=FILE`` names a copy of its checkpoint.

    ``sha256=DIGEST`` is what the checkpoint must have.
    The projector is made only if ``layer`` asks for it. Loading is strict.

    Raises:
        ConfigError: unknown name or layer, or a digest that is none.
        EncoderError: torchvision is missing, or the file is not that checkpoint, or has another digest.
    """
    layer = fields.get("layer", "backbone")
    convention = config(source.name, layer, str(source))
    release = RELEASES[source.name]
    path = _checkpoint(release, source)
    try:
        trunk_state, projector_state = release.split(weights.read_pickle(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise EncoderError(
            f"{printable(path)}: not laid out as the published {source.name} checkpoint ({printable(repr(error))})"
        ) from error
    trunk = release.trunk()
    weights.load(trunk, trunk_state, f"{path} (trunk)")
    projector = None
    if layer.split(".")[0] == "projector" and release.projector is not None:
        projector = release.projector()
        weights.load(projector, projector_state, f"{path} (projector)")
    return Network(PublishedNetwork(trunk, projector), convention)


class PublishedNetwork(nn.Module):
    """A trunk and, where asked for, its projector: [N,3,224,224] -> [N,D]."""

    def __init__(self, backbone: nn.Module, projector: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, x: Tensor) -> Tensor:
        """The projector's output, or the trunk's without one."""
        h: Tensor = self.backbone(x)
        return h if self.projector is None else self.projector(h)


def config(name: str, layer: str = "backbone", source: str = "") -> EncoderConfig:
    """The configuration of a published encoder, without loading it.

    Args:
        name: simclr, barlow, vicreg, dino or supervised.
        layer: ``backbone``, ``projector`` or the dotted name of a sub-module.
        source: the full spec, where it holds options; ``published:NAME`` if left out.

    Raises:
        ConfigError: unknown name, or a projector where none was published.
    """
    if name not in RELEASES:
        raise ConfigError(f"no published encoder {name!r}; there are {', '.join(RELEASES)}")
    release = RELEASES[name]
    if layer.split(".")[0] == "projector" and release.projector is None:
        raise ConfigError(f"published:{name} has no projector")
    return EncoderConfig(
        source=source or f"published:{name}",
        layer=layer,
        image_size=224,
        interpolation="box_bicubic",
        dim={"backbone": release.dim, "projector": release.projector_dim}.get(layer, 0),
    )


def resnet50() -> nn.Module:
    """The ResNet-50 of torchvision without classifier, [N,3,224,224] -> [N,2048]."""
    model: nn.Module = need("torchvision.models", "encoders").resnet50(weights=None)
    model.set_submodule("fc", nn.Identity())
    return model


def simclr_projector() -> nn.Module:
    """[N,2048] -> [N,128]."""
    return nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))


def barlow_projector() -> nn.Module:
    """[N,2048] -> [N,8192]."""
    layers: list[nn.Module] = []
    for wide in (2048, 8192):
        layers.append(nn.Sequential(nn.Linear(wide, 8192, bias=False), nn.BatchNorm1d(8192), nn.ReLU()))
    return nn.Sequential(*layers, nn.Sequential(nn.Linear(8192, 8192, bias=False)))


def vicreg_projector() -> nn.Module:
    """[N,2048] -> [N,8192]."""
    layers: list[nn.Module] = []
    for wide in (2048, 8192):
        layers += [nn.Linear(wide, 8192), nn.BatchNorm1d(8192), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8192, 8192, bias=False))


def dino_projector() -> nn.Module:
    """[N,2048] -> [N,256]."""
    return nn.Sequential(nn.Linear(2048, 4096), nn.BatchNorm1d(4096), nn.GELU(), nn.Linear(4096, 256))


def _vissl(checkpoint: Any) -> Parts:
    """VISSL keeps trunk and heads apart; trunk names start with ``_feature_blocks.``, head layers contain ``clf``."""
    model = checkpoint["classy_state_dict"]["base_model"]["model"]
    trunk = {name.replace("_feature_blocks.", ""): tensor for name, tensor in model["trunk"].items()}
    return trunk, dict(model["heads"])


def _simclr(checkpoint: Any) -> Parts:
    trunk, heads = _vissl(checkpoint)
    stages = {"0.clf.0.": "0.", "1.clf.0.": "2."}  # two one-layer heads; the ReLU between them has no weights
    return trunk, {_renamed(name, stages): tensor for name, tensor in heads.items()}


def _barlow(checkpoint: Any) -> Parts:
    trunk, heads = _vissl(checkpoint)
    return trunk, {name.replace("clf.", ""): tensor for name, tensor in heads.items()}


def _vicreg(checkpoint: Any) -> Parts:
    return _prefixed(checkpoint["model"], "projector.")


def _dino(checkpoint: Any) -> Parts:
    teacher = checkpoint["teacher"]
    trunk, head = _prefixed(teacher.get("state_dict", teacher), "head.")
    kept = {name: tensor for name, tensor in head.items() if not name.startswith("last_layer.")}  # prototypes
    return trunk, {name.removeprefix("mlp."): tensor for name, tensor in kept.items()}


def _supervised(checkpoint: Any) -> Parts:
    return {name: tensor for name, tensor in checkpoint.items() if not name.startswith("fc.")}, {}


def _prefixed(state: Mapping[str, Tensor], projector: str) -> Parts:
    """Split one state dict at the projector's prefix; ``module.`` and ``backbone.`` in names are wrappers."""
    names = {name: name.replace("module.", "").replace("backbone.", "") for name in state}
    trunk = {new: state[name] for name, new in names.items() if not new.startswith(projector)}
    head = {new.removeprefix(projector): state[name] for name, new in names.items() if new.startswith(projector)}
    return trunk, head


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _checkpoint(release: Release, source: Source) -> Path:
    """Where the checkpoint is; downloaded if no file is named, and compared with the digest that the spec names."""
    from rcdm_fast import downloads

    sha256, file = source.options.get("sha256"), source.options.get("weights")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"{source.shown}: a SHA-256 has 64 hexadecimal digits")
    if file is None:
        return _download(release, sha256)
    if sha256 is not None:
        try:
            downloads.check_digest(Path(file), sha256)
        except downloads.DownloadError as error:
            raise EncoderError(str(error)) from error
    return Path(file)


def _download(release: Release, sha256: str | None) -> Path:
    from rcdm_fast import downloads

    url = release.url
    if not url:
        url = need("torchvision.models", "encoders").ResNet50_Weights.IMAGENET1K_V1.url
    if sha256 is None:  # torchvision's names end in the digest's first digits
        stated = re.search(r"-([0-9a-f]{8,64})\.pth$", url)
        sha256 = stated[1] if stated else None
    try:
        return downloads.fetch(url, release.file, sha256=sha256, whole=_check_whole)
    except downloads.DownloadError as error:
        raise downloads.DownloadError(f"{error}; or give the file as weights=FILE") from error


def _check_whole(path: Path) -> None:
    """Raise an error unless a download is a checkpoint from its beginning to its end."""
    from rcdm_fast import downloads

    weights.read_pickle(path)
    if zipfile.is_zipfile(path):
        downloads.check_container(path)


RELEASES: dict[str, Release] = {
    "simclr": Release(
        f"{HOST}/vissl/model_zoo/simclr_rn50_1000ep_simclr_8node_resnet_16_07_20.afe428c7/"
        "model_final_checkpoint_phase999.torch",
        "encoder-simclr.torch",
        resnet50,
        simclr_projector,
        _simclr,
        projector_dim=128,
    ),
    "barlow": Release(
        f"{HOST}/vissl/model_zoo/barlow_twins/barlow_twins_32gpus_4node_imagenet1k_1000ep_resnet50.torch",
        "encoder-barlow.torch",
        resnet50,
        barlow_projector,
        _barlow,
        projector_dim=8192,
    ),
    "vicreg": Release(
        f"{HOST}/vicreg/resnet50_fullckpt.pth",
        "encoder-vicreg.pth",
        resnet50,
        vicreg_projector,
        _vicreg,
        projector_dim=8192,
    ),
    "dino": Release(
        f"{HOST}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain_full_checkpoint.pth",
        "encoder-dino.pth",
        resnet50,
        dino_projector,
        _dino,
        projector_dim=256,
    ),
    # torchvision knows where its own weights are
    "supervised": Release("", "encoder-supervised.pth", resnet50, None, _supervised),
}
