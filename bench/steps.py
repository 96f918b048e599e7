"""The training loops beside their ceiling: the same model, precision, loss and optimiser on one constant batch.

The loops are driven step by step as the stages drive them. Epochs are made long enough that validation, which comes
between two of them, falls outside. What a step takes beyond the ceiling's is not the model's: views, sampling,
gathering, bookkeeping.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.timing import Row, compared, in_turn
from bench.views import MEAN, STD, pixels
from pipeline import presets
from pipeline.params import Params
from scan_core.clustering.losses import confident_cross_entropy, scan_loss
from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.compute.cuda_graphs import CudaGraphed, cuda_graphed, make_capturable
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.images.store import Images, images_on
from scan_core.models.inference import batch_of, embed
from scan_core.models.networks import ClusterHeads, Model, build_backbone, feature_size
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.simclr import start_simclr, train_simclr
from scan_core.settings import NoAugmentation
from scan_core.training.state import Progress, Step
from scan_core.training.step import compiled
from scan_core.views.random_view import random_view

LONG = 1_000_000  # rows of an epoch, and epochs
PRESETS = {"resnet18": "cifar10", "digits": "digits"}


def preset(name: str) -> Params:
    """A preset's settings, also where ruamel.yaml is missing but PyYAML is not, as on many a GPU machine."""
    try:
        return presets.read_preset(presets.PRESETS / f"{name}.yaml")
    except ImportError:
        import yaml

        own, base = (
            yaml.safe_load((presets.PRESETS / file).read_text(encoding="utf-8"))
            for file in (f"{name}.yaml", presets.BASE)
        )
        return Params.model_validate_json(json.dumps(presets.complete(own or {}, base)))


def setting(network: str, fabric: Any) -> tuple[Params, Images, Tensor]:
    """Parameters of the digits' default or of published CIFAR-10, images of that size, and the rows of a long epoch."""
    params = preset(PRESETS[network])
    side, channels = (16, 1) if network == "digits" else (32, 3)
    images = images_on(fabric.device, pixels(4096, side, channels), MEAN[:channels], STD[:channels])
    return params, images, torch.arange(LONG) % images.count


def driven(loop: Progress) -> Callable[[], int]:
    """One step of a loop a call."""

    def work() -> int:
        record = next(loop)
        assert isinstance(record, Step)  # or the epoch was too short
        return record.images

    return work


def constant(
    fabric: Any, module: Model, optimizer: Any, images: int, loss: Callable[[nn.Module], Tensor]
) -> Callable[[], int]:
    """The ceiling: one step on what never changes, of so many images; recorded on a GPU, as the loops' are."""
    model, optimizer = fabric.setup(compiled(module, fabric, LONG), optimizer)
    model.train()

    def step() -> tuple[Tensor, ...]:
        fabric.backward(loss(model))
        optimizer.step()
        optimizer.zero_grad()
        return ()

    once = cuda_graphed(step, fabric.device)
    if isinstance(once, CudaGraphed):
        make_capturable(optimizer, fabric.device)

    def work() -> int:
        once()
        return images

    return work


Sides = tuple[str, dict[str, Callable[[], int]]]  # what is compared, and the loop and its ceiling


def beside(sides: Callable[..., Sides], seconds: float, spells: int, *args: Any) -> list[Row]:
    """The row of a loop and its ceiling on the CPU."""
    what, works = sides(make_fabric("auto", "cpu"), *args)
    return [ceiling_row(what, in_turn(works, seconds, spells))]


def ceiling_row(what: str, rates: dict[str, list[float]]) -> Row:
    """A loop's images a second beside its ceiling's."""
    found = compared(what, rates, "loop", "ceiling", bar="≥ 0.90")
    return replace(found, peer="the same on one constant batch", outside=max(0.0, 1 - found.ratio))


def pretext_step(fabric: Any, network: str, batch: int) -> Sides:
    """SimCLR."""
    params, images, rows = setting(network, fabric)
    settings = params.pretext.model_copy(update={"batch_size": batch, "epochs": LONG})
    states = [
        start_simclr(settings, build_backbone(params.backbone, images.channels), len(rows), seed_everything(0), fabric)
        for _ in range(2)
    ]
    views = random_view(images, rows[:batch].repeat(2), settings.augmentation, seed_everything(0))

    def loss(model: nn.Module) -> Tensor:
        first, second = model(views)[1].chunk(2)
        return nt_xent(first, second, settings.temperature)

    return f"pretext step, {network}, batch {batch}", {
        "loop": driven(train_simclr(states[0], images, rows, settings, fabric)),
        "ceiling": constant(fabric, states[1].module, states[1].optimizer, len(views), loss),
    }


