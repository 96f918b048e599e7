"""A pretext step beside the usual recipes: a DataLoader of PIL images in fp32, and lightly's example."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.steps import LONG, constant, driven, preset, setting
from bench.timing import Row, Side, Work, apart, compared
from bench.views import Loaded, Photos, pixels
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.models.networks import build_backbone
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.simclr import start_simclr, train_simclr

CORES = os.cpu_count() or 1
RESNET18_FLOP = 3.34e9  # forward and backward of one 32x32 view: three times 2 * 0.557 G multiply-adds


def recipes(batch: int, spells: int) -> list[Row]:
    """A SimCLR step of ResNet-18 at 32x32: ours and the usual recipe, each in both precisions, and lightly's."""
    sides = {
        "ours, bf16": Side(_ours, ("bf16", batch)),
        "ours, fp32": Side(_ours, ("fp32", batch)),
        "ours, bf16, memory given back": Side(_ours, ("bf16", batch), ours=False),
        "PIL in workers, bf16": Side(_usual, ("bf16", batch), ours=False),
        "PIL in workers, fp32": Side(_usual, ("fp32", batch), ours=False),
    }
    if importlib.util.find_spec("lightly"):
        sides["lightly, fp32"] = Side(_lightly, (batch,), ours=False)
    else:
        print("lightly is not installed: make bench installs it")
    rates, peaks = apart(sides, 0.1, spells)  # at least one step each
    what = f"pretext step, resnet18, batch {batch}"
    found = [
        compared(f"{what}: ours in bf16", rates, "ours, bf16", "PIL in workers, fp32", bar="≥ 3"),
        compared("  of which memory that is kept", rates, "ours, bf16", "ours, bf16, memory given back"),
        compared("  of which the pipeline", rates, "ours, bf16, memory given back", "PIL in workers, bf16"),
        compared("  of which bf16, in the recipe", rates, "PIL in workers, bf16", "PIL in workers, fp32"),
        compared("  what bf16 is in ours", rates, "ours, bf16", "ours, fp32"),
    ]
    if "lightly, fp32" in rates:
        found.append(compared("  beside lightly's example, fed its own way", rates, "ours, bf16", "lightly, fp32"))
    share = [RESNET18_FLOP * rate / matmul() for rate in rates["ours, bf16"]]
    found.append(Row("  share of a 4096² bf16 product's rate", found[0].rate, "the product", share, "≥ 0.45"))
    for row in found:
        row.mib = peaks["ours, bf16"]
    return found


def _ours(precision: str, batch: int) -> Work:
    """The loop of the stage."""
    fabric = make_fabric(precision, "cpu")
    params, images, rows = setting("resnet18", fabric)
    settings = params.pretext.model_copy(update={"batch_size": batch, "epochs": LONG})
    state = start_simclr(settings, build_backbone(params.backbone, 3), len(rows), seed_everything(0), fabric)
    return driven(train_simclr(state, images, rows, settings, fabric))


def _usual(precision: str, batch: int) -> Work:
    """The same network, loss and optimiser, fed by a DataLoader of PIL images."""
    fabric = make_fabric(precision, "cpu")
    params, _, rows = setting("resnet18", fabric)
    state = start_simclr(params.pretext, build_backbone(params.backbone, 3), len(rows), seed_everything(0), fabric)
    loaded = Loaded(Photos(pixels(8 * batch), on_tensors=False, views=2), batch, CORES)

    def loss(model: nn.Module) -> Tensor:
        projected = model(torch.cat(loaded()))[1].chunk(2)
        return nt_xent(*projected, params.pretext.temperature)

    return constant(fabric, state.module, state.optimizer, 2 * batch, loss)


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


def _lightly(batch: int) -> Work:
    """lightly's SimCLR: its views, its loader, its head and its loss; our backbone and optimiser."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    params = preset("cifar10")
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
