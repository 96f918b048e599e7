"""SimCLR's random views (arXiv 2002.05709, appendix A): drawn per image, applied to the whole batch.

``draw`` is random and runs on the host; ``apply`` is deterministic and runs on the device of the images. Crop, flip,
rotation and shear of an image are one affine matrix and one bilinear ``grid_sample``.

Color jitter applies brightness, contrast, saturation and hue in an order drawn per image. All but hue are one
operation: a blend of the image with black (brightness), its mean luma (contrast) or its luma (saturation), in which a
factor f gives the target the weight 1 - f. So one sequence of seven slots holds every order: the operation at
position p of an image's order is in slot p before the hue, in slot 3 if it is the hue, in slot p + 3 after the hue.
The image that draws contrast 0.8, then hue 0.1, then brightness 1.2, then saturation 1.4 has:

    slot         0          1      2      3      4      5           6
    operation    contrast   -      -      hue    -      brightness  saturation
    weight       0.2        0      0      0.1    0      -0.2        -0.4
    target       mean luma  -      -      -      -      black       luma

A slot of weight 0 changes nothing. The CPU sorts images by the hue's position: those with a slot are then one slice.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.device import to_device
from scan_core.views.per_image import ApplyTo, apply_indexed, apply_masked, compiled_for_gpu, runs_compiled
from scan_core.views.settings import SimclrAugmentation

TRIES = 10  # to draw a crop that fits, as in torchvision
BLOCK = 2**17  # pixels per thread and block: a few float32 copies of a block fit in a cache of some megabytes
HUE = 3  # the hue's index among brightness, contrast, saturation, hue
SLOTS = ("blend", "blend", "blend", "hue", "blend", "blend", "blend")
BLEND_TARGETS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # by operation: of luma, of mean luma


@dataclass(frozen=True)
class SimclrDraw:
    """The parameters of B views, on the host."""

    center: Tensor  # (B,2) float32: x and y of the crop's center in the image, in [-1,1]
    crop: Tensor  # (B,2) float32: its width and height, as shares of the image's
    turn: Tensor  # (B,2,2) float32: flip, rotation and shear, output to crop, both in [-1,1]
    jitter: Tensor  # (B,) bool
    order: Tensor  # (B,4) int64: which of brightness, contrast, saturation, hue comes first, second, ...
    factors: Tensor  # (B,4) float32: of brightness, contrast, saturation, hue
    grayscale: Tensor  # (B,) bool
    blur: Tensor | None  # (B,) float32: sigma in pixels, 0 for an image without blur; None if no image is blurred

    @property
    def theta(self) -> Tensor:
        """(B,2,3) float32: output to input, both in [-1,1]."""
        return torch.cat([self.turn * self.crop[:, :, None], self.center[:, :, None]], dim=2)

    def boxes(self, height: Tensor | int, width: Tensor | int) -> Tensor:
        """The crops of images of ``height`` x ``width`` pixels: (B,4) float64 of left, top, right and bottom."""
        sides = torch.stack([torch.as_tensor(side).double().expand(len(self.crop)) for side in (width, height)], dim=1)
        first, last = ((1 + self.center.double() + edge * self.crop.double()) / 2 * sides for edge in (-1, 1))
        return torch.cat([first.clamp(min=0), torch.minimum(last, sides)], dim=1)

    def select(self, rows: Tensor) -> "SimclrDraw":
        """The parameters of the views ``rows`` (b,) int64."""
        blur = None if self.blur is None else self.blur[rows]
        rest = {each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "blur"}
        return SimclrDraw(**rest, blur=blur)

    def cropped(self) -> "SimclrDraw":
        """The rest of the view, for images that have been cropped."""
        return replace(self, center=torch.zeros_like(self.center), crop=torch.ones_like(self.crop))


def draw(
    settings: SimclrAugmentation, batch: int, height: Tensor | int, width: Tensor | int, generator: torch.Generator
) -> SimclrDraw:
    """Parameters for ``batch`` images of ``height`` x ``width`` pixels, each a number or (B,)."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    crop, found = _crops(settings, batch, torch.as_tensor(width / height), generator)
    center = torch.stack([uniform(-1, 1), uniform(-1, 1)], dim=1) * (1 - crop) * found[:, None]
    mirror = 1 - 2 * (uniform(0, 1) < settings.flip).float()
    angle = uniform(-settings.rotate, settings.rotate).deg2rad()
    shear = uniform(-settings.shear, settings.shear).deg2rad().tan()
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos * mirror, shear * cos - sin, sin * mirror, shear * sin + cos], dim=1).view(batch, 2, 2)
    spread = [settings.brightness, settings.contrast, settings.saturation]
    blends = [uniform(max(0.0, 1 - s), 1 + s) for s in spread]
    factors = torch.stack([*blends, uniform(-settings.hue, settings.hue)], dim=1)
    jitter, order = uniform(0, 1) < settings.jitter, torch.rand(batch, 4, generator=generator).argsort(dim=1)
    grayscale = uniform(0, 1) < settings.grayscale
    blur = (uniform(0, 1) < settings.blur) * uniform(*settings.blur_sigma) if settings.blur else None
    return SimclrDraw(center, crop, turn, jitter, order, factors, grayscale, blur)


