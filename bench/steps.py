"""The training loops against their ceiling: the same model, precision, loss and optimizer on one constant batch.

A loop is driven step by step, as its stage drives it. Its epochs are so long that the validation between two epochs is
never measured. What a step of the loop takes beyond the ceiling's step is not the model's: views, sampling, gathering
and bookkeeping.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.timing import Row, Work, alternate, compare
from bench.views import MEAN, STD, synthetic_images
from pipeline import presets
from pipeline.params import Params
from scan_core.clustering.losses import confident_cross_entropy, scan_loss
from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.clustering.settings import known_number
from scan_core.compute.cuda_graphs import CudaGraphed, cuda_graphed, make_capturable
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.images.store import ArrayImages, Images
from scan_core.models.inference import batch_size, embed
from scan_core.models.networks import ClusterHeads, Model, build_backbone, feature_size
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.simclr import start_simclr, train_simclr
from scan_core.training.state import Progress, Step
from scan_core.training.step import compiled_model, pays_to_compile
from scan_core.views.random_view import random_view
from scan_core.views.settings import NoAugmentation

ENDLESS = 1_000_000  # rows per epoch, and epochs
PRESETS = {"resnet18": "cifar10", "digits": "digits"}

Candidates = tuple[str, dict[str, Work]]  # what is measured; the works "loop" and "ceiling"


def preset(name: str) -> Params:
    """The settings of a preset. PyYAML reads them if ruamel.yaml is missing, as on many a GPU machine."""
    try:
        return presets.read_preset(presets.PRESETS / f"{name}.yaml")
    except ImportError:
        import yaml

        own, base = (
            yaml.safe_load((presets.PRESETS / file).read_text(encoding="utf-8"))
            for file in (f"{name}.yaml", presets.BASE)
        )
        return Params.model_validate_json(json.dumps(presets.complete(own or {}, base)))


def load_setup(network: str, fabric: Any) -> tuple[Params, Images, Tensor]:
    """The parameters of the digits' default or of published CIFAR-10, images of its size, and an epoch's rows."""
    params = preset(PRESETS[network])
    side, channels = (16, 1) if network == "digits" else (32, 3)
    images = ArrayImages(fabric.device, [synthetic_images(4096, side, channels)], MEAN[:channels], STD[:channels])
    return params, images, torch.arange(ENDLESS) % images.count


def next_step(loop: Progress) -> Work:
    """One step of a training loop per call."""

    def work() -> int:
        record = next(loop)
        assert isinstance(record, Step)  # otherwise the epoch was too short
        return record.images

    return work


def constant_step(fabric: Any, module: Model, optimizer: Any, images: int, loss: Callable[[nn.Module], Tensor]) -> Work:
    """The ceiling: a step on a constant batch of ``images``; on a GPU it is a CUDA graph, as the loop's step is."""
    model, optimizer = fabric.setup(compiled_model(module) if pays_to_compile(fabric, ENDLESS) else module, optimizer)
    model.train()

    def step() -> tuple[Tensor, ...]:
        fabric.backward(loss(model))
        optimizer.step()
        optimizer.zero_grad()
        return ()

    run_step = cuda_graphed(step, fabric.device)
    if isinstance(run_step, CudaGraphed):
        make_capturable(optimizer, fabric.device)

    def work() -> int:
        run_step()
        return images

    return work


def compare_with_ceiling(make: Callable[..., Candidates], seconds: float, rounds: int, *args: Any) -> list[Row]:
    """The row of a loop on the CPU; ``make`` returns the loop and its ceiling."""
    what, works = make(make_fabric("auto", "cpu"), *args)
    return [ceiling_row(what, alternate(works, seconds, rounds))]


def ceiling_row(what: str, rates: dict[str, list[float]]) -> Row:
    """A loop's images per second, with their ratios to the ceiling's."""
    row = compare(what, rates, "loop", "ceiling", target="≥ 0.90")
    return replace(row, peer="the same on one constant batch", overhead=max(0.0, 1 - row.ratio))


def pretext_step(fabric: Any, network: str, batch: int) -> Candidates:
    """SimCLR."""
    params, images, rows = load_setup(network, fabric)
    settings = params.pretext.model_copy(update={"batch_size": batch, "epochs": ENDLESS})
    states = [
        start_simclr(settings, build_backbone(params.backbone, images.channels), len(rows), seed_everything(0), fabric)
        for _ in range(2)
    ]
    views = random_view(images, rows[:batch].repeat(2), settings.augmentation, seed_everything(0))

    def loss(model: nn.Module) -> Tensor:
        first, second = model(views)[1].chunk(2)
        return nt_xent(first, second, settings.temperature)

    return f"pretext step, {network}, batch {batch}", {
        "loop": next_step(train_simclr(states[0], images, rows, settings, fabric)),
        "ceiling": constant_step(fabric, states[1].module, states[1].optimizer, len(views), loss),
    }


