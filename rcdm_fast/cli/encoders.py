"""`rcdm encoders`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from rcdm_fast.class_accuracy import ClassAccuracy
    from rcdm_fast.data.image_set import ImageSet
    from rcdm_fast.encoders import Encoder

SIDE = 224  # pixels of the image that is drawn where none is given


def encoders(
    spec: Annotated[
        str, typer.Argument(help="The encoder, such as timm:resnet18 or python:net.py:TinyNet.", show_default=False)
    ],
    photo: Annotated[
        Path | None, typer.Argument(help="Photograph to look at. Default: a drawn one.", show_default=False)
    ] = None,
    out: Annotated[Path | None, common.out("Image of what the encoder sees of the photo, beside it.")] = None,
    data: Annotated[
        str | None, common.data("With --test-data: labeled images that class accuracy is fitted on")
    ] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Labeled images whose classes it is asked for, as --data.")
    ] = None,
    trust_repo: common.Trust = False,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Look into an encoder: its layers and what it sees.

    Layers that layer= can name, with shapes for one image; how images are made for it, and where that is from. With
    labeled images also how well its representations tell classes apart, by kNN and a linear probe.

    Example: rcdm encoders "timm:resnet18?layer=layer3&pooling=mean" cat.jpg --out seen.png
    """
    from rcdm_fast import encoders as room
    from rcdm_fast import outputs, provenance
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.devices import best
    from rcdm_fast.encoders import ImageEncoder, inside
    from rcdm_fast.images import image_sheet, load_image, to_pil

    if out is not None:
        outputs.check_image(out, 2 * SIDE, SIDE)
    if (data is None) != (test_data is None):
        raise ConfigError("class accuracy is fitted on --data and asked of --test-data; give both or neither")
    common.check_writable(json)
    encoder = room.build(spec, best(device), trust_repo=trust_repo)
    config = encoder.config
    image = _drawn() if photo is None else load_image(photo)
    seen = encoder.view(image.to(encoder.device))
    layers = inside.layers_of(encoder) if isinstance(encoder, ImageEncoder) else []
    common.report(f"{config.source}: layer {config.layer}, pooling {config.pooling} -> representation [{encoder.dim}]")
    rows = inside.convention(config, room.stated(spec))
    common.report("\nimages")
    for name, value, origin in rows:
        common.report(f"  {name:14s} {value:28s} {origin}")
    common.report("\nlayers (one image)" if layers else "\nno layers can be named")
    wide = max((len(each.name) for each in layers), default=0)
    for each in layers:
        common.report(f"  {each.name:{wide}s}  {list(each.shape)!s:20s} {each.kind}")
    if out is not None:
        pair = [to_pil(image[0]), to_pil(seen[0])]
        outputs.write_image(image_sheet([pair], cell=SIDE, column_titles=["photo", "seen"]), out)
        common.report(f"\n{out}: the photo, and the {config.image_size} px that the encoder sees of it")
    side = config.resize_to or config.image_size  # the encoder cuts its images out of these
    sets = {
        name: open_data(given, side) for name, given in (("data", data), ("test_data", test_data)) if given is not None
    }
    accuracy = _accuracy(encoder, **sets) if sets else None
    if json is not None:
        facts = {
            "source": config.source,
            "layer": config.layer,
            "pooling": config.pooling,
            "dim": encoder.dim,
            "convention": {name: {"value": getattr(config, name), "from": origin} for name, _, origin in rows},
            "layers": [vars(each) for each in layers],
            "hash": provenance.encoder_hash(encoder),
            "accuracy": None if accuracy is None else dataclasses.asdict(accuracy),
            "made_by": provenance.made_by(data=sets, device=encoder.device),
        }
        common.write_json(json, facts)


def _accuracy(encoder: Encoder, data: ImageSet, test_data: ImageSet) -> ClassAccuracy:
    """Measured, and told."""
    from rcdm_fast import class_accuracy

    found = class_accuracy.measure(encoder, data, test_data)
    common.report(f"\nclasses of {found.test_images} images, {found.classes} in all, from {found.images} others")
    for name, value in (("kNN", found.knn), ("linear probe", found.linear)):
        common.report(f"  {name:14s} {value.text('.1f', 100)} %")
    return found


def _drawn() -> Tensor:
    """An image [1,3,H,W] wider than high, so that what is cut off shows."""
    import torch

    from rcdm_fast.data import world
    from rcdm_fast.images import from_uint8

    pair = world.find(f"shapes?count=2&size={SIDE}").pixels([0, 1])
    wide = torch.cat(list(pair), dim=-1)[..., : SIDE * 3 // 2]
    return from_uint8(wide)[None]
