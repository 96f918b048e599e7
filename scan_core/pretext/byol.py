"""Pretext task: BYOL, "Bootstrap Your Own Latent" (arXiv 2006.07733), section 3: a slow target, no negatives."""

import math
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.distributed import all_gather, local_shard
from scan_core.images.store import Images
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.losses import byol_loss
from scan_core.pretext.settings import ByolPretext
from scan_core.training.state import Progress, TrainingState, ema_update_, momentum_copy
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view


@dataclass(kw_only=True)
class ByolState(TrainingState):
    """``module`` is the online network; its head is a projector and a predictor."""

    target: Model  # without a predictor


def start_byol(
    settings: ByolPretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> ByolState:
    """The online network and its target, on the device."""
    features, projection = feature_size(backbone), settings.projection
    width = settings.hidden or features
    projector = Projector(features, projection, width, norm=True)
    predictor = Projector(projection, projection, width, norm=True)
    module = Model(backbone, nn.Sequential(projector, predictor)).to(fabric.device)
    return ByolState(
        module=module,
        optimizer=build_optimizer(settings.optimizer, module, fabric),
        generator=generator,
        target=momentum_copy(Model(backbone, projector)),
    )


def train_byol(state: ByolState, images: Images, rows: Tensor, settings: ByolPretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place to its last epoch. ``rows`` is (N,) int64. Yields steps and epochs."""
    train = TrainStep("pretext", state, settings, fabric, len(rows))
    target = train.compiled(state.target)

    @train.graphed
    def step(first: Tensor, second: Tensor, first_z: Tensor, second_z: Tensor) -> dict[str, Tensor]:
        # View by view, so that BatchNorm's statistics are those of one view, as in the paper.
        first_q, second_q = (train.model(view)[1] for view in (first, second))  # (B / world_size,projection)
        loss = byol_loss(first_q, second_z) + byol_loss(second_q, first_z)
        train.backward_and_update(loss)
        return {"loss": loss, "predictions": first_q}

    train.model.train()
    target.train()
    for epoch in train.epochs():
        for batch in train.batches():
            twice = rows[local_shard(batch)].repeat(2)
            views = random_view(images, twice, settings.augmentation, train.generator()).chunk(2)
            with torch.no_grad(), fabric.autocast():
                first_z, second_z = (target(view)[1] for view in views)  # (B / world_size,projection)
            predictions = step(*views, first_z, second_z)["predictions"]
            done = epoch * train.steps + state.step
            decay = target_decay(settings.encoder_momentum, done, settings.epochs * train.steps)
            ema_update_(state.target.backbone, state.module.backbone, decay, buffers=False)
            ema_update_(state.target.head, online_projector(state.module), decay, buffers=False)
            yield train.end_step(2 * len(batch))
        yield train.end_epoch(**check_spread(all_gather(predictions), state.epoch + 1))


def online_projector(module: Model) -> Projector:
    """The projector of the online network, without the predictor."""
    assert isinstance(module.head, nn.Sequential) and isinstance(module.head[0], Projector)
    return module.head[0]


def target_decay(base: float, step: int, steps: int) -> float:
    """From ``base`` to 1 by a half cosine over ``steps`` (BYOL, section 3.2)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2
