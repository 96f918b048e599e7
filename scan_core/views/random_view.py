"""Random views of a batch: from stored pixels to what a network is trained on."""

import torch
from torch import Tensor

from scan_core.images.store import ArrayImages, Images, JpegImages
from scan_core.views import simclr as simclr_views
from scan_core.views import strong as strong_views
from scan_core.views.settings import AnyAugmentation, NoAugmentation, SimclrAugmentation, StrongAugmentation


def random_view(images: Images, rows: Tensor, settings: AnyAugmentation, generator: torch.Generator) -> Tensor:
    """(B,) int64 rows to (B,channels,side,side) float32: each image augmented by its own draws, then normalized.

    ``side`` is that of ``images``, or ``crop_size`` of SimCLR's settings.
    """
    if isinstance(settings, NoAugmentation):
        return images.plain_view(rows)
    batch, side = len(rows), images.side
    if isinstance(settings, StrongAugmentation):
        strong = strong_views.draw(settings, batch, side, side, generator, images.has_margin)
        views, cut = strong_views.apply(images.crops(rows, strong.offset), strong)
        return images.normalize(views).masked_fill_(cut, 0)
    return images.normalize(simclr_pixels(images, rows, settings, settings.crop_size or side, generator))


def simclr_pixels(
    images: Images, rows: Tensor, settings: SimclrAugmentation, side: int, generator: torch.Generator
) -> Tensor:
    """(B,) int64 rows to SimCLR's views (B,channels,side,side) float32 in [0,1]."""
    height, width = images.sizes(rows)
    drawn = simclr_views.draw(settings, len(rows), height, width, generator)
    if isinstance(images, JpegImages):  # cropped while it is decoded
        pixels, drawn = images.resized_crops(rows, drawn.boxes(height, width), side), drawn.cropped()
    else:
        assert isinstance(images, ArrayImages)
        pixels = images.full(rows)
    return simclr_views.apply(pixels, drawn, side)