def scan_step(fabric: Any, network: str, batch: int, frozen: bool) -> Candidates:
    """The SCAN loss. If ``frozen``, ten heads train on features that were computed once."""
    params, images, rows = load_setup(network, fabric)
    changes: dict[str, Any] = {"batch_size": batch, "epochs": ENDLESS}
    if frozen:
        changes |= {"train": "head", "augmentation": NoAugmentation(kind="none"), "heads": 10}
        # The features of all rows are computed before the first step, so the images are small to allow a long epoch.
        images, rows = ArrayImages(fabric.device, [synthetic_images(4096, 8)], MEAN, STD), rows[:65_536]
    settings = params.cluster.model_copy(update=changes)
    states = [
        start_scan(settings, Model(build_backbone(params.backbone, images.channels), nn.Identity()), 0, fabric)
        for _ in range(2)
    ]
    views = random_view(images, rows[: 2 * batch], settings.augmentation, seed_everything(0))
    if frozen:
        views = torch.randn(2 * batch, feature_size(states[0].module.backbone), device=fabric.device)

    def loss(model: nn.Module) -> Tensor:
        logits = states[1].module.head(views) if frozen else model(views)[1]
        anchors, partners = F.log_softmax(logits, dim=-1).chunk(2, dim=1)
        return scan_loss(anchors, partners, settings.entropy_weight)[0].sum()

    loop = train_scan(states[0], images, rows, *_random_neighbors(rows, settings), settings, fabric)
    what = "heads on cached features of" if frozen else "SCAN step,"
    return f"{what} {network}, batch {batch}", {
        "loop": next_step(record for record in loop if isinstance(record, Step)),
        "ceiling": constant_step(fabric, states[1].module, states[1].optimizer, len(views), loss),
    }


def _random_neighbors(rows: Tensor, settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbors of each row, 64 validation rows, and their neighbors: what ``train_scan`` takes after the rows."""
    neighbors = torch.randint(len(rows), (len(rows), settings.neighbors))
    return neighbors, rows[:64], torch.randint(64, (64, settings.val_neighbors))


def selflabel_step(fabric: Any, network: str, batch: int) -> Candidates:
    """Self-labeling. Every prediction counts as confident, so no step is skipped."""
    params, images, rows = load_setup(network, fabric)
    settings = params.selflabel.model_copy(update={"batch_size": batch, "epochs": ENDLESS, "threshold": 1e-6})

    def start() -> Any:
        backbone = build_backbone(params.backbone, images.channels)
        heads = ClusterHeads(feature_size(backbone), known_number(params.cluster), 1)
        return start_selflabel(settings, Model(backbone, heads), 0, fabric)

    states = [start(), start()]
    # The evaluation before the first epoch is skipped because the loop finds its results.
    states[0].assignments, states[0].confident = [torch.zeros(64, dtype=torch.int32)], [1.0]
    plain = images.plain_view(rows[:batch])
    strong = random_view(images, rows[:batch], settings.augmentation, seed_everything(0))

    def loss(model: nn.Module) -> Tensor:
        with torch.no_grad():
            weak = F.log_softmax(model(plain)[1][0], dim=-1)
        logits = model(strong)[1][0]
        return confident_cross_entropy(logits, weak, settings.threshold, settings.class_weights)

    return f"self-label step, {network}, batch {batch}", {
        "loop": next_step(train_selflabel(states[0], images, rows, rows[:64], settings, fabric)),
        "ceiling": constant_step(fabric, states[1].module, states[1].optimizer, 2 * batch, loss),
    }


def embedding(fabric: Any, network: str) -> Candidates:
    """The embed stage's loop against the bare model on one constant batch of the same size."""
    params, images, _ = load_setup(network, fabric)
    batch = batch_size(images)
    model = Model(build_backbone(params.backbone, images.channels), nn.Identity()).eval().to(fabric.device)
    views, rows = images.plain_view(torch.arange(batch)), torch.arange(2 * batch)

    @torch.no_grad()
    def bare() -> int:
        with fabric.autocast():
            model(views)
        return batch

    return f"embedding, {network}", {
        "loop": lambda: len(embed(model, images, rows, False, fabric)),
        "ceiling": bare,
    }


def heads(seconds: float, rounds: int) -> list[Row]:
    """The loop of the digits' default with ten heads against the same loop with one."""
    fabric, works = make_fabric("auto", "cpu"), {}
    params, images, rows = load_setup("digits", fabric)
    for count in (10, 1):
        settings = params.cluster.model_copy(update={"heads": count, "epochs": ENDLESS})
        state = start_scan(settings, Model(build_backbone(params.backbone, images.channels), nn.Identity()), 0, fabric)
        loop = train_scan(state, images, rows, *_random_neighbors(rows, settings), settings, fabric)
        works[f"{count}"] = next_step(loop)
    rates = alternate(works, seconds, rounds)
    return [compare("SCAN step, digits, 10 heads", rates, "10", "1", note="compared with one head")]
