"""Whether a device computes what the CPU computes, and the same bytes each time."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.steps import preset
from bench.views import MEAN, SIMCLR, STD, STRONG, synthetic_images
from scan_core.clustering.losses import confident_cross_entropy, scan_loss
from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.clustering.settings import known_number
from scan_core.compute import cuda_graphs
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.images.store import ArrayImages
from scan_core.models.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.methods import start_pretext, train_pretext
from scan_core.training import step as training
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import compiled_model
from scan_core.views import strong as strong_views
from scan_core.views.random_view import random_view
from scan_core.views.settings import NoAugmentation

Training = Callable[[], tuple[TrainingState, Progress]]  # starts a training


@dataclass(frozen=True)
class Difference:
    """How far two results are apart, and how far rounding may bring them."""

    what: str
    measured: float
    allowed: float

    @property
    def too_large(self) -> bool:
        """Whether it is above what is allowed, or not a number."""
        return not self.measured <= self.allowed


def compare_with_cpu(device: torch.device) -> list[Difference]:
    """CPU against device in fp32: views, and the losses and gradients of each step, eager and compiled.

    A difference is relative to the largest value. For strong views it is the share of pixels that differ, because
    their operations are not continuous (posterize, solarize, nearest pixels, whole levels after each operation):
    rounding, and a compiler's fused and approximate divisions, move some pixels by levels.
    """
    tf32_before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    stored, rows = synthetic_images(256), torch.arange(64)
    images_by_device = [ArrayImages(where, [stored], MEAN, STD) for where in (torch.device("cpu"), device)]
    simclr, strong = (
        [random_view(images, rows, settings, seed_everything(0)).cpu() for images in images_by_device]
        for settings in (SIMCLR, STRONG)
    )
    differences = [
        Difference("SimCLR views", relative_difference(*simclr), 1e-4),
        Difference("strong views, pixels", float(((strong[0] - strong[1]).abs() > 1e-3).float().mean()), 0.05),
    ]
    for name, (head, loss) in _objectives().items():
        torch.manual_seed(0)
        module = Model(build_backbone(preset("cifar10").backbone, 3), head())
        for kind in ("eager", "compiled"):
            gradients, values = [], []
            for images in images_by_device:
                on_gpu = images.device.type == "cuda"
                module = module.to(images.device).train()
                network = compiled_model(module) if on_gpu and kind == "compiled" else module
                module.zero_grad()
                value = loss(network(images.plain_view(rows))[1])
                value.backward()
                values.append(value.detach().cpu())
                gradients.append(torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None]))
            differences.append(Difference(f"{name}, loss, {kind}", relative_difference(*values), 1e-4))
            differences.append(Difference(f"{name}, gradients, {kind}", relative_difference(*gradients), 1e-2))
    torch.backends.cudnn.allow_tf32 = tf32_before
    return differences


def _objectives() -> dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]]:
    """Head and loss of each step. The halves of the batch are its two views, or anchors and neighbors."""

    def scan(logits: Tensor) -> Tensor:
        anchors, neighbors = F.log_softmax(logits, dim=-1).chunk(2, dim=1)
        return scan_loss(anchors, neighbors, 5.0)[0].sum()

    def selflabel(logits: Tensor) -> Tensor:
        strong, weak = logits[0].chunk(2)
        return confident_cross_entropy(strong, F.log_softmax(weak, dim=-1), 1e-6, True)

    return {
        "NT-Xent": (lambda: Projector(512, 128), lambda projected: nt_xent(*projected.chunk(2), 0.1)),
        "SCAN loss": (lambda: ClusterHeads(512, 10, 3), scan),
        "self-label": (lambda: ClusterHeads(512, 10, 1), selflabel),
    }


def compare_with_itself(device: torch.device) -> list[Difference]:
    """How far apart the weights of each training end, run some epochs from one seed. No difference is allowed.

    Each training runs twice as it is, and once without CUDA graphs. It is compiled however short it is.
    """
    differences = []
    for name, start in _trainings(device).items():
        weights = [_final_weights(start) for _ in range(2)]
        differences.append(Difference(f"{name}, weights, twice on the device", relative_difference(*weights), 0.0))
        with ExitStack() as patched:
            for module in (cuda_graphs, training):
                patched.enter_context(mock.patch.object(module, "uses_cuda_graphs", lambda device: False))
            strong_views._graphed_views.cache_clear()
            eager = _final_weights(start)
        strong_views._graphed_views.cache_clear()
        difference = relative_difference(weights[0], eager)
        differences.append(Difference(f"{name}, weights, recorded and not", difference, 0.0))
    return differences


def _trainings(device: torch.device) -> dict[str, Training]:
    """Three epochs of each training by the cifar10 preset, on synthetic images and random neighbors."""
    fabric, params = make_fabric("auto", device.type), preset("cifar10")
    count = 4 * max(step.batch_size for step in (params.pretext, params.cluster, params.selflabel))
    images, rows = ArrayImages(device, [synthetic_images(count)], MEAN, STD), torch.arange(count)
    neighbors = torch.randint(len(rows), (len(rows), params.cluster.neighbors), generator=torch.Generator())
    nearest = neighbors[:64, : params.cluster.val_neighbors] % 64
    pretext, cluster = (step.model_copy(update={"epochs": 3}) for step in (params.pretext, params.cluster))
    frozen = cluster.model_copy(update={"train": "head", "augmentation": NoAugmentation(kind="none")})
    selflabel = params.selflabel.model_copy(update={"epochs": 3, "threshold": 1e-6})

    def new_model(head: Callable[[int], nn.Module]) -> Model:
        seed_everything(0)
        backbone = build_backbone(params.backbone, images.channels)
        return Model(backbone, head(feature_size(backbone)))

    def start_contrastive() -> tuple[TrainingState, Progress]:
        state = start_pretext(pretext, params.backbone, images.channels, len(rows), 0, fabric)
        return state, train_pretext(state, images, rows, pretext, fabric)

    def start_clustering(settings: Any) -> tuple[TrainingState, Progress]:
        state = start_scan(settings, new_model(lambda size: nn.Identity()), 0, fabric)
        return state, train_scan(state, images, rows, neighbors, rows[:64], nearest, settings, fabric)

    def start_selflabeling() -> tuple[TrainingState, Progress]:
        heads = new_model(lambda size: ClusterHeads(size, known_number(params.cluster), 1))
        state = start_selflabel(selflabel, heads, 0, fabric)
        return state, train_selflabel(state, images, rows, rows[:64], selflabel, fabric)

    return {
        "pretext": start_contrastive,
        "cluster": lambda: start_clustering(cluster),
        "heads alone": lambda: start_clustering(frozen),
        "selflabel": start_selflabeling,
    }


def _final_weights(start: Training) -> Tensor:
    state, loop = start()
    with mock.patch.object(training, "MIN_STEPS_TO_COMPILE", 0):
        list(loop)
    return torch.cat([weights.detach().flatten().double() for weights in state.module.state_dict().values()])


def relative_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, as a share of the first's largest value."""
    return float((first - second).abs().max() / first.abs().max())
