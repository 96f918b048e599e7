"""The pretext task's views (SimCLR, arXiv 2002.05709, appendix A), drawn for each image and applied to the whole batch.

``draw`` is random and runs on the host; ``apply`` is deterministic and runs where the images are. The geometry of a
view, crop, flip, rotation and shear together, is one affine matrix and a single bilinear ``grid_sample``. The crop can
also be cut before, where the images are decoded: ``boxes`` says where, and ``cropped`` is what is left to be done.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.device import to_device
from scan_core.views.per_image import Pick, compiled, grouped, masked, on_gpu
from scan_core.views.settings import SimclrAugmentation

TRIES = 10  # to draw a crop that fits
BLOCK = 2**17  # pixels that a thread has at a time: some colours of float32 each, in a cache of megabytes
HUE = 3  # in the order of factors
TOWARDS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # what factors blend in: luma, mean luma
# Every order of the four: what comes before the hue, at most three, the hue, what comes after.
STEPS = ("blend", "blend", "blend", "hue", "blend", "blend", "blend")
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL and torchvision have it


@dataclass(frozen=True)
class SimclrDraw:
    """The parameters of B views, on the host."""

    centre: Tensor  # (B,2) float32: x and y of the crop's centre in the image, in [-1,1]
    crop: Tensor  # (B,2) float32: its width and height, as shares of the image's
    turn: Tensor  # (B,2,2) float32: flip, rotation and shear, output to crop, both in [-1,1]
    jitter: Tensor  # (B,) bool
    order: Tensor  # (B,4) int64: which of brightness, contrast, saturation, hue comes first, second, ...
    factors: Tensor  # (B,4) float32: of brightness, contrast, saturation, hue
    grayscale: Tensor  # (B,) bool
    blur: Tensor | None  # (B,) float32: sigma in pixels, 0 where there is none; None where no image is blurred

    @property
    def theta(self) -> Tensor:
        """(B,2,3) float32: output to input, both in [-1,1]."""
        return torch.cat([self.turn * self.crop[:, :, None], self.centre[:, :, None]], dim=2)

    def boxes(self, height: Tensor | int, width: Tensor | int) -> Tensor:
        """The crops of images of ``height`` x ``width`` pixels: (B,4) float64 of left, top, right and bottom."""
        sides = torch.stack([torch.as_tensor(side).double().expand(len(self.crop)) for side in (width, height)], dim=1)
        first, last = ((1 + self.centre.double() + edge * self.crop.double()) / 2 * sides for edge in (-1, 1))
        return torch.cat([first.clamp(min=0), torch.minimum(last, sides)], dim=1)

    def of(self, rows: Tensor) -> "SimclrDraw":
        """Of some of the views, (b,) int64."""
        rest: dict[str, Tensor] = {
            each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "blur"
        }
        return SimclrDraw(**rest, blur=None if self.blur is None else self.blur[rows])

    def cropped(self) -> "SimclrDraw":
        """The rest of the view, for images that are its crop already."""
        return replace(self, centre=torch.zeros_like(self.centre), crop=torch.ones_like(self.crop))


def draw(
    settings: SimclrAugmentation, batch: int, height: Tensor | int, width: Tensor | int, generator: torch.Generator
) -> SimclrDraw:
    """Parameters for ``batch`` images of ``height`` x ``width`` pixels, each a number or (B,)."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    crop_w, crop_h, found = _crop_sides(settings, batch, torch.as_tensor(width / height), generator)
    centre_x = uniform(-1, 1) * (1 - crop_w) * found
    centre_y = uniform(-1, 1) * (1 - crop_h) * found
    mirror = 1 - 2 * (uniform(0, 1) < settings.flip).float()
    angle = uniform(-settings.rotate, settings.rotate).deg2rad()
    shear = uniform(-settings.shear, settings.shear).deg2rad().tan()
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * mirror, shear * cos - sin], dim=1)  # (B,2)
    row_y = torch.stack([sin * mirror, shear * sin + cos], dim=1)  # (B,2)

    spread = [settings.brightness, settings.contrast, settings.saturation]
    factors = [uniform(max(0.0, 1 - s), 1 + s) for s in spread] + [uniform(-settings.hue, settings.hue)]
    jitter, order = uniform(0, 1) < settings.jitter, torch.rand(batch, 4, generator=generator).argsort(dim=1)
    grayscale = uniform(0, 1) < settings.grayscale
    blur = (uniform(0, 1) < settings.blur) * uniform(*settings.blur_sigma) if settings.blur else None
    return SimclrDraw(
        centre=torch.stack([centre_x, centre_y], dim=1),
        crop=torch.stack([crop_w, crop_h], dim=1),
        turn=torch.stack([row_x, row_y], dim=1),  # (B,2,2)
        jitter=jitter,
        order=order,
        factors=torch.stack(factors, dim=1),
        grayscale=grayscale,
        blur=blur,
    )


