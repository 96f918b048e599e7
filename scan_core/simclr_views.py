"""The pretext task's views (SimCLR, arXiv 2002.05709, appendix A), drawn for each image and applied to the whole batch.

``draw`` is random and runs on the host; ``apply`` is deterministic and runs where the images are. The geometry of a
view, crop, flip, rotation and shear together, is one affine matrix and a single bilinear ``grid_sample``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.settings import SimclrAugmentation

GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL and torchvision have it


@dataclass(frozen=True)
class SimclrDraw:
    """The parameters of B views, on the host."""

    theta: Tensor  # (B,2,3) float32: output to input, both in [-1,1]
    jitter: Tensor  # (B,) bool
    order: Tensor  # (B,4) int64: which of brightness, contrast, saturation, hue comes first, second, ...
    factors: Tensor  # (B,4) float32: of brightness, contrast, saturation, hue
    grayscale: Tensor  # (B,) bool


def draw(settings: SimclrAugmentation, batch: int, height: int, width: int, generator: torch.Generator) -> SimclrDraw:
    """Parameters for ``batch`` images of ``height`` x ``width`` pixels."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    area = uniform(*settings.crop_scale)
    ratio = uniform(math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])).exp()
    # As shares of the sides. Where a ratio does not fit at that area, the crop is cut to the image.
    crop_w = (area * ratio * height / width).sqrt().clamp(max=1)
    crop_h = (area / ratio * width / height).sqrt().clamp(max=1)
    centre_x = uniform(-1, 1) * (1 - crop_w)
    centre_y = uniform(-1, 1) * (1 - crop_h)
    mirror = 1 - 2 * (uniform(0, 1) < settings.flip).float()
    angle = uniform(-settings.rotate, settings.rotate).deg2rad()
    shear = uniform(-settings.shear, settings.shear).deg2rad().tan()
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * mirror, shear * cos - sin], dim=1) * crop_w[:, None]  # (B,2)
    row_y = torch.stack([sin * mirror, shear * sin + cos], dim=1) * crop_h[:, None]  # (B,2)
    linear = torch.stack([row_x, row_y], dim=1)  # (B,2,2)
    theta = torch.cat([linear, torch.stack([centre_x, centre_y], dim=1)[:, :, None]], dim=2)  # (B,2,3)

    spread = [settings.brightness, settings.contrast, settings.saturation]
    factors = [uniform(max(0.0, 1 - s), 1 + s) for s in spread] + [uniform(-settings.hue, settings.hue)]
    return SimclrDraw(
        theta=theta,
        jitter=uniform(0, 1) < settings.jitter,
        order=torch.rand(batch, 4, generator=generator).argsort(dim=1),
        factors=torch.stack(factors, dim=1),
        grayscale=uniform(0, 1) < settings.grayscale,
    )


def apply(images: Tensor, drawn: SimclrDraw) -> Tensor:
    """(B,channels,height,width) uint8 or float32 in [0,1] to the same shape, float32 in [0,1]."""
    device = images.device
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    grid = F.affine_grid(drawn.theta.to(device, non_blocking=True), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # The last two operations do nothing to a gray image, as in torchvision.
    operations = [_brightness, _contrast, _saturation, _hue] if images.shape[1] == 3 else [_brightness, _contrast]
    for position in range(4):
        for number, operation in enumerate(operations):
            # Indices are made on the host, where the draws are: no synchronisation with the device.
            chosen = (drawn.jitter & (drawn.order[:, position] == number)).nonzero()[:, 0]
            if len(chosen):
                factor = drawn.factors[chosen, number].to(device, non_blocking=True).view(-1, 1, 1, 1)
                chosen = chosen.to(device, non_blocking=True)
                images[chosen] = operation(images[chosen], factor)
    if images.shape[1] == 3:
        chosen = drawn.grayscale.nonzero()[:, 0].to(device, non_blocking=True)
        images[chosen] = luma(images[chosen]).expand(-1, 3, -1, -1)
    return images


def luma(images: Tensor) -> Tensor:
    """(B,3,height,width) or (B,1,height,width) to (B,1,height,width)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue)[:, None]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(images), images, factor).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luma(images).expand_as(images), images, factor).clamp_(0, 1)


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turns the hue by ``factor`` of a full circle, in HSV; value and saturation stay."""
    value, minimum = images.amax(dim=1), images.amin(dim=1)  # (B,height,width)
    chroma = value - minimum
    red, green, blue = images.unbind(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sextant + 6 * factor[:, :, :, 0]  # (B,height,width), in sixths of a circle
    channels = []
    for offset in (5, 3, 1):  # red, green, blue: v - c * clamp(min(k, 4-k), 0, 1), k = (offset + hue) mod 6
        k = (hue + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)
