"""A pretext step beside the usual recipes: a DataLoader of PIL images in fp32, and lightly's example."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.steps import LONG, constant, driven, setting
from bench.timing import Row, allocating, compared, in_turn
from bench.views import Loaded, Photos, pixels
from pipeline.params import Params
from scan_core.device import make_fabric, seeded
from scan_core.losses import nt_xent
from scan_core.networks import build_backbone
from scan_core.simclr import start_simclr, train_simclr

CORES = os.cpu_count() or 1
RESNET18_FLOP = 3.34e9  # forward and backward of one 32x32 view: three times 2 * 0.557 G multiply-adds


def recipes(batch: int, spells: int) -> list[Row]:
    """A SimCLR step of ResNet-18 at 32x32: ours and the usual recipe, each in both precisions, and lightly's."""
    params, images, rows = setting("resnet18", make_fabric("fp32", "cpu"))
    settings = params.pretext.model_copy(update={"batch_size": batch, "epochs": LONG})
    sides: dict[str, Any] = {}
    photos = Photos(pixels(8 * batch), on_tensors=False, views=2)
    for precision in ("bf16", "fp32"):
        fabric = make_fabric(precision, "cpu")
        ours, usual = (
            start_simclr(settings, build_backbone(params.backbone, 3), len(rows), seeded(0), fabric) for _ in range(2)
        )
        step = driven(train_simclr(ours, images, rows, settings, fabric))
        sides[f"ours, {precision}"] = allocating(step, keeping=True)
        sides[f"ours, {precision}, memory given back"] = allocating(step, keeping=False)
        loaded = Loaded(photos, batch, CORES)

        def loss(model: nn.Module, loaded: Loaded = loaded) -> tuple[Tensor, int]:
            first, second = loaded()
            projected = model(torch.cat([first, second]))[1].chunk(2)
            return nt_xent(*projected, settings.temperature), 2 * len(first)

        step = constant(fabric, usual.module, usual.optimizer, loss)
        sides[f"PIL in workers, {precision}"] = allocating(step, keeping=False)
    try:
        sides["lightly, fp32"] = allocating(_lightly(params, batch), keeping=False)
    except ImportError:
        print("lightly is not installed: make bench installs it")
    rates = in_turn(sides, 0.1, spells)  # at least one step each
    what = f"pretext step, resnet18, batch {batch}"
    found = [
        compared(f"{what}: ours in bf16", rates, "ours, bf16", "PIL in workers, fp32", bar="≥ 3"),
        compared("  of which bf16", rates, "ours, bf16", "ours, fp32"),
        compared("  of which memory that is kept, in bf16", rates, "ours, bf16", "ours, bf16, memory given back"),
        compared("  of which memory that is kept, in fp32", rates, "ours, fp32", "ours, fp32, memory given back"),
        compared("  of which the pipeline, in bf16", rates, "ours, bf16, memory given back", "PIL in workers, bf16"),
        compared("  of which the pipeline, in fp32", rates, "ours, fp32, memory given back", "PIL in workers, fp32"),
    ]
    if "lightly, fp32" in rates:
        found.append(compared("  beside lightly's example, fed its own way", rates, "ours, bf16", "lightly, fp32"))
    share = [RESNET18_FLOP * rate / matmul() for rate in rates["ours, bf16"]]
    return [*found, Row("  share of a 4096² bf16 product's rate", found[0].rate, "the product", share, "≥ 0.45")]


def matmul(side: int = 4096, repeats: int = 3) -> float:
    """FLOP/s of a bf16 product of two square matrices on all cores; the best of some."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


class Pictures(torch.utils.data.Dataset[Any]):
    """The transform's views of PIL images, with a class, as torchvision's data sets give them to lightly's example."""

    def __init__(self, stored: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.stored, self.transform = stored, transform

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.stored[row])), 0


def _lightly(params: Params, batch: int) -> Any:
    """lightly's SimCLR: its views, its loader, its head and its loss; our backbone and optimiser."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    loaded = Loaded(Pictures(pixels(8 * batch), SimCLRTransform(input_size=32, gaussian_blur=0.0)), batch, CORES)
    backbone = build_backbone(params.backbone, 3)
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    criterion = NTXentLoss(temperature=params.pretext.temperature)

    def work() -> int:
        (first, second), _ = loaded()
        loss = criterion(model(first), model(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return 2 * len(first)

    return work
