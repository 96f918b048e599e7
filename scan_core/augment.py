"""From stored pixels to what a network sees: a plain view, or a random one."""

import torch
from torch import Tensor

from scan_core import simclr_views, strong_views
from scan_core.data import Images
from scan_core.settings import Augmentation, StrongAugmentation


def plain_view(images: Images, rows: Tensor) -> Tensor:
    """(B,) rows to (B,channels,height,width) float32, normalised and nothing else."""
    return images.normalize(images.batch(rows).float() / 255)


def random_view(images: Images, rows: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """(B,) rows to (B,channels,height,width) float32, each image augmented by draws of its own, then normalised."""
    pixels = images.batch(rows)
    batch, _, height, width = pixels.shape
    if isinstance(settings, StrongAugmentation):
        views, cut = strong_views.apply(pixels, strong_views.draw(settings, batch, height, width, generator))
        return images.normalize(views).masked_fill_(cut, 0)
    return images.normalize(simclr_views.apply(pixels, simclr_views.draw(settings, batch, height, width, generator)))