def _crops(
    settings: SimclrAugmentation, batch: int, shape: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Width and height of the crops (B,2), as shares of the image's, and whether a drawn crop fits (B,).

    As torchvision's RandomResizedCrop, but not in whole pixels: the first of ten draws that fits. If none fits, the
    crop is the largest one about the center with an allowed ratio. ``shape`` is width / height of the images.
    """
    low, high = settings.crop_ratio
    area = torch.empty(TRIES, batch).uniform_(*settings.crop_scale, generator=generator)
    ratio = torch.empty(TRIES, batch).uniform_(math.log(low), math.log(high), generator=generator).exp()
    sides = torch.stack([(area * ratio / shape).sqrt(), (area / ratio * shape).sqrt()])  # (2,TRIES,B)
    fits = (sides <= 1).all(dim=0)  # (TRIES,B)
    first, found = fits.byte().argmax(dim=0), fits.any(dim=0)
    allowed = shape.clamp(low, high) / shape
    middle = torch.stack([allowed, 1 / allowed]).clamp(max=1).view(2, -1)
    return torch.where(found, sides[:, first, torch.arange(batch)], middle).T, found


def apply(images: Tensor, drawn: SimclrDraw, side: int | None = None) -> Tensor:
    """(B,channels,height,width) uint8, or float32 in [0,1], to views float32 in [0,1], of that size or ``side``."""
    size = (images.shape[2], images.shape[3]) if side is None else (side, side)
    return (_apply_on_gpu if runs_compiled(images) else _apply_on_cpu)(images, drawn, size)


def _apply_on_cpu(images: Tensor, drawn: SimclrDraw, size: tuple[int, int]) -> Tensor:
    """Block by block, so that a block stays in the cache from the first operation to the last."""
    amounts, hue_position = _slot_amounts(drawn)
    views = torch.empty(len(images), images.shape[1], *size)
    pixels = max(images.shape[2] * images.shape[3], size[0] * size[1])
    for rows in torch.split(hue_position.argsort(stable=True), max(1, BLOCK * torch.get_num_threads() // pixels)):
        block = images.movedim(1, 3).index_select(0, rows).movedim(3, 1)  # stays channels last, as images are stored
        part = drawn.select(rows)
        block = _transform(block, part, size)
        block = _colors(block, amounts[rows], _slot_spans(hue_position[rows]), part.grayscale, apply_indexed)
        views.index_copy_(0, rows, _blur_(block, part.blur))
    return views


def _apply_on_gpu(images: Tensor, drawn: SimclrDraw, size: tuple[int, int]) -> Tensor:
    """Every slot on every image, in one kernel: faster there than to sort."""
    views = _transform(images.contiguous(), drawn, size)
    amounts, gray = to_device(_slot_amounts(drawn)[0], images.device), to_device(drawn.grayscale, images.device)
    views = compiled_for_gpu(_colors)(views, amounts, [(0, len(images))] * len(SLOTS), gray, apply_masked)
    return _blur_(views, drawn.blur)


def _slot_amounts(drawn: SimclrDraw) -> tuple[Tensor, Tensor]:
    """(B,7,3) float32 per slot: weight, the target's shares of luma and mean luma; and the hue's position (B,) int64.

    An image without jitter has weights of 0 and the position -1.
    """
    position, hue_at = torch.arange(4), (drawn.order == HUE).byte().argmax(dim=1, keepdim=True)  # (B,1)
    slot = torch.where(position == hue_at, SLOTS.index("hue"), position + 3 * (position > hue_at))  # (B,4)
    weight = torch.cat([1 - drawn.factors[:, :HUE], drawn.factors[:, HUE:]], dim=1) * drawn.jitter[:, None]  # (B,4)
    amounts = torch.cat([weight.gather(1, drawn.order)[:, :, None], BLEND_TARGETS[drawn.order]], dim=2)  # (B,4,3)
    slots = torch.zeros(len(slot), len(SLOTS), 3).scatter_(1, slot[:, :, None].expand(-1, -1, 3), amounts)
    return slots, torch.where(drawn.jitter, hue_at[:, 0], -1)


def _slot_spans(hue_position: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 of the images that use each slot, for images sorted by ``hue_position`` (B,)."""
    jittered, *starts = (hue_position[:, None] < torch.arange(4)).sum(dim=0).tolist()  # position >= 0, 1, 2, 3
    end = len(hue_position)
    return [*((start, end) for start in starts), (jittered, end), *((jittered, start) for start in starts)]


def _colors(images: Tensor, amounts: Tensor, spans: list[tuple[int, int]], gray: Tensor, apply_to: ApplyTo) -> Tensor:
    """In place: each slot by its amounts (B,7,3) on the images of its span, then grayscale for ``gray`` (B,) bool.

    On images of one channel hue and grayscale do nothing, as in torchvision; saturation is a blend with itself.
    """
    colored = images.shape[1] == 3
    for slot, (operation, (start, end)) in enumerate(zip(SLOTS, spans, strict=True)):
        if start < end and (colored or operation == "blend"):
            weight, *target = amounts[start:end, slot, :, None, None, None].unbind(dim=1)  # (B,1,1,1) each
            _hue_(images[start:end], weight) if operation == "hue" else _blend_(images[start:end], weight, *target)
    return apply_to(images, gray, lambda some, _: luma(some).expand_as(some), gray) if colored else images


def _transform(images: Tensor, drawn: SimclrDraw, size: tuple[int, int]) -> Tensor:
    """To (B,channels,*size) float32 in [0,1]; a pixel of a crop that shrinks is the mean of several points."""
    images = images.float().div_(255) if images.dtype == torch.uint8 else images
    height, width = images.shape[2:]
    theta = to_device(drawn.theta, images.device)
    views = _sample(images, theta, size)
    shrinks = drawn.crop * torch.tensor([width, height]) > torch.tensor([size[1], size[0]])  # (B,2)
    chosen = shrinks.any(dim=1).nonzero()[:, 0]
    if len(chosen):  # never if images are as large as views
        points, chosen = math.ceil(max(height / size[0], width / size[1])), to_device(chosen, images.device)
        fine = _sample(images[chosen], theta[chosen], (points * size[0], points * size[1]))
        views[chosen] = F.avg_pool2d(fine, points)
    return views


def _sample(images: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.affine_grid`` and ``F.grid_sample``, but a point x + iy is one complex sum instead of two products."""
    y, x = ((2 * torch.arange(side, device=images.device) + 1) / side - 1 for side in size)
    by_x, by_y, middle = torch.view_as_complex(theta.mT.contiguous())[:, :, None].unbind(dim=1)  # (B,1)
    grid = torch.view_as_real((by_x * x)[:, None, :] + (by_y * y + middle)[:, :, None])  # (B,height,width,2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def luma(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma, as in PIL and torchvision: (B,3 or 1,height,width) to (B,1,height,width)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _blend_(images: Tensor, weight: Tensor, of_luma: Tensor, of_mean: Tensor) -> None:
    """In place: ``weight`` of the target ``of_luma`` x luma + ``of_mean`` x mean luma, all (B,1,1,1)."""
    gray = luma(images)
    gray = (gray * of_luma).add_(gray.mean(dim=(2, 3), keepdim=True) * of_mean)
    images.lerp_(gray, weight).clamp_(0, 1)


def _hue_(images: Tensor, turn: Tensor) -> None:
    """In place: turns the hue by ``turn`` (B,1,1,1) of a full circle, in HSV; value and saturation stay.

    Let u be a channel's share of the way from the smallest channel to the largest. Then the hue is
    1 + u_green + u_blue - u_red sixths of a circle from red, toward green if green > blue, for any largest channel.
    """
    red, green, blue = images.unbind(dim=1)  # (B,height,width)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    hue = (green + blue).sub_(red).sub_(least).mul_(scale).add_(1).copysign_(green - blue)
    hue.add_(6 * turn[:, 0])
    hue.sub_((hue / 6).floor_(), alpha=6)  # remainder(6), in operations that are vectorized
    for channel, pure in ((red, 0), (green, 2), (blue, 4)):
        # The distance to the channel's own hue: within 1 the channel is value, beyond 2 it is value - chroma.
        far = (hue - pure).abs_() if pure else (hue - 3).abs_().neg_().add_(3)
        channel.copy_(torch.addcmul(value, chroma, far.sub_(1).clamp_(0, 1), value=-1))


def _blur_(images: Tensor, sigma: Tensor | None) -> Tensor:
    """In place: Gaussian blur by each ``sigma`` (B,) in pixels above 0, cut off at 3 sigma, with a mirrored border."""
    if sigma is None or not len(chosen := sigma.nonzero()[:, 0]):
        return images
    channels, height, width = images.shape[1:]
    radius = min(int((3 * sigma.max()).ceil()), height - 1, width - 1)  # a mirrored border has no more pixels
    sigma, chosen = to_device(sigma[chosen], images.device)[:, None], to_device(chosen, images.device)
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (distance / sigma).square())  # (b,2*radius+1)
    kernel = kernel * (distance.abs() <= (3 * sigma).ceil())  # so that a view does not depend on its batch
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images[chosen], [radius] * 4, mode="reflect").reshape(1, len(kernel), height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=len(kernel))
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=len(kernel))
    images[chosen] = planes.view(-1, channels, height, width)
    return images
