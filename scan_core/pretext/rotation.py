"""Pretext task: RotNet, telling by how many quarter turns an image was turned (arXiv 1803.07728)."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.images.store import Images
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

TURNS = 4


def start_rotation(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone with a linear classifier of four turns, and the optimiser, on the device."""
    module = Model(backbone, Projector(feature_size(backbone), TURNS, hidden=0)).to(fabric.device)
    return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator)


def train_rotation(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place from its epoch on. ``rows`` is (N,) int64. Yields steps and epochs.

    Every image of a batch is seen in all four turns of one augmented view.
    """
    steps = check_batch("pretext", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)

    def objective(views: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        turned, turn = rotations(views)
        features, logits = model(turned)  # (4B / processes,D), (4B / processes,4)
        loss = F.cross_entropy(logits, turn)
        accuracy = (logits.argmax(dim=1) == turn).float().mean()
        return loss, {"loss": loss, "accuracy": accuracy}, features.detach()

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = rows[torch.randperm(len(rows), generator=state.generator)]
        for batch in batches(order, settings.batch_size):
            views = random_view(images, local_shard(batch), settings.augmentation, local_generator(state.generator))
            (features,) = step(epoch, views)
            yield Step(TURNS * len(batch))
        yield end_pretext_epoch(state, step.means(epoch), all_gather(features))


def rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B,channels,side,side) to (4B,...), turned by 0 to 3 quarters counter-clockwise; and the quarters (4B,)."""
    turned = torch.cat([torch.rot90(images, turn, dims=(2, 3)) for turn in range(TURNS)])
    return turned, torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
