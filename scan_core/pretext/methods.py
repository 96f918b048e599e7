"""The pretext task that the settings name: how it starts, its loop, and the network that is kept."""

from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.device import seed_everything
from scan_core.images.store import Images
from scan_core.models.files import load_backbone
from scan_core.models.networks import Model, build_backbone
from scan_core.pretext.byol import online_projector, start_byol, train_byol
from scan_core.pretext.instance_discrimination import start_instance_discrimination, train_instance_discrimination
from scan_core.pretext.moco import start_moco, train_moco
from scan_core.pretext.rotation import start_rotation, train_rotation
from scan_core.pretext.simclr import start_simclr, train_simclr
from scan_core.settings import Backbone, Pretext
from scan_core.training.step import Progress, TrainingState, build_optimizer

METHODS = {
    "simclr": (start_simclr, train_simclr),
    "moco": (start_moco, train_moco),
    "instance_discrimination": (start_instance_discrimination, train_instance_discrimination),
    "rotation": (start_rotation, train_rotation),
    "byol": (start_byol, train_byol),
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

    ``count`` is the number of images it will be trained on. Raises ``ScanError`` where the weights are of another
    network.
    """
    generator = seed_everything(seed)
    network = build_backbone(backbone, channels)
    if weights is not None:
        load_backbone(network, weights)
    if settings.method == "none":
        module = Model(network, nn.Identity()).to(fabric.device)
        return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator)
    return METHODS[settings.method][0](settings, network, count, generator, fabric)


def train_pretext(state: TrainingState, images: Images, rows: Tensor, settings: Pretext, fabric: Fabric) -> Progress:
    """The loop of ``settings.method`` over ``rows`` (N,) int64; one without steps and epochs for ``none``."""
    if settings.method == "none":
        return iter(())
    return METHODS[settings.method][1](state, images, rows, settings, fabric)


def trained_model(state: TrainingState) -> Model:
    """What is kept of a finished training: the backbone and the head whose output can be mined."""
    head = state.module.head
    return Model(state.module.backbone, online_projector(state.module) if isinstance(head, nn.Sequential) else head)
