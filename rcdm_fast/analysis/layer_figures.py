"""The figures of `layers.py`: rows of samples and maps of variance for several models."""

from __future__ import annotations

from PIL import Image

from rcdm_fast.analysis import augment, invariance
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.layer import Layer, LayersConfig
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.images import image_sheet, to_pil


def figures_of(
    layers: list[Layer], data: ImageSet, config: LayersConfig
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Rows and maps, and their captions, by name."""
    labels = [layer.name for layer in layers]
    figures: dict[str, Image.Image] = {}
    captions: dict[str, str] = {}
    for name in layers[0].invariance.sweeps if config.shown else ():
        figures[f"rows-{name}"] = invariance.rows([layer.invariance.sweeps[name] for layer in layers], labels)
        captions[f"rows-{name}"] = (
            f"{name}: {augment.AUGMENTATIONS[name].about}; the same noise in all rows of a source."
        )
    if config.mapped:
        figures["variance"] = _variance_figure(layers, data, config.mapped)
        captions["variance"] = (
            "Samples of each image's representation, and the variance over all its samples (mean over channels): "
            "black is none, white the variance of real pixels."
        )
    return figures, captions


def _variance_figure(layers: list[Layer], data: ImageSet, count: int) -> Image.Image:
    """A column for each source: the image, then for every model samples and their variance."""
    picked = evenly(min(count, len(layers[0].samples)), len(layers[0].samples))
    lines = [[to_pil(image) for image in data.floats(layers[0].invariance.sources[picked])]]
    titles = ["image"]
    for layer in layers:
        for number in range(min(3, layer.samples.shape[1])):
            lines.append([to_pil(image) for image in layer.samples[picked, number].clamp(-1, 1)])
            titles.append("" if number else layer.name)
        maps = spreads.heat(layer.spread.maps[picked], layer.spread.between["pixels"])
        lines.append([to_pil(each) for each in maps])
        titles.append("variance")
    return image_sheet(lines, cell=96, row_titles=titles)
