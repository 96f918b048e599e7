"""Random views of 32x32 images: ours against torchvision on PIL images, torchvision v2 on tensors, and kornia."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench.timing import Candidate, Row, Work, alternate_processes, compare
from scan_core.images.store import ArrayImages
from scan_core.views.random_view import random_view
from scan_core.views.settings import SimclrAugmentation, StrongAugmentation

BATCH = 512
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
SIMCLR = SimclrAugmentation(
    kind="simclr", crop_size=None, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.3333), rotate=0, shear=0, flip=0.5,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0, blur_sigma=(0.1, 2.0),
)  # fmt: skip
STRONG = StrongAugmentation(kind="strong", flip=0.5, operations=4, cutout=16)
TARGETS = {"torchvision on PIL in workers": "≥ 15", "kornia": "≥ 6"}


def synthetic_images(count: int, side: int = 32, channels: int = 3) -> np.ndarray:
    """(count,side,side,channels) uint8: random colors in blocks of 4x4, because no operation should see mere noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, channels), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def torchvision_recipe(on_tensors: bool) -> Any:
    """The usual recipe for one image: version 1 on PIL images, or version 2 on uint8 tensors."""
    if on_tensors:
        from torchvision.transforms import v2 as transforms

        to_float = transforms.ToDtype(torch.float32, scale=True)
    else:
        from torchvision import transforms

        to_float = transforms.ToTensor()
    return transforms.Compose([
        transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        to_float,
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip


class TorchvisionViews(torch.utils.data.Dataset[Any]):
    """``views`` random views of each image by ``torchvision_recipe``."""

    def __init__(self, stored: np.ndarray, on_tensors: bool, views: int = 1) -> None:
        """``stored``: (N,side,side,channels) uint8."""
        self.stored, self.on_tensors, self.views = stored, on_tensors, views
        self.transform = torchvision_recipe(on_tensors)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        from PIL import Image

        stored = self.stored[row]
        image = torch.from_numpy(stored).permute(2, 0, 1) if self.on_tensors else Image.fromarray(stored)
        return [self.transform(image) for _ in range(self.views)]


class EndlessLoader:
    """A ``DataLoader`` that keeps its workers and never ends: a call returns the next batch."""

    def __init__(self, dataset: torch.utils.data.Dataset[Any], batch: int, workers: int) -> None:
        """The workers start with the first call."""
        self.loader = torch.utils.data.DataLoader(
            dataset, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
        )
        self.batches: Iterator[Any] = iter(())

    def __call__(self) -> Any:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)


def measure(seconds: float, rounds: int) -> list[Row]:
    """Views per second on all cores."""
    candidates = {
        "ours": Candidate(_ours, (SIMCLR,)),
        "ours, memory given back": Candidate(_ours, (SIMCLR,), keep_memory=False),
        "torchvision on PIL in workers": Candidate(_torchvision, (False,), keep_memory=False),
        "torchvision v2 on tensors in workers": Candidate(_torchvision, (True,), keep_memory=False),
        "ours, strong": Candidate(_ours, (STRONG,)),
    }
    if importlib.util.find_spec("kornia"):
        candidates["kornia"] = Candidate(_kornia, keep_memory=False)
        candidates["kornia, freed memory kept"] = Candidate(_kornia)
    else:
        print("kornia is not installed: make bench installs it")
    rates, peaks = alternate_processes(candidates, seconds, rounds)
    rows = [
        compare("SimCLR views, 32x32", rates, "ours", peer, target=TARGETS.get(peer, ""), mib=peaks["ours"])
        for peer in candidates
        if peer not in ("ours", "ours, strong")
    ]
    strong = sorted(rates["ours, strong"])[rounds // 2]
    return [*rows, Row("strong views, 32x32", strong, mib=peaks["ours, strong"])]


def _ours(settings: SimclrAugmentation | StrongAugmentation) -> Work:
    stored = synthetic_images(10_000)
    images, generator = ArrayImages(torch.device("cpu"), [stored], MEAN, STD), torch.Generator().manual_seed(0)

    def work() -> int:
        rows = torch.randint(len(stored), (BATCH,), generator=generator)
        return len(random_view(images, rows, settings, generator))

    return work


def _torchvision(on_tensors: bool) -> Work:
    loader = EndlessLoader(TorchvisionViews(synthetic_images(10_000), on_tensors), BATCH, os.cpu_count() or 1)
    return lambda: len(loader()[0])


def _kornia() -> Work:
    """The same recipe, with its parameters drawn per image of a float batch."""
    from kornia import augmentation as kornia

    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    images = torch.from_numpy(synthetic_images(10_000)).permute(0, 3, 1, 2)

    def work() -> int:
        batch = images[torch.randint(len(images), (BATCH,))].float() / 255
        return len(transform(batch))

    return work
