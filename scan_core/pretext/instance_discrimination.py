"""Pretext task: instance discrimination with a memory bank, NCE and its proximal term (Wu et al., arXiv 1805.01978)."""

import math
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_shard
from scan_core.images.store import Images
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.losses import memory_bank_nce
from scan_core.pretext.settings import InstanceDiscriminationPretext
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view


@dataclass(kw_only=True)
class InstanceDiscriminationState(TrainingState):
    """``module`` has one linear layer as its head."""

    memory_bank: Tensor  # (N,projection): each image's averaged embedding, a unit vector
    log_z: Tensor | None = None  # scalar: the log of the constant Z, estimated on the first batch (section 3.2)


def start_instance_discrimination(
    settings: InstanceDiscriminationPretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> InstanceDiscriminationState:
    """The backbone with one linear layer, and a memory bank of ``count`` random unit vectors, on the device."""
    module = Model(backbone, Projector(feature_size(backbone), settings.projection, hidden=0)).to(fabric.device)
    optimizer = build_optimizer(settings.optimizer, module, fabric)
    bank = F.normalize(torch.randn(count, settings.projection, generator=generator), dim=1)
    return InstanceDiscriminationState(
        module=module, optimizer=optimizer, generator=generator, memory_bank=bank.to(fabric.device)
    )


def train_instance_discrimination(
    state: InstanceDiscriminationState,
    images: Images,
    rows: Tensor,
    settings: InstanceDiscriminationPretext,
    fabric: Fabric,
) -> Progress:
    """Trains ``state`` in place to its last epoch. ``rows`` is (N,) int64. Yields steps and epochs."""
    train = TrainStep("pretext", state, settings, fabric, len(rows))
    bank, count = state.memory_bank, len(rows)
    if state.log_z is not None:
        state.log_z = state.log_z.to(fabric.device)  # a resume reads it to the host

    @train.graphed
    def step(views: Tensor, stored: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        embedded = F.normalize(train.model(views)[1], dim=1)  # (B / world_size,projection)
        positive = (embedded * stored).sum(dim=1) / settings.temperature  # (B / world_size,)
        noise = torch.einsum("bd,bmd->bm", embedded, bank[drawn]) / settings.temperature  # (B / world_size,m)
        if state.log_z is None:
            first_noise = all_gather(noise.detach())  # (B,m)
            log_sum = torch.logsumexp(first_noise.flatten(), dim=0)
            state.log_z = log_sum - math.log(first_noise.numel()) + math.log(count)
        # Eq. 8. Without the proximal term, a network that embeds all images alike, as a new one does, is pushed from
        # one common direction to the next, and the bank follows it.
        proximal = (embedded - stored).square().sum(dim=1).mean()
        loss = memory_bank_nce(positive, noise, state.log_z, count) + settings.proximal * proximal
        train.backward_and_update(loss)
        return {"loss": loss, "embedded": embedded.detach()}

    train.model.train()
    for _ in train.epochs():
        for batch in train.batches():
            drawn = torch.randint(count, (len(batch), settings.negatives), generator=state.generator)
            there, drawn = (index.to(fabric.device, non_blocking=True) for index in (batch, local_shard(drawn)))
            views = random_view(images, rows[local_shard(batch)], settings.augmentation, train.generator())
            stored = bank[local_shard(there)]
            embedded = step(views, stored, drawn)["embedded"]
            newest = F.normalize(torch.lerp(embedded, stored, settings.memory_momentum), dim=1)
            bank[there] = all_gather(newest)
            yield train.end_step(len(batch))
        yield train.end_epoch(**check_spread(all_gather(embedded), state.epoch + 1))
