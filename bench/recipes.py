"""A pretext step against the usual recipes: a DataLoader of PIL images in fp32, and lightly's example."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.steps import ENDLESS, constant_step, load_setup, next_step, preset
from bench.timing import Candidate, Row, Work, alternate_processes, compare
from bench.views import EndlessLoader, TorchvisionViews, synthetic_images
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.models.networks import build_backbone
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.simclr import start_simclr, train_simclr

CORES = os.cpu_count() or 1
RESNET18_FLOP = 3.34e9  # forward and backward of one 32x32 view: three times 2 * 0.557 G multiply-adds


def measure(batch: int, rounds: int) -> list[Row]:
    """A SimCLR step of ResNet-18 at 32x32: ours and the usual recipe, each in two precisions, and lightly's."""
    candidates = {
        "ours, bf16": Candidate(_ours, ("bf16", batch)),
        "ours, fp32": Candidate(_ours, ("fp32", batch)),
        "ours, bf16, memory given back": Candidate(_ours, ("bf16", batch), keep_memory=False),
        "PIL in workers, bf16": Candidate(_usual, ("bf16", batch), keep_memory=False),
        "PIL in workers, fp32": Candidate(_usual, ("fp32", batch), keep_memory=False),
    }
    if importlib.util.find_spec("lightly"):
        candidates["lightly, fp32"] = Candidate(_lightly, (batch,), keep_memory=False)
    else:
        print("lightly is not installed: make bench installs it")
    rates, peaks = alternate_processes(candidates, 0.1, rounds)  # at least one step per round
    what = f"pretext step, resnet18, batch {batch}"
    rows = [
        compare(f"{what}: ours in bf16", rates, "ours, bf16", "PIL in workers, fp32", target="≥ 3"),
        compare("  of which memory that is kept", rates, "ours, bf16", "ours, bf16, memory given back"),
        compare("  of which the pipeline", rates, "ours, bf16, memory given back", "PIL in workers, bf16"),
        compare("  of which bf16, in the recipe", rates, "PIL in workers, bf16", "PIL in workers, fp32"),
        compare("  what bf16 is in ours", rates, "ours, bf16", "ours, fp32"),
    ]
    if "lightly, fp32" in rates:
        rows.append(compare("  lightly's example, with its own loader", rates, "ours, bf16", "lightly, fp32"))
    share = [RESNET18_FLOP * rate / matmul_flops() for rate in rates["ours, bf16"]]
    rows.append(Row("  share of a 4096² bf16 product's rate", rows[0].rate, "the product", share, "≥ 0.45"))
    for row in rows:
        row.mib = peaks["ours, bf16"]
    return rows


def _ours(precision: str, batch: int) -> Work:
    """The pretext stage's loop."""
    fabric = make_fabric(precision, "cpu")
    params, images, rows = load_setup("resnet18", fabric)
    settings = params.pretext.model_copy(update={"batch_size": batch, "epochs": ENDLESS})
    state = start_simclr(settings, build_backbone(params.backbone, 3), len(rows), seed_everything(0), fabric)
    return next_step(train_simclr(state, images, rows, settings, fabric))


def _usual(precision: str, batch: int) -> Work:
    """The same network, loss and optimizer on the batches of a DataLoader of PIL images."""
    fabric = make_fabric(precision, "cpu")
    params, _, rows = load_setup("resnet18", fabric)
    state = start_simclr(params.pretext, build_backbone(params.backbone, 3), len(rows), seed_everything(0), fabric)
    loader = EndlessLoader(TorchvisionViews(synthetic_images(8 * batch), on_tensors=False, views=2), batch, CORES)

    def loss(model: nn.Module) -> Tensor:
        projected = model(torch.cat(loader()))[1].chunk(2)
        return nt_xent(*projected, params.pretext.temperature)

    return constant_step(fabric, state.module, state.optimizer, 2 * batch, loss)


def matmul_flops(side: int = 4096, repeats: int = 3) -> float:
    """FLOP/s of a bf16 product of two square matrices on all cores, the best of ``repeats``."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


class LabeledViews(torch.utils.data.Dataset[Any]):
    """Views of PIL images by ``transform``, each with a class, because lightly's example expects one."""

    def __init__(self, stored: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        """``stored``: (N,side,side,3) uint8."""
        self.stored, self.transform = stored, transform

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.stored[row])), 0


def _lightly(batch: int) -> Work:
    """lightly's SimCLR: its views, loader, head and loss with our backbone and optimizer."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    params = preset("cifar10")
    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    loader = EndlessLoader(LabeledViews(synthetic_images(8 * batch), transform), batch, CORES)
    backbone = build_backbone(params.backbone, 3)
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    criterion = NTXentLoss(temperature=params.pretext.temperature)

    def work() -> int:
        (first, second), _ = loader()
        loss = criterion(model(first), model(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return 2 * len(first)

    return work
