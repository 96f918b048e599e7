"""Whether a device computes what the CPU does, and the same bytes each time."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.steps import preset
from bench.views import MEAN, SIMCLR, STD, STRONG, pixels
from scan_core.clustering import selflabel as selflabelling
from scan_core.clustering.losses import confident_cross_entropy, scan_loss
from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.images.store import images_on
from scan_core.models.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.pretext.losses import nt_xent
from scan_core.pretext.methods import start_pretext, train_pretext
from scan_core.settings import NoAugmentation
from scan_core.training import step as training
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import compiled_model
from scan_core.views import strong as strong_views
from scan_core.views.random_view import random_view


@dataclass(frozen=True)
class Difference:
    """Between CPU and device: how much, and how much rounding can explain."""

    what: str
    measured: float
    allowed: float

    @property
    def too_large(self) -> bool:
        """Also where it is not a number."""
        return not self.measured <= self.allowed


def agreement(device: torch.device) -> list[Difference]:
    """How CPU and device differ in fp32: of the largest value; of strong views, the share of pixels that differ.

    Those are not continuous (posterize, solarize, nearest pixels, whole levels after each operation): rounding, and
    a compiler's fused and approximate divisions, move some of them by levels.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    stored, rows = pixels(256), torch.arange(64)
    both = [images_on(where, stored, MEAN, STD) for where in (torch.device("cpu"), device)]
    one, other = (random_view(images, rows, SIMCLR, seed_everything(0)).cpu() for images in both)
    found = [Difference("SimCLR views", relative(one, other), 1e-4)]
    one, other = (random_view(images, rows, STRONG, seed_everything(0)).cpu() for images in both)
    found.append(Difference("strong views, pixels", float(((one - other).abs() > 1e-3).float().mean()), 0.05))
    for name, (head, loss) in _objectives().items():
        torch.manual_seed(0)
        module = Model(build_backbone(preset("cifar10").backbone, 3), head())
        for kind in ("eager", "compiled"):
            gradients, values = [], []
            for images in both:
                on_device = kind == "compiled" and images.device.type == "cuda"
                module = module.to(images.device).train()
                network = compiled_model(module) if on_device else module
                module.zero_grad()
                value = loss(network(images.plain_view(rows))[1])
                value.backward()
                values.append(value.detach().cpu())
                gradients.append(torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None]))
            found.append(Difference(f"{name}, loss, {kind}", relative(*values), 1e-4))
            found.append(Difference(f"{name}, gradients, {kind}", relative(*gradients), 1e-2))
    torch.backends.cudnn.allow_tf32 = before
    return found


def repeated(device: torch.device) -> list[Difference]:
    """Some epochs of each training, from one seed: how far apart the weights end, which must be nowhere.

    Twice as it is, and once without recording its steps; compiled, however short.
    """
    fabric, params = make_fabric("auto", device.type), preset("cifar10")
    count = 4 * max(each.batch_size for each in (params.pretext, params.cluster, params.selflabel))
    images, rows = images_on(device, pixels(count), MEAN, STD), torch.arange(count)
    neighbors = torch.randint(len(rows), (len(rows), params.cluster.neighbors), generator=torch.Generator())
    nearest = neighbors[:64, : params.cluster.val_neighbors] % 64
    pretext, cluster = (each.model_copy(update={"epochs": 3}) for each in (params.pretext, params.cluster))
    selflabel = params.selflabel.model_copy(update={"epochs": 3, "threshold": 1e-6})

    def model(head: Callable[[int], nn.Module]) -> Model:
        seed_everything(0)
        backbone = build_backbone(params.backbone, images.channels)
        return Model(backbone, head(feature_size(backbone)))

    def contrasted() -> tuple[TrainingState, Progress]:
        state = start_pretext(pretext, params.backbone, images.channels, len(rows), 0, fabric)
        return state, train_pretext(state, images, rows, pretext, fabric)

    def clustered() -> tuple[TrainingState, Progress]:
        state = start_scan(cluster, model(lambda size: nn.Identity()), 0, fabric)
        return state, train_scan(state, images, rows, neighbors, rows[:64], nearest, cluster, fabric)

    def headed() -> tuple[TrainingState, Progress]:
        changes = {"train": "head", "augmentation": NoAugmentation(kind="none")}
        only = cluster.model_copy(update=changes)
        state = start_scan(only, model(lambda size: nn.Identity()), 0, fabric)
        return state, train_scan(state, images, rows, neighbors, rows[:64], nearest, only, fabric)

    def labelled() -> tuple[TrainingState, Progress]:
        heads = model(lambda size: ClusterHeads(size, params.cluster.num_clusters, 1))
        state = start_selflabel(selflabel, heads, 0, fabric)
        return state, train_selflabel(state, images, rows, rows[:64], selflabel, fabric)

    def end(start: Callable[[], tuple[TrainingState, Progress]]) -> Tensor:
        state, loop = start()
        with mock.patch.object(training, "PAYS", 0):
            list(loop)
        return torch.cat([each.detach().flatten().double() for each in state.module.state_dict().values()])

    found = []
    loops = {"pretext": contrasted, "cluster": clustered, "heads alone": headed, "selflabel": labelled}
    for name, start in loops.items():
        ends = [end(start) for _ in range(2)]
        found.append(Difference(f"{name}, weights, twice on the device", relative(*ends), 0.0))
        with ExitStack() as patched:
            for module in (training, selflabelling, strong_views):
                patched.enter_context(mock.patch.object(module, "recorded", as_it_is))
            strong_views._recorded_views.cache_clear()
            ends[1] = end(start)
        strong_views._recorded_views.cache_clear()
        found.append(Difference(f"{name}, weights, recorded and not", relative(*ends), 0.0))
    return found


def as_it_is(work: Any, _: torch.device) -> Any:
    """In place of ``graphs.cuda_graphed``."""
    return work


def _objectives() -> dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]]:
    """Head and loss of each step, on a batch whose halves are its two sides."""

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


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((one - other).abs().max() / one.abs().max())
