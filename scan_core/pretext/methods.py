"""The pretext task that the settings name: its start, its loop, and the network that is kept."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.device import seed_everything
from scan_core.images.store import Images
from scan_core.models.files import load_backbone
from scan_core.models.networks import Model, build_backbone
from scan_core.models.settings import Backbone
from scan_core.pretext.byol import online_projector, start_byol, train_byol
from scan_core.pretext.instance_discrimination import start_instance_discrimination, train_instance_discrimination
from scan_core.pretext.moco import start_moco, train_moco
from scan_core.pretext.rotation import start_rotation, train_rotation
from scan_core.pretext.settings import Pretext
from scan_core.pretext.simclr import start_simclr, train_simclr
from scan_core.training.state import Progress, TrainingState


def start_none(
    settings: Pretext, backbone: nn.Module, count: int, generator: torch.Generator, fabric: Fabric
) -> TrainingState:
    """The backbone as it is, on the device."""
    module = Model(backbone, nn.Identity()).to(fabric.device)
    return TrainingState(module=module, optimizer=torch.optim.SGD(module.parameters()), generator=generator)


def train_none(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """No steps and no epochs."""
    return iter(())


METHODS: dict[str, tuple[Any, Any]] = {
    "simclr": (start_simclr, train_simclr),
    "moco": (start_moco, train_moco),
    "instance_discrimination": (start_instance_discrimination, train_instance_discrimination),
    "rotation": (start_rotation, train_rotation),
    "byol": (start_byol, train_byol),
    "none": (start_none, train_none),
}


def start_pretext(
    settings: Pretext,
    backbone: Backbone,
    channels: int,
    count: int,
    seed: int,
    fabric: Fabric,
    weights: Path | None = None,
) -> TrainingState:
    """A network, new or with the backbone's ``weights``, and all that its training needs, on the device.

    ``count`` is the number of images that it will be trained on. Raises ``ScanError`` if the weights are for another
    network.
    """
    generator = seed_everything(seed)
    network = build_backbone(backbone, channels)
    if weights is not None:
        load_backbone(network, weights)
    start, _ = METHODS[settings.method]
    state: TrainingState = start(settings, network, count, generator, fabric)
    return state


def train_pretext(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """The loop of ``settings.method`` over ``rows`` (N,) int64. Yields steps and epochs."""
    _, train = METHODS[settings.method]
    progress: Progress = train(state, images, rows, settings, fabric)
    return progress


def trained_model(state: TrainingState) -> Model:
    """The network that is kept of a finished training: the backbone, and the head whose output can be mined."""
    head = state.module.head
    return Model(state.module.backbone, online_projector(state.module) if isinstance(head, nn.Sequential) else head)
