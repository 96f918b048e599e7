"""Pretext task: SimCLR, "A Simple Framework for Contrastive Learning" (arXiv 2002.05709), section 2."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.images.store import Images
from scan_core.losses import nt_xent
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
)
from scan_core.views.random_view import random_view


def start_simclr(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone with a new projector, and its optimiser, on the device."""
    projector = Projector(feature_size(backbone), settings.projection, settings.hidden, settings.projector_norm)
    module = Model(backbone, projector).to(fabric.device)
    return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator)


def train_simclr(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place from its epoch on. ``rows`` is (N,) int64. Yields steps and epochs."""
    steps = check_batch("pretext", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)

    def objective(views: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        first_z, second_z = (all_gather(z) for z in model(views)[1].chunk(2))  # (B,projection)
        loss = nt_xent(first_z, second_z, settings.temperature)
        return loss, {"loss": loss}, first_z.detach()

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = rows[torch.randperm(len(rows), generator=state.generator)]
        for batch in batches(order, settings.batch_size):
            twice = local_shard(batch).repeat(2)  # both views at once
            views = random_view(images, twice, settings.augmentation, local_generator(state.generator))
            (first_z,) = step(epoch, views)
            yield Step(2 * len(batch))
        yield end_pretext_epoch(state, step.means(epoch), first_z)
