"""The paper's strong views: a flip, a few operations drawn from 14 and applied one after the other, one square cut out.

The order of the operations matters, so each of them is a round; in a round every image has its own operation. Pixels
are whole values of 0..255 between rounds, as in the 8-bit images of the published recipe.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.cuda_graphs import cuda_graphed
from scan_core.compute.device import to_device
from scan_core.views.per_image import ApplyTo, Operation, apply_per_image
from scan_core.views.settings import StrongAugmentation
from scan_core.views.simclr import luma

Entries = dict[tuple[int, int], Tensor]  # of affine matrices, by row and column: (b,) each


@dataclass(frozen=True)
class Op:
    """An operation; its magnitude is uniform in [low, high]. Without ``fn`` and ``matrix`` it is the identity."""

    name: str
    low: float
    high: float
    fn: Operation | None = None  # of images (B,channels,height,width) in 0..255 and magnitudes (B,)
    matrix: Callable[[Tensor, int, int], Entries] | None = None  # of magnitudes (b,), height and width


@dataclass(frozen=True)
class StrongDraw:
    """The parameters of B views, on the host."""

    flip: Tensor  # (B,) bool
    operation: Tensor  # (B,rounds) int64: index into OPS
    magnitude: Tensor  # (B,rounds) float32
    cutout_center: Tensor  # (B,2) int64: row, column
    cutout: int  # side in pixels
    offset: Tensor | None = None  # (B,2) float32: of the crop in a larger stored image, see ``Images.crops``


def draw(
    settings: StrongAugmentation, batch: int, height: int, width: int, generator: torch.Generator,
    has_margin: bool = False,
) -> StrongDraw:  # fmt: skip
    """Parameters for ``batch`` views of ``height`` x ``width`` pixels; ``has_margin``: stored images are larger."""
    offset = torch.rand(batch, 2, generator=generator) if has_margin else None
    shape = (batch, settings.operations)
    operation = torch.randint(len(OPS), shape, generator=generator)
    low, high = torch.tensor([(op.low, op.high) for op in OPS]).unbind(dim=1)
    magnitude = low[operation] + torch.rand(shape, generator=generator) * (high - low)[operation]
    center = (torch.rand(batch, 2, generator=generator) * torch.tensor([height, width])).long()
    flip = torch.rand(batch, generator=generator) < settings.flip
    return StrongDraw(flip, operation, magnitude, center, settings.cutout, offset)


def apply(images: Tensor, drawn: StrongDraw) -> tuple[Tensor, Tensor]:
    """(B,channels,height,width) uint8 to the same shape, float32 in [0,1], and the mask of the cut-out squares.

    The mask is (B,1,height,width) bool. The caller fills its squares after normalization, where the mean is 0. On a GPU
    the next call may overwrite the mask.

    All parameters go to the device as one (B,3+8*rounds) float32 tensor: on a GPU a tensor costs a copy to pinned
    memory, a transfer, and a copy into the CUDA graph, whatever its size. Its columns are the flip, row and column of
    the cutout, and per round the operation, the magnitude and the six numbers of the affine matrix.
    """
    theta = _affine_matrices(drawn.operation, drawn.magnitude, *images.shape[2:]).flatten(2)  # (B,rounds,6)
    rounds = torch.cat([drawn.operation[:, :, None], drawn.magnitude[:, :, None], theta], dim=2)  # (B,rounds,8)
    packed = torch.cat([drawn.flip[:, None], drawn.cutout_center, rounds.flatten(1)], dim=1)
    views, cut = _graphed_views(images.device, images.shape, drawn.cutout)(images, to_device(packed, images.device))
    return views / 255, cut


@functools.cache
def _graphed_views(device: torch.device, shape: torch.Size, cutout: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """``_views`` for images of one ``shape``: on a GPU a CUDA graph, because its many kernels are short."""
    return cuda_graphed(functools.partial(_views, cutout=cutout), device)


def _views(images: Tensor, packed: Tensor, cutout: int) -> tuple[Tensor, Tensor]:
    """``apply`` in 0..255, from its packed parameters."""
    flip, center = packed[:, 0] > 0, packed[:, 1:3].long()
    images = torch.where(flip[:, None, None, None], images.flip(3), images).float()
    for start in range(3, packed.shape[1], 8):
        operation, magnitude = packed[:, start].long(), packed[:, start + 1].contiguous()
        theta = packed[:, start + 2 : start + 8].reshape(-1, 2, 3)
        images = apply_per_image(_round, images, operation, magnitude, theta)
    return images, _cutout_mask(center, cutout, *images.shape[2:])


def _round(images: Tensor, operation: Tensor, magnitude: Tensor, theta: Tensor, apply_to: ApplyTo) -> Tensor:
    """One operation (B,) per image, with its ``magnitude`` (B,) or, if it is affine, its matrix ``theta`` (B,2,3)."""
    for number, op in enumerate(OPS):
        if op.fn:
            images = apply_to(images, operation == number, op.fn, magnitude)
    affine = [operation == number for number, op in enumerate(OPS) if op.matrix]
    return apply_to(images, functools.reduce(torch.logical_or, affine), _affine, theta)


def _cutout_mask(centers: Tensor, side: int, height: int, width: int) -> Tensor:
    """(B,1,height,width) bool: a square of ``side`` around each of ``centers`` (B,2), cut at the border."""

    def inside(center: Tensor, size: int) -> Tensor:
        start = center[:, None] - side // 2
        position = torch.arange(size, device=center.device)
        return (position >= start) & (position < start + side)  # (B,size)

    rows, columns = inside(centers[:, 0], height), inside(centers[:, 1], width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """``magnitude`` x images + (1 - ``magnitude``) x other, cut to whole values."""
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
    """Makes each channel's histogram as even as its values allow, by PIL's rule."""
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


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    """Each image by its matrix (B,2,3): nearest pixel, 0 outside the image."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _affine_matrices(operation: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """(B,rounds) to (B,rounds,2,3), output to input, both in [-1,1]: the identity with the entries of ``Op.matrix``."""
    theta = torch.eye(2, 3).repeat(*operation.shape, 1, 1)
    for number, op in enumerate(OPS):
        if op.matrix:
            chosen = operation == number
            for (row, column), entry in op.matrix(magnitude[chosen], height, width).items():
                theta[..., row, column][chosen] = entry
    return theta


def _rotation(degrees: Tensor, height: int, width: int) -> Entries:
    angle = degrees * (math.pi / 180)  # counter-clockwise about the center; a pixel is not square in [-1,1]
    across, down = -angle.sin() * height / width, angle.sin() * width / height
    return {(0, 0): angle.cos(), (0, 1): across, (1, 0): down, (1, 1): angle.cos()}


OPS = [
    Op("identity", 0, 0),
    Op("autocontrast", 0, 0, _autocontrast),
    Op("equalize", 0, 0, _equalize),
    Op("rotate", -30, 30, matrix=_rotation),  # degrees
    Op("solarize", 0, 256, _solarize),
    Op("posterize", 4, 8, _posterize),  # bits
    Op("color", 0.05, 0.95, _color),
    Op("contrast", 0.05, 0.95, _contrast),
    Op("brightness", 0.05, 0.95, _brightness),
    Op("sharpness", 0.05, 0.95, _sharpness),
    # A shear moves x by slope * y, from the top left corner; a translation is a share of the side, in whole pixels.
    Op("shear_x", -0.1, 0.1, matrix=lambda slope, h, w: {(0, 1): slope * h / w, (0, 2): slope * h / w}),
    Op("shear_y", -0.1, 0.1, matrix=lambda slope, h, w: {(1, 0): slope * w / h, (1, 2): slope * w / h}),
    Op("translate_x", -0.1, 0.1, matrix=lambda share, h, w: {(0, 2): -2 * (share * w).trunc() / w}),
    Op("translate_y", -0.1, 0.1, matrix=lambda share, h, w: {(1, 2): -2 * (share * h).trunc() / h}),
]
