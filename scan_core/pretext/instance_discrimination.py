"""Pretext task: instance discrimination with a memory bank, NCE and its proximal term (Wu et al., arXiv 1805.01978)."""

import math

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.images.store import Images
from scan_core.losses import memory_bank_nce
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


def start_instance_discrimination(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone with one linear layer, and a memory bank of ``count`` random unit vectors, on the device."""
    module = Model(backbone, Projector(feature_size(backbone), settings.projection, hidden=0)).to(fabric.device)
    state = TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator)
    bank = F.normalize(torch.randn(count, settings.projection, generator=generator), dim=1)
    state.extra.update(memory_bank=bank.to(fabric.device))
    return state


def train_instance_discrimination(
    state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric
) -> Progress:
    """Trains ``state`` in place from its epoch on. ``rows`` is (N,) int64. Yields steps and epochs.

    ``state.extra["memory_bank"]`` (N,projection) holds each image's averaged embedding, ``state.extra["log_z"]`` the
    log of the constant Z, estimated once, from the first batch (section 3.2).
    """
    steps = check_batch("pretext", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)
    state.extra = {name: value.to(fabric.device) for name, value in state.extra.items()}  # a resume reads to the host
    bank, count = state.extra["memory_bank"], len(rows)

    def objective(views: Tensor, stored: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        embedded = F.normalize(model(views)[1], dim=1)  # (B / processes,projection)
        positive = (embedded * stored).sum(dim=1) / settings.temperature  # (B,)
        noise = torch.einsum("bd,bmd->bm", embedded, bank[drawn]) / settings.temperature  # (B,m)
        if "log_z" not in state.extra:
            first_noise = all_gather(noise.detach())  # (B,m)
            log_sum = torch.logsumexp(first_noise.flatten(), dim=0)
            state.extra["log_z"] = log_sum - math.log(first_noise.numel()) + math.log(count)
        # Eq. 8. Without the second term a network that makes all images alike, as a new one does, is pushed from
        # one common direction to the next, and the bank after it.
        moved = (embedded - stored).square().sum(dim=1).mean()
        loss = memory_bank_nce(positive, noise, state.extra["log_z"], count) + settings.proximal * moved
        return loss, {"loss": loss}, embedded.detach()

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = torch.randperm(count, generator=state.generator)
        for batch in batches(order, settings.batch_size):
            drawn = torch.randint(count, (len(batch), settings.negatives), generator=state.generator)
            batch_there, drawn = (index.to(fabric.device, non_blocking=True) for index in (batch, local_shard(drawn)))
            views = random_view(
                images, rows[local_shard(batch)], settings.augmentation, local_generator(state.generator)
            )
            stored = bank[local_shard(batch_there)]
            (embedded,) = step(epoch, views, stored, drawn)
            newest = F.normalize(torch.lerp(embedded, stored, settings.memory_momentum), dim=1)
            bank[batch_there] = all_gather(newest)
            yield Step(len(batch))
        yield end_pretext_epoch(state, step.means(epoch), all_gather(embedded))