def scan_step(fabric: Any, network: str, batch: int, frozen: bool) -> Sides:
    """The SCAN loss; ``frozen``: ten heads on features that are computed once."""
    params, images, rows = setting(network, fabric)
    changes: dict[str, Any] = {"batch_size": batch, "epochs": LONG}
    if frozen:
        changes |= {"train": "head", "augmentation": NoAugmentation(kind="none"), "heads": 10}
        # Each row has its features, whose making is not timed: of images so small that epochs can be long.
        images, rows = images_on(fabric.device, pixels(4096, 8), MEAN, STD), rows[:65_536]
    settings = params.cluster.model_copy(update=changes)
    states = [
        start_scan(settings, Model(build_backbone(params.backbone, images.channels), nn.Identity()), 0, fabric)
        for _ in range(2)
    ]
    neighbors = torch.randint(len(rows), (len(rows), settings.neighbors))
    val_neighbors = torch.randint(64, (64, settings.val_neighbors))
    views = random_view(images, rows[: 2 * batch], settings.augmentation, seed_everything(0))
    if frozen:
        views = torch.randn(2 * batch, feature_size(states[0].module.backbone), device=fabric.device)

    def loss(model: nn.Module) -> Tensor:
        logits = (states[1].module(views, embedded=True) if frozen else model(views))[1]
        anchors, partners = F.log_softmax(logits, dim=-1).chunk(2, dim=1)
        return scan_loss(anchors, partners, settings.entropy_weight)[0].sum()

    loop = train_scan(states[0], images, rows, neighbors, rows[:64], val_neighbors, settings, fabric)
    what = "heads on cached features of" if frozen else "SCAN step,"
    return f"{what} {network}, batch {batch}", {
        "loop": driven(record for record in loop if isinstance(record, Step)),
        "ceiling": constant(fabric, states[1].module, states[1].optimizer, len(views), loss),
    }


def selflabel_step(fabric: Any, network: str, batch: int) -> Sides:
    """Self-labelling, with everything confident: no step is skipped."""
    params, images, rows = setting(network, fabric)
    settings = params.selflabel.model_copy(update={"batch_size": batch, "epochs": LONG, "threshold": 1e-6})

    def start() -> Any:
        backbone = build_backbone(params.backbone, images.channels)
        heads = ClusterHeads(feature_size(backbone), params.cluster.num_clusters, 1)
        return start_selflabel(settings, Model(backbone, heads), 0, fabric)

    states = [start(), start()]
    states[0].extra.update(assignments=[torch.zeros(64, dtype=torch.int32)], confident=[1.0])  # the first look, done
    plain = images.plain_view(rows[:batch])
    strong = random_view(images, rows[:batch], settings.augmentation, seed_everything(0))

    def loss(model: nn.Module) -> Tensor:
        with torch.no_grad():
            weak = F.log_softmax(model(plain)[1][0], dim=-1)
        logits = model(strong)[1][0]
        return confident_cross_entropy(logits, weak, settings.threshold, settings.class_weights)

    return f"self-label step, {network}, batch {batch}", {
        "loop": driven(train_selflabel(states[0], images, rows, rows[:64], settings, fabric)),
        "ceiling": constant(fabric, states[1].module, states[1].optimizer, 2 * batch, loss),
    }


def embedding(fabric: Any, network: str) -> Sides:
    """The embed stage's loop beside the bare model on one constant batch of its size."""
    params, images, _ = setting(network, fabric)
    batch = batch_of(images)
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


def heads(seconds: float, spells: int) -> list[Row]:
    """What ten heads cost over one, in the loop of the digits' default."""
    fabric, works = make_fabric("auto", "cpu"), {}
    params, images, rows = setting("digits", fabric)
    for count in (10, 1):
        settings = params.cluster.model_copy(update={"heads": count, "epochs": LONG})
        pretext = Model(build_backbone(params.backbone, images.channels), nn.Identity())
        neighbors = torch.randint(len(rows), (len(rows), settings.neighbors))
        val_neighbors = torch.randint(64, (64, settings.val_neighbors))
        loop = train_scan(
            start_scan(settings, pretext, 0, fabric),
            images,
            rows,
            neighbors,
            rows[:64],
            val_neighbors,
            settings,
            fabric,
        )
        works[f"{count}"] = driven(loop)
    return [compared("SCAN step, digits, 10 heads", in_turn(works, seconds, spells), "10", "1", note="beside one head")]
