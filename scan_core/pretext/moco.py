"""Pretext task: MoCo v2, momentum contrast (arXiv 1911.05722, 2003.04297): a queue of keys from a slow encoder."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_generator, local_shard, world_size
from scan_core.images.store import Images
from scan_core.losses import info_nce
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


def start_moco(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The query encoder, its slow copy for the keys, and a queue of random unit vectors, on the device."""
    projector = Projector(feature_size(backbone), settings.projection, settings.hidden, settings.projector_norm)
    module = Model(backbone, projector).to(fabric.device)
    state = TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator, momentum_copy(module))
    queue = F.normalize(torch.randn(settings.queue, settings.projection, generator=generator), dim=1)
    state.extra.update(queue=queue.to(fabric.device), oldest=0)
    return state


def train_moco(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """Trains ``state`` in place from its epoch on. ``rows`` is (N,) int64. Yields steps and epochs.

    ``state.extra["queue"]`` (Q,projection) holds the latest keys, ``state.extra["oldest"]`` the row replaced next.
    """
    state.extra["queue"] = state.extra["queue"].to(fabric.device)  # a resume reads it to the host
    steps = check_batch("pretext", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)
    assert state.average is not None
    key_model = compiled(state.average, fabric, steps * settings.epochs)

    def objective(views: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        queries = F.normalize(model(views)[1], dim=1)  # (B / processes,projection)
        loss = info_nce(queries, keys, state.extra["queue"], settings.temperature)
        return loss, {"loss": loss}, queries.detach()

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    key_model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = rows[torch.randperm(len(rows), generator=state.generator)]
        for batch in batches(order, settings.batch_size):
            twice = local_shard(batch).repeat(2)
            views = random_view(images, twice, settings.augmentation, local_generator(state.generator))
            first, second = views.chunk(2)
            ema_update_(state.average, state.module, settings.encoder_momentum, buffers=False)
            with torch.no_grad(), fabric.autocast():
                keys = encode_keys(key_model, second, settings.key_groups, state.generator)  # (B,projection)
            (queries,) = step(epoch, first, local_shard(keys))
            _enqueue(state, keys)
            yield Step(2 * len(batch))
        yield end_pretext_epoch(state, step.means(epoch), all_gather(queries))


def encode_keys(model: nn.Module, images: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """(B,projection) unit keys of the batch of which ``images`` (B / processes,channels,height,width) are a part.

    The whole batch is shuffled, over all processes, and goes through BatchNorm in ``groups`` parts, at least one a
    process: with the statistics of the very batch whose queries they are to match, keys could be told from the queue
    without looking at the images (MoCo, section 3.3).
    """
    images = all_gather(images)
    order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
    parts = images[local_shard(order)].tensor_split(max(groups // world_size(), 1))
    shuffled = all_gather(torch.cat([model(part)[1] for part in parts]))
    keys = torch.empty_like(shuffled)
    keys[order] = shuffled
    return F.normalize(keys, dim=1)


def _enqueue(state: TrainingState, keys: Tensor) -> None:
    """The newest keys take the place of the oldest."""
    queue = state.extra["queue"]
    kept = keys[-len(queue) :]  # a batch may be larger than the queue
    place = (state.extra["oldest"] + torch.arange(len(kept))) % len(queue)
    queue[place.to(queue.device, non_blocking=True)] = kept
    state.extra["oldest"] = (state.extra["oldest"] + len(kept)) % len(queue)