def _crop_sides(
    settings: SimclrAugmentation, batch: int, shape: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Width and height of the crops, as shares of the image's, and whether they were drawn, (B,) each.

    As torchvision's RandomResizedCrop, but not in whole pixels: of ten draws the first that fits. Where none does, it
    is the middle of the image, as much of it as has an allowed ratio. ``shape`` is the images' width / height.
    """
    low, high = settings.crop_ratio
    area = torch.empty(TRIES, batch).uniform_(*settings.crop_scale, generator=generator)
    ratio = torch.empty(TRIES, batch).uniform_(math.log(low), math.log(high), generator=generator).exp()
    sides = torch.stack([(area * ratio / shape).sqrt(), (area / ratio * shape).sqrt()])  # (2,TRIES,B)
    fits = (sides <= 1).all(dim=0)  # (TRIES,B)
    first, found = fits.byte().argmax(dim=0), fits.any(dim=0)
    allowed = shape.clamp(low, high) / shape
    middle = torch.stack([allowed, 1 / allowed]).clamp(max=1).view(2, -1)
    crop_w, crop_h = torch.where(found, sides[:, first, torch.arange(batch)], middle)
    return crop_w, crop_h, found


def apply(images: Tensor, drawn: SimclrDraw, side: int | None = None) -> Tensor:
    """(B,channels,height,width) uint8 or float32 in [0,1] to float32 in [0,1], of the same size or ``side`` pixels.

    On the CPU images are sorted, so that those a step of the colours changes stand side by side, and come block by
    block, which stays in the cache from the first step to the last; a GPU is faster in one kernel on all of them.
    """
    size = (images.shape[2], images.shape[3]) if side is None else (side, side)
    steps, hue_at = _color_steps(drawn)
    if on_gpu(images):
        views = _transform(_as_floats(images.contiguous()), drawn, size)
        everything = [(0, len(images))] * len(STEPS)
        gray = to_device(drawn.grayscale, images.device)
        views = compiled(_colors)(views, to_device(steps, images.device), everything, gray, pick=masked)
        return _blurred(views, drawn)
    views = torch.empty(len(images), images.shape[1], *size)
    pixels = max(images.shape[2] * images.shape[3], size[0] * size[1])
    for rows in torch.split(hue_at.argsort(stable=True), max(1, BLOCK * torch.get_num_threads() // pixels)):
        part = images.movedim(1, 3).index_select(0, rows).movedim(3, 1)  # as they are stored, channels last
        some = drawn.of(rows)
        part = _transform(_as_floats(part), some, size)
        part = _colors(part, steps[rows], _spans(hue_at[rows]), some.grayscale, pick=grouped)
        views.index_copy_(0, rows, _blurred(part, some))
    return views


def _as_floats(images: Tensor) -> Tensor:
    """In [0,1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _blurred(images: Tensor, drawn: SimclrDraw) -> Tensor:
    """In place."""
    if drawn.blur is not None:
        chosen = drawn.blur.nonzero()[:, 0]
        if len(chosen):
            sigma, chosen = to_device(drawn.blur[chosen], images.device), to_device(chosen, images.device)
            images[chosen] = _blur(images[chosen], sigma, int((3 * drawn.blur.max()).ceil()))
    return images


def _color_steps(drawn: SimclrDraw) -> tuple[Tensor, Tensor]:
    """Each image's operations in its own order as amounts for STEPS, (B,7,3) float32, and where its hue comes, (B,).

    Amounts are the weight of what is blended in, and the shares of the image's luma and of the mean luma in that. A
    step that an image does not have is of weight 0, which changes nothing. The hue comes after 0 to 3 others, at -1
    where there is no jitter.
    """
    batch = len(drawn.jitter)
    hue_at = (drawn.order == HUE).byte().argmax(dim=1)  # (B,)
    position = torch.arange(4)
    after = position + 3 * (position > hue_at[:, None])  # (B,4)
    step = torch.where(position == hue_at[:, None], 3, after)
    weight = torch.cat([1 - drawn.factors[:, :HUE], drawn.factors[:, HUE:]], dim=1) * drawn.jitter[:, None]  # (B,4)
    amounts = torch.cat([weight.gather(1, drawn.order)[:, :, None], TOWARDS[drawn.order]], dim=2)  # (B,4,3)
    steps = torch.zeros(batch, len(STEPS), 3).scatter_(1, step[:, :, None].expand(-1, -1, 3), amounts)
    return steps, torch.where(drawn.jitter, hue_at, -1)


def _spans(hue_at: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 of the images that each of STEPS changes, when they are sorted by ``hue_at`` (B,)."""
    starts = (hue_at[:, None] < torch.arange(5)).sum(dim=0).tolist()  # of those with jitter, then by number before
    first, end = starts[0], len(hue_at)
    before, after = [(starts[number], end) for number in (1, 2, 3)], [(first, starts[number]) for number in (1, 2, 3)]
    return [*before, (first, end), *after]


def _colors(images: Tensor, steps: Tensor, spans: list[tuple[int, int]], gray: Tensor, pick: Pick) -> Tensor:
    """STEPS by their amounts (B,7,3), in place, each on the images of its span; then ``gray`` (B,) bool for some."""
    colored = images.shape[1] == 3
    for number, (operation, (start, end)) in enumerate(zip(STEPS, spans, strict=True)):
        # To a gray image hue and grayscale do nothing, as in torchvision; so does saturation, a blend with itself.
        if start < end and (colored or operation == "blend"):
            amounts = steps[start:end, number, :, None, None, None].unbind(dim=1)  # three of (B,1,1,1)
            _hue(images[start:end], amounts[0]) if operation == "hue" else _blend(images[start:end], *amounts)
    return pick(images, gray, lambda some, _: luma(some).expand_as(some), gray) if colored else images


def _transform(images: Tensor, drawn: SimclrDraw, size: tuple[int, int]) -> Tensor:
    """(B,channels,height,width) to (B,channels,*size); a crop that shrinks is the mean of several points a pixel."""
    height, width = images.shape[2:]
    theta = to_device(drawn.theta, images.device)
    views = _sample(images, theta, size)
    shrinks = (drawn.crop * torch.tensor([width, height]) > torch.tensor([size[1], size[0]])).any(dim=1)
    chosen = shrinks.nonzero()[:, 0]
    if len(chosen):  # never where images are as large as views
        points = math.ceil(max(height / size[0], width / size[1]))
        chosen = to_device(chosen, images.device)
        fine = _sample(images[chosen], theta[chosen], (points * size[0], points * size[1]))
        views[chosen] = F.avg_pool2d(fine, points)
    return views


def _sample(images: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """What ``F.affine_grid`` and ``F.grid_sample`` make of it; a point x + iy is one complex sum, not two products."""
    y, x = ((2 * torch.arange(side, device=images.device) + 1) / side - 1 for side in size)
    by_x, by_y, middle = torch.view_as_complex(theta.mT.contiguous())[:, :, None].unbind(dim=1)  # (B,1)
    grid = torch.view_as_real((by_x * x)[:, None, :] + (by_y * y + middle)[:, :, None])  # (B,height,width,2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def luma(images: Tensor) -> Tensor:
    """(B,3,height,width) or (B,1,height,width) to (B,1,height,width)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])[:, None]


def _blend(images: Tensor, weight: Tensor, of_luma: Tensor, of_mean: Tensor) -> None:
    """In place: ``weight`` of black, with its shares of the image's luma and the mean luma, all (B,1,1,1).

    Brightness, contrast and saturation by a factor f: weight is 1 - f.
    """
    gray = luma(images)
    gray = (gray * of_luma).add_(gray.mean(dim=(2, 3), keepdim=True) * of_mean)
    images.lerp_(gray, weight).clamp_(0, 1)


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with each image's ``sigma`` (B,), cut off at 3 of it; images continue mirrored.

    ``radius`` is that of the largest, in pixels; it is no more than a mirror image has.
    """
    batch, channels, height, width = images.shape
    radius = min(radius, height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]).square())  # (B,2*radius+1)
    kernel = kernel * (distance.abs() <= (3 * sigma[:, None]).ceil())  # no image's view depends on the others'
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images, [radius] * 4, mode="reflect").reshape(1, batch * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    return planes.view(batch, channels, height, width)


def _hue(images: Tensor, turn: Tensor) -> None:
    """In place: turns the hue by ``turn`` (B,1,1,1) of a full circle, in HSV; value and saturation stay.

    With channels as shares u of the way from the smallest to the largest, the hue is 1 + u_green + u_blue - u_red
    sixths of a circle from red, towards green where that is above blue: no case for each of the largest.
    """
    red, green, blue = images.unbind(dim=1)  # (B,height,width)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    hue = (green + blue).sub_(red).sub_(least).mul_(scale).add_(1).copysign_(green - blue)
    hue.add_(6 * turn[:, 0])
    hue.sub_((hue / 6).floor_(), alpha=6)  # remainder(6), in operations that are vectorised
    for channel, pure in ((red, 0), (green, 2), (blue, 4)):
        # How far the hue is from the channel's: it has value within 1 of that, value - chroma beyond 2.
        far = (hue - pure).abs_() if pure else (hue - 3).abs_().neg_().add_(3)
        channel.copy_(torch.addcmul(value, chroma, far.sub_(1).clamp_(0, 1), value=-1))
