"""Pretext task: BYOL, "Bootstrap Your Own Latent" (arXiv 2006.07733), section 3: a slow target, no negatives."""

import math

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.images.store import Images
from scan_core.losses import byol_loss
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import end_pretext_epoch
from scan_core.settings import Pretext
from scan_core.training.step import (
    Progress,
    Step,
    Stepper,
    TrainingState,
    batches,
    build_optimizer,
    check_batch,
    compiled,
    ema_update_,
    momentum_copy,
)
from scan_core.views.random_view import random_view


def start_byol(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The online network, whose head is a projector and a predictor, and the target without predictor."""
    features, projection = feature_size(backbone), settings.projection
    width = settings.hidden or features
    projector = Projector(features, projection, width, norm=True)
    predictor = Projector(projection, projection, width, norm=True)
    module = Model(backbone, nn.Sequential(projector, predictor)).to(fabric.device)
    target = momentum_copy(Model(backbone, projector))
    return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator, target)


def train_byol(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place from its epoch on. ``rows`` is (N,) int64. Yields steps and epochs."""
    steps = check_batch("pretext", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)
    target = state.average
    assert target is not None
    target_model = compiled(target, fabric, steps * settings.epochs)

    def objective(
        first: Tensor, second: Tensor, first_z: Tensor, second_z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        # View by view, so that BatchNorm's statistics are those of one view, as in the paper.
        first_q, second_q = (model(view)[1] for view in (first, second))  # (B / processes,projection)
        loss = byol_loss(first_q, second_z) + byol_loss(second_q, first_z)
        return loss, {"loss": loss}, first_q.detach()

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    target_model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = rows[torch.randperm(len(rows), generator=state.generator)]
        for number, batch in enumerate(batches(order, settings.batch_size)):
            twice = local_shard(batch).repeat(2)
            views = random_view(images, twice, settings.augmentation, local_generator(state.generator)).chunk(2)
            with torch.no_grad(), fabric.autocast():
                first_z, second_z = (target_model(view)[1] for view in views)  # (B / processes,projection)
            (first_q,) = step(epoch, *views, first_z, second_z)
            decay = target_decay(settings.encoder_momentum, epoch * steps + number, settings.epochs * steps)
            ema_update_(target.backbone, state.module.backbone, decay, buffers=False)
            ema_update_(target.head, online_projector(state.module), decay, buffers=False)
            yield Step(2 * len(batch))
        yield end_pretext_epoch(state, step.means(epoch), all_gather(first_q))


def online_projector(module: Model) -> Projector:
    """The projector of the online network, without the predictor."""
    assert isinstance(module.head, nn.Sequential) and isinstance(module.head[0], Projector)
    return module.head[0]


def target_decay(base: float, step: int, steps: int) -> float:
    """From ``base`` to 1 by a half cosine over ``steps`` (BYOL, section 3.2)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2
