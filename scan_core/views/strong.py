"""The paper's strong views: flip, a few operations drawn of 14 one after the other, one cutout square.

The order of the operations matters, so each of them is a round; within a round the images are grouped by operation.
Pixels keep to whole values of 0..255 between rounds, as the 8-bit images of the published recipe do.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.cuda_graphs import Work, cuda_graphed
from scan_core.compute.device import to_device
from scan_core.views.per_image import Operation, Pick, for_each_image
from scan_core.views.settings import StrongAugmentation
from scan_core.views.simclr import luma

# Name and range of magnitudes, drawn uniformly. Shear is a slope; translation a share of the side.
OPERATIONS: dict[str, tuple[float, float]] = {
    "identity": (0, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "rotate": (-30, 30),
    "solarize": (0, 256),
    "posterize": (4, 8),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "brightness": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.1, 0.1),
    "shear_y": (-0.1, 0.1),
    "translate_x": (-0.1, 0.1),
    "translate_y": (-0.1, 0.1),
}
NAMES = list(OPERATIONS)
AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@dataclass(frozen=True)
class StrongDraw:
    """The parameters of B views, on the host."""

    flip: Tensor  # (B,) bool
    operation: Tensor  # (B,rounds) int64, an index into NAMES
    magnitude: Tensor  # (B,rounds) float32
    cutout_centre: Tensor  # (B,2) int64: row, column
    cutout: int  # side in pixels
    window: Tensor | None = None  # (B,2) float32: the place in the stored image, where that is larger than the view


def draw(
    settings: StrongAugmentation, batch: int, height: int, width: int, generator: torch.Generator, roomy: bool = False
) -> StrongDraw:
    """Parameters for ``batch`` views of ``height`` x ``width`` pixels; ``roomy``: windows of larger stored images."""
    window = torch.rand(batch, 2, generator=generator) if roomy else None
    shape = (batch, settings.operations)
    operation = torch.randint(len(NAMES), shape, generator=generator)
    low, high = torch.tensor(list(OPERATIONS.values())).unbind(dim=1)
    unit = torch.rand(shape, generator=generator)
    centre = torch.rand(batch, 2, generator=generator) * torch.tensor([height, width])
    return StrongDraw(
        flip=torch.rand(batch, generator=generator) < settings.flip,
        operation=operation,
        magnitude=low[operation] + unit * (high - low)[operation],
        cutout_centre=centre.long(),
        cutout=settings.cutout,
        window=window,
    )


def apply(images: Tensor, drawn: StrongDraw) -> tuple[Tensor, Tensor]:
    """(B,channels,height,width) uint8 to the same shape, float32 in [0,1], and the mask of the cut-out squares.

    The mask is (B,1,height,width) bool; its squares are filled by the caller after normalisation, where the mean is 0.
    On a GPU the next call may overwrite it.
    """
    theta = _affine_matrices(drawn.operation, drawn.magnitude, *images.shape[2:])
    parts = drawn.flip[:, None], drawn.cutout_centre, drawn.operation, drawn.magnitude, theta.flatten(1)
    packed = to_device(
        torch.cat([part.float() for part in parts], dim=1), images.device
    )  # whole numbers stay what they are
    rounds = drawn.operation.shape[1]
    views, cut = _recorded_views(images.device, images.shape, rounds, drawn.cutout)(images, packed)
    return views / 255, cut


@functools.cache
def _recorded_views(device: torch.device, shape: torch.Size, rounds: int, cutout: int) -> Work:
    """``_views`` for images of one ``shape``, on a GPU recorded: many kernels, and each of them short."""
    return cuda_graphed(functools.partial(_views, rounds=rounds, cutout=cutout), device)


def _views(images: Tensor, packed: Tensor, rounds: int, cutout: int) -> tuple[Tensor, Tensor]:
    """``apply``, but in 0..255, with what was drawn (B,3 + 8 * rounds) float32 on the device.

    Flip, the cutout's row and column, the operations, their magnitudes, and their matrices of six numbers each.
    """
    flip, centre, operation, magnitude, theta = torch.split(packed, [1, 2, rounds, rounds, 6 * rounds], dim=1)
    images = torch.where(flip[:, :, None, None] > 0, images.flip(3), images).float()
    theta = theta.reshape(len(images), rounds, 2, 3)
    for number in range(rounds):
        here = operation[:, number].long(), magnitude[:, number].contiguous(), theta[:, number].contiguous()
        images = for_each_image(_round, images, *here)
    return images, _cutout_mask(centre.long(), cutout, *images.shape[2:])


def _round(images: Tensor, operation: Tensor, magnitude: Tensor, theta: Tensor, pick: Pick) -> Tensor:
    """One operation (B,) of each image, by its ``magnitude`` (B,) or its matrix ``theta`` (B,2,3)."""
    for name, function in _OPERATIONS.items():
        images = pick(images, operation == NAMES.index(name), function, magnitude)
    affine = functools.reduce(torch.logical_or, [operation == index for index in _AFFINE])
    return pick(images, affine, _affine, theta)


def _cutout_mask(centres: Tensor, side: int, height: int, width: int) -> Tensor:
    """(B,1,height,width) bool: a square of ``side`` around each of ``centres`` (B,2), cut at the border."""

    def inside(centre: Tensor, size: int) -> Tensor:
        start = centre[:, None] - side // 2
        position = torch.arange(size, device=centre.device)
        return (position >= start) & (position < start + side)  # (B,size)

    rows, columns = inside(centres[:, 0], height), inside(centres[:, 1], width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """``magnitude`` of the image and the rest of ``other``, cut to whole values."""
    factor = magnitude.view(-1, 1, 1, 1)
    return (factor * images + (1 - factor) * other).clamp_(0, 255).floor_()


def _brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), magnitude)


def _contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    return _blend(images, luma(images).floor().mean(dim=(1, 2, 3), keepdim=True), magnitude)


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, luma(images).floor(), magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1].fill_(5)
    blurred = images.clone()  # the border stays as it is
    inner = F.conv2d(images, (kernel / kernel.sum()).expand(channels, 1, 3, 3), groups=channels)
    blurred[:, :, 1:-1, 1:-1] = inner.round_()
    return _blend(images, blurred, magnitude)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    scale = 255 / torch.where(flat, 255.0, high - low)
    return ((images - torch.where(flat, 0.0, low)) * scale).clamp_(0, 255).floor_()


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel's histogram made as even as its values allow (PIL's rule)."""
    batch, channels, height, width = images.shape
    values = images.reshape(batch * channels, height * width).long()
    ones = torch.ones_like(values)
    histogram = torch.zeros(len(values), 256, dtype=torch.long, device=images.device).scatter_add_(1, values, ones)
    last = values.amax(dim=1, keepdim=True)
    step = (height * width - histogram.gather(1, last)) // 255  # (B*channels,1)
    before = histogram.cumsum(dim=1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    equalized = torch.where(step == 0, values, table.gather(1, values))
    return equalized.view(batch, channels, height, width).to(images.dtype)


def _solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(images >= magnitude.view(-1, 1, 1, 1), 255 - images, images)


def _posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    dropped = 2.0 ** (8 - magnitude.round()).view(-1, 1, 1, 1)
    return (images / dropped).floor_() * dropped


def _affine_matrices(operation: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """(B,rounds) to (B,rounds,2,3), output to input in [-1,1]: the identity for what is no affine operation.

    Rotation about the centre, shear from the top left corner, translation by whole pixels.
    """
    theta = torch.eye(2, 3).repeat(*operation.shape, 1, 1)
    sizes = {"translate_x": width, "translate_y": height}
    for name in AFFINE:
        here = operation == NAMES.index(name)
        value = magnitude[here]
        if name == "rotate":
            angle = value * (math.pi / 180)  # counter-clockwise; a pixel is not square in [-1,1]
            rows = [angle.cos(), -angle.sin() * height / width, torch.zeros_like(angle)]
            rows += [angle.sin() * width / height, angle.cos(), torch.zeros_like(angle)]
            theta[here] = torch.stack(rows, dim=1).view(-1, 2, 3)
        elif name == "shear_x":  # the input lies at x + slope * y, both from the corner
            theta[..., 0, 1][here] = theta[..., 0, 2][here] = value * height / width
        elif name == "shear_y":
            theta[..., 1, 0][here] = theta[..., 1, 2][here] = value * width / height
        else:
            theta[..., 0 if name == "translate_x" else 1, 2][here] = -2 * (value * sizes[name]).trunc() / sizes[name]
    return theta


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    """By each image's matrix (B,2,3); nearest, fill 0."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


_OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}  # identity needs no function
_AFFINE = tuple(NAMES.index(name) for name in AFFINE)
