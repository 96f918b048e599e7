"""SimCLR's views at 32x32: ours beside torchvision on PIL in workers, torchvision v2 on tensors, and kornia."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench.timing import Row, Side, Work, apart, compared
from scan_core.images.store import images_on
from scan_core.settings import SimclrAugmentation, StrongAugmentation
from scan_core.views.random_view import random_view

BATCH = 512
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
SIMCLR = SimclrAugmentation(
    kind="simclr", crop_size=None, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.3333), rotate=0, shear=0, flip=0.5,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0, blur_sigma=(0.1, 2.0),
)  # fmt: skip
STRONG = StrongAugmentation(kind="strong", flip=0.5, operations=4, cutout=16)


def pixels(count: int, side: int = 32, channels: int = 3) -> np.ndarray:
    """(count,side,side,channels) uint8: smooth random colours, so that no operation meets noise alone."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, channels), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def torchvision_recipe(on_tensors: bool) -> Any:
    """The usual recipe for one image, on PIL (version 1) or on a uint8 tensor (version 2)."""
    if on_tensors:
        from torchvision.transforms import v2 as transforms

        last = [transforms.ToDtype(torch.float32, scale=True)]
    else:
        from torchvision import transforms

        last = [transforms.ToTensor()]
    return transforms.Compose([
        transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        *last,
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip


class Photos(torch.utils.data.Dataset[Any]):
    """``views`` views of each image, as a data loader takes them."""

    def __init__(self, stored: np.ndarray, on_tensors: bool, views: int = 1) -> None:
        self.stored, self.on_tensors, self.views = stored, on_tensors, views
        self.transform = torchvision_recipe(on_tensors)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        from PIL import Image

        image = torch.from_numpy(self.stored[row]).permute(2, 0, 1) if self.on_tensors else None
        image = Image.fromarray(self.stored[row]) if image is None else image
        return [self.transform(image) for _ in range(self.views)]


class Loaded:
    """Batches of a ``DataLoader`` without end, its workers kept."""

    def __init__(self, photos: torch.utils.data.Dataset[Any], batch: int, workers: int) -> None:
        self.loader = torch.utils.data.DataLoader(
            photos, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
        )
        self.batches: Iterator[Any] = iter(())  # the workers start with the first batch

    def __call__(self) -> Any:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)


def measure(seconds: float, spells: int) -> list[Row]:
    """Views a second on all cores."""
    sides = {
        "ours": Side(_ours, (SIMCLR,)),
        "ours, memory given back": Side(_ours, (SIMCLR,), ours=False),
        "torchvision on PIL in workers": Side(_loaded, (False,), ours=False),
        "torchvision v2 on tensors in workers": Side(_loaded, (True,), ours=False),
        "ours, strong": Side(_ours, (STRONG,)),
    }
    if importlib.util.find_spec("kornia"):
        sides |= {"kornia": Side(_kornia, ours=False), "kornia, freed memory kept": Side(_kornia)}
    else:
        print("kornia is not installed: make bench installs it")
    rates, peaks = apart(sides, seconds, spells)
    bars = {"torchvision on PIL in workers": "≥ 15", "kornia": "≥ 6"}
    rows = [
        compared("SimCLR views, 32x32", rates, "ours", peer, bar=bars.get(peer, ""), mib=peaks["ours"])
        for peer in sides
        if peer not in ("ours", "ours, strong")
    ]
    strong = sorted(rates["ours, strong"])[spells // 2]
    return [*rows, Row("strong views, 32x32", strong, mib=peaks["ours, strong"])]


def _ours(settings: SimclrAugmentation | StrongAugmentation) -> Work:
    stored = pixels(10_000)
    images, generator = images_on(torch.device("cpu"), stored, MEAN, STD), torch.Generator().manual_seed(0)

    def work() -> int:
        rows = torch.randint(len(stored), (BATCH,), generator=generator)
        return len(random_view(images, rows, settings, generator))

    return work


def _loaded(on_tensors: bool) -> Work:
    loaded = Loaded(Photos(pixels(10_000), on_tensors), BATCH, os.cpu_count() or 1)
    return lambda: len(loaded()[0])


def _kornia() -> Work:
    """The same recipe drawn for each image of a float batch."""
    from kornia import augmentation as kornia

    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    images = torch.from_numpy(pixels(10_000)).permute(0, 3, 1, 2)

    def work() -> int:
        batch = images[torch.randint(len(images), (BATCH,))].float() / 255
        return len(transform(batch))

    return work
