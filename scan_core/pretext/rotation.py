"""Pretext task: RotNet, which predicts by how many quarter turns an image was rotated (arXiv 1803.07728)."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, local_shard
from scan_core.images.store import Images
from scan_core.models.networks import Model, Projector, feature_size
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.settings import RotationPretext
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view

TURNS = 4


def start_rotation(
    settings: RotationPretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone with a linear classifier of four turns, and the optimizer, on the device."""
    module = Model(backbone, Projector(feature_size(backbone), TURNS, hidden=0)).to(fabric.device)
    optimizer = build_optimizer(settings.optimizer, module, fabric)
    return TrainingState(module=module, optimizer=optimizer, generator=generator)


def train_rotation(
    state: TrainingState, images: Images, rows: Tensor, settings: RotationPretext, fabric: Fabric
) -> Progress:
    """Trains ``state`` in place to its last epoch. ``rows`` is (N,) int64. Yields steps and epochs.

    Each augmented view of a batch is seen in all four turns.
    """
    train = TrainStep("pretext", state, settings, fabric, len(rows))

    @train.graphed
    def step(views: Tensor) -> dict[str, Tensor]:
        turned, turn = rotations(views)
        features, logits = train.model(turned)  # (4B / world_size,D), (4B / world_size,4)
        loss = F.cross_entropy(logits, turn)
        train.backward_and_update(loss)
        accuracy = (logits.argmax(dim=1) == turn).float().mean()
        return {"loss": loss, "accuracy": accuracy, "features": features}

    train.model.train()
    for _ in train.epochs():
        for batch in train.batches():
            views = random_view(images, rows[local_shard(batch)], settings.augmentation, train.generator())
            features = step(views)["features"]
            yield train.end_step(TURNS * len(batch))
        yield train.end_epoch(**check_spread(all_gather(features), state.epoch + 1))


def rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B,channels,side,side) to (4B,...), rotated by 0 to 3 quarters counter-clockwise; and the quarters (4B,)."""
    turned = torch.cat([torch.rot90(images, turn, dims=(2, 3)) for turn in range(TURNS)])
    return turned, torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
