"""Images of any size through an encoder, several at a time: by `Model.encode`, `rcdm encode` and jobs alike.

What an image gets does not depend on the others, but for rounding: it is seen by itself, and where a group does not
fit into memory, or an image makes the encoder fail, the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from rcdm_fast import memory
from rcdm_fast.encoders.base import Encoder
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.images import fit_images

GROUP = 32  # images that are encoded together


def encode(encoder: Encoder, views: Tensor, places: Sequence[int], bad: dict[int, str]) -> Tensor:
    """Representations of a group, float32 [N,D] on the CPU; those of an image that makes the encoder fail are zeros.

    An image that is alone is encoded twice over: libraries multiply a single row by other routines than several, which
    round otherwise.

    Args:
        encoder: whose.
        views: what it sees, float [N,3,s,s] in [-1,1].
        places: what each is called in `bad`.
        bad: gets the reason for each of which there is no representation.
    """
    if len(views) == 1:
        return _halved(encoder, views.expand(2, -1, -1, -1), [places[0]] * 2, bad)[:1]
    return _halved(encoder, views, places, bad)


def _halved(encoder: Encoder, views: Tensor, places: Sequence[int], bad: dict[int, str]) -> Tensor:
    """Halved for as long as memory does not suffice; one by one where the encoder fails."""
    try:
        return encoder.encode(views).cpu()
    except Exception as error:  # every runtime has its own
        if memory.out_of_memory(error):
            if len(views) == 1:
                raise
            memory.release()
            half = len(views) // 2
            parts = ((views[:half], places[:half]), (views[half:], places[half:]))
            return torch.cat([_halved(encoder, each, named, bad) for each, named in parts])
        if not isinstance(error, EncoderError):
            raise
        if len(views) == 1:
            bad[places[0]] = str(error)
            return torch.zeros(1, encoder.dim)
        return torch.cat(
            [_halved(encoder, view[None], [place], bad) for place, view in zip(places, views, strict=True)]
        )


def of_images(
    encoder: Encoder, images: Iterable[tuple[int, Tensor]], on_bad: Callable[[int, str], None] | None = None
) -> Tensor:
    """Representations of images as they come, a group at a time; of the images no more than one is held.

    An image that has the encoder's size by chance is seen as any other is.

    Args:
        encoder: whose.
        images: (place, float [1,3,H,W] in [-1,1]) of each.
        on_bad: told (place, reason) of one that makes the encoder fail; without it that is an error.

    Returns:
        float32 [N,D] on the CPU, of all but those, in their order.

    Raises:
        EncoderError: see above, or all of them do.
    """
    rows: list[Tensor] = []
    reasons: list[str] = []
    for group in _groups((place, encoder.view(image.to(encoder.device))) for place, image in images):
        bad: dict[int, str] = {}
        places = [place for place, _ in group]
        found = encode(encoder, torch.cat([view for _, view in group]), places, bad)
        for place, reason in bad.items():
            if on_bad is None:
                raise EncoderError(reason)
            on_bad(place, reason)
        reasons += bad.values()
        rows += [row for place, row in zip(places, found, strict=True) if place not in bad]
    if reasons and not rows:
        raise EncoderError(reasons[0])
    return torch.stack(rows) if rows else torch.zeros(0, encoder.dim)


def fitted(
    encoder: Encoder | None, images: Iterable[tuple[int, Tensor]], size: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Images as a decoder of that size makes them, float [N,3,size,size] on the device, and `of_images` of the same.

    Each is read once. Without an encoder there are no representations.
    """
    views: list[Tensor] = []

    def each() -> Iterator[tuple[int, Tensor]]:
        for place, image in images:
            views.append(fit_images(image.to(device), size))
            yield place, image

    if encoder is None:
        deque(each(), 0)
        return torch.cat(views), None
    h = of_images(encoder, each())
    return torch.cat(views), h


def _groups(items: Iterable[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    left = iter(items)
    while group := list(islice(left, GROUP)):
        yield group
