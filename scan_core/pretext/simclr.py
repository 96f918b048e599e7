"""Pretext task: SimCLR, "A Simple Framework for Contrastive Learning" (arXiv 2002.05709), section 2."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.distributed import all_gather, local_shard
from scan_core.images.store import Images
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.settings import SimclrPretext
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view


def start_simclr(
    settings: SimclrPretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone with a new projector, and its optimizer, on the device."""
    projector = Projector(feature_size(backbone), settings.projection, settings.hidden, settings.projector_norm)
    module = Model(backbone, projector).to(fabric.device)
    optimizer = build_optimizer(settings.optimizer, module, fabric)
    return TrainingState(module=module, optimizer=optimizer, generator=generator)


def train_simclr(
    state: TrainingState, images: Images, rows: Tensor, settings: SimclrPretext, fabric: Fabric
) -> Progress:
    """Trains ``state`` in place to its last epoch. ``rows`` is (N,) int64. Yields steps and epochs."""
    train = TrainStep("pretext", state, settings, fabric, len(rows))

    @train.graphed
    def step(views: Tensor) -> dict[str, Tensor]:
        first_z, second_z = (all_gather(z) for z in train.model(views)[1].chunk(2))  # (B,projection)
        loss = nt_xent(first_z, second_z, settings.temperature)
        train.backward_and_update(loss)
        return {"loss": loss, "embeddings": first_z}

    train.model.train()
    for _ in train.epochs():
        for batch in train.batches():
            twice = rows[local_shard(batch)].repeat(2)  # both views in one pass
            views = random_view(images, twice, settings.augmentation, train.generator())
            embeddings = step(views)["embeddings"]
            yield train.end_step(2 * len(batch))
        yield train.end_epoch(**check_spread(embeddings, state.epoch + 1))
