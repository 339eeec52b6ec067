"""`rcdm encoders`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224  # pixels of the image that is drawn where none is given


def encoders(
    spec: Annotated[
        str, typer.Argument(help="The encoder, such as timm:resnet18 or python:net.py:TinyNet.", show_default=False)
    ],
    photo: Annotated[
        Path | None, typer.Argument(help="Photograph to look at. Default: a drawn one.", show_default=False)
    ] = None,
    out: Annotated[Path | None, common.out("Image of what the encoder sees of the photo, beside it.")] = None,
    trust_repo: common.Trust = False,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Look into an encoder: its layers and what it sees.

    Layers that layer= can name, with shapes for one image; how images are made for it, and where that is from.

    Example: rcdm encoders "timm:resnet18?layer=layer3&pooling=mean" cat.jpg --out seen.png
    """
    from rcdm_fast import encoders as room
    from rcdm_fast import outputs
    from rcdm_fast.devices import best
    from rcdm_fast.encoders import ImageEncoder, inside
    from rcdm_fast.images import image_sheet, load_image, to_pil

    if out is not None:
        outputs.check_image(out, 2 * SIDE, SIDE)
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
    facts = {
        "source": config.source,
        "layer": config.layer,
        "pooling": config.pooling,
        "dim": encoder.dim,
        "convention": {name: {"value": getattr(config, name), "from": origin} for name, _, origin in rows},
        "layers": [vars(each) for each in layers],
    }
    common.write_json(json, facts)


def _drawn() -> Tensor:
    """An image [1,3,H,W] wider than high, so that what is cut off shows."""
    import torch

    from rcdm_fast.data import world
    from rcdm_fast.images import from_uint8

    pair = world.find(f"shapes?count=2&size={SIDE}").pixels([0, 1])
    wide = torch.cat(list(pair), dim=-1)[..., : SIDE * 3 // 2]
    return from_uint8(wide)[None]
