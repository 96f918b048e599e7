"""Pretext task: MoCo v2, momentum contrast (arXiv 1911.05722, 2003.04297): a queue of keys from a momentum encoder."""

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_shard, world_size
from scan_core.images.store import Images
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.losses import info_nce
from scan_core.pretext.settings import MocoPretext
from scan_core.training.state import Progress, TrainingState, ema_update_, momentum_copy
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view


@dataclass(kw_only=True)
class MocoState(TrainingState):
    """``module`` is the query encoder."""

    momentum_encoder: Model
    queue: Tensor  # (Q,projection): the latest keys, unit vectors
    oldest: int = 0  # the row of the queue that is replaced next


def start_moco(
    settings: MocoPretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> MocoState:
    """The query encoder, its momentum encoder and a queue of random unit vectors, on the device."""
    projector = Projector(feature_size(backbone), settings.projection, settings.hidden, settings.projector_norm)
    module = Model(backbone, projector).to(fabric.device)
    queue = F.normalize(torch.randn(settings.queue, settings.projection, generator=generator), dim=1)
    return MocoState(
        module=module,
        optimizer=build_optimizer(settings.optimizer, module, fabric),
        generator=generator,
        momentum_encoder=momentum_copy(module),
        queue=queue.to(fabric.device),
    )


def train_moco(state: MocoState, images: Images, rows: Tensor, settings: MocoPretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place to its last epoch. ``rows`` is (N,) int64. Yields steps and epochs."""
    train = TrainStep("pretext", state, settings, fabric, len(rows))
    key_encoder = train.compiled(state.momentum_encoder)

    @train.graphed
    def step(views: Tensor, keys: Tensor) -> dict[str, Tensor]:
        queries = F.normalize(train.model(views)[1], dim=1)  # (B / world_size,projection)
        loss = info_nce(queries, keys, state.queue, settings.temperature)
        train.backward_and_update(loss)
        return {"loss": loss, "queries": queries}

    train.model.train()
    key_encoder.train()
    for _ in train.epochs():
        for batch in train.batches():
            twice = rows[local_shard(batch)].repeat(2)
            first, second = random_view(images, twice, settings.augmentation, train.generator()).chunk(2)
            ema_update_(state.momentum_encoder, state.module, settings.encoder_momentum, buffers=False)
            with torch.no_grad(), fabric.autocast():
                keys = encode_keys(key_encoder, second, settings.key_groups, state.generator)  # (B,projection)
            queries = step(first, local_shard(keys))["queries"]
            _enqueue(state, keys)
            yield train.end_step(2 * len(batch))
        yield train.end_epoch(**check_spread(all_gather(queries), state.epoch + 1))


def encode_keys(model: nn.Module, images: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """(B,projection) unit keys of the batch of which ``images`` (B / world_size,channels,height,width) is a shard.

    The whole batch is shuffled over all processes and goes through BatchNorm in ``groups`` parts, at least one per
    process. If keys had the BatchNorm statistics of the batch whose queries they match, the network could distinguish
    them from the queue without a look at the images (MoCo, section 3.3).
    """
    images = all_gather(images)
    order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
    parts = images[local_shard(order)].tensor_split(max(groups // world_size(), 1))
    shuffled = all_gather(torch.cat([model(part)[1] for part in parts]))
    keys = torch.empty_like(shuffled)
    keys[order] = shuffled
    return F.normalize(keys, dim=1)


def _enqueue(state: MocoState, keys: Tensor) -> None:
    """Puts the newest keys in the place of the oldest."""
    queue = state.queue
    newest = keys[-len(queue) :]  # a batch may be larger than the queue
    position = (state.oldest + torch.arange(len(newest))) % len(queue)
    queue[position.to(queue.device, non_blocking=True)] = newest
    state.oldest = (state.oldest + len(newest)) % len(queue)
