"""SCAN on tensors, from images to clusters: the paper's algorithm in one function. Read this file first.

The pipeline's stages take the same five steps, with a file between each two of them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.scan import ScanState, best_model, start_scan, train_scan
from scan_core.clustering.selflabel import SelflabelState, choose_model, has_learned, start_selflabel, train_selflabel
from scan_core.clustering.settings import Embed, Neighbors, ScanCluster, Selflabel
from scan_core.images.store import Images
from scan_core.models.inference import embed, log_probabilities
from scan_core.models.networks import Model
from scan_core.models.settings import Backbone
from scan_core.pretext.methods import start_pretext, train_pretext, trained_model
from scan_core.pretext.settings import Pretext
from scan_core.training.state import Progress, TrainingState

Run = Callable[[str, TrainingState, Progress], None]


@dataclass(frozen=True)
class Method:
    """The settings of each step."""

    backbone: Backbone
    pretext: Pretext
    embed: Embed
    neighbors: Neighbors
    cluster: ScanCluster
    selflabel: Selflabel


@dataclass(frozen=True)
class Clustering:
    """What came out. The clusters of the validation images are (N_val,) int64 in [0,C)."""

    model: Model  # backbone and head
    clusters: Tensor
    kept: str  # ``after`` self-labeling, or the model from ``before`` it
    reason: str
    before: Tensor  # the clusters before self-labeling
    embeddings: dict[str, np.ndarray]  # train (N,D), val (N_val,D): float32, unit rows
    neighbors: dict[str, np.ndarray]  # train (N,K), val (N_val,K): int64 positions, nearest first
    scan: ScanState
    selflabel: SelflabelState


def to_the_end(name: str, state: TrainingState, loop: Progress) -> None:
    """Runs a training loop without saving or showing anything."""
    for _ in loop:
        pass


def cluster_images(
    images: Images, train: Tensor, val: Tensor, method: Method, fabric: Fabric, seed: int = 0, run: Run = to_the_end
) -> Clustering:
    """Clusters images without labels (arXiv 2005.12320).

    ``train`` (N,) and ``val`` (N_val,) int64 index ``images``: the network learns on train, and the validation images
    choose its head and epoch. ``run`` drives each training loop, which changes the state and yields steps and epochs:
    it may save, show, or stop early. Raises ``ScanError`` if settings and images do not fit.
    """
    # 1. A pretext task learns features without labels (section 2.1).
    pretext = start_pretext(method.pretext, method.backbone, images.channels, len(train), seed, fabric)
    run("pretext", pretext, train_pretext(pretext, images, train, method.pretext, fabric))
    model = trained_model(pretext)

    # 2. Each image becomes a point on the unit sphere, 3. whose nearest neighbors are mostly of its class.
    projected, rows, settings = method.embed.features == "projector", {"train": train, "val": val}, method.neighbors
    vectors = {split: embed(model, images, rows[split], projected, fabric).cpu().numpy() for split in rows}
    mined = {
        split: mine_neighbors(
            vectors[split], settings.k, settings.exact_rows, settings.recall, smoothing=settings.smoothing
        ).nearest
        for split in rows
    }
    near = {split: torch.from_numpy(positions) for split, positions in mined.items()}

    # 4. The SCAN loss makes neighbors agree and keeps all clusters in use (section 2.2, eq. 2).
    scan = start_scan(method.cluster, model, seed, fabric)
    run("cluster", scan, train_scan(scan, images, train, near["train"], val, near["val"], method.cluster, fabric))
    clustered = best_model(scan).to(fabric.device)
    before = log_probabilities(clustered, images, val, fabric)[0].argmax(dim=1).cpu()

    # 5. Self-labeling on confident images refines the clusters (section 2.3), unless it harms them.
    selflabel = start_selflabel(method.selflabel, copy.deepcopy(clustered), seed, fabric)
    run("selflabel", selflabel, train_selflabel(selflabel, images, train, val, method.selflabel, fabric))
    after = log_probabilities(selflabel.judged, images, val, fabric)[0].argmax(dim=1).cpu()
    learned = has_learned(selflabel, len(train) // method.selflabel.batch_size)
    kept, reason = choose_model(before, after, near["val"][:, 0], learned)
    final, clusters = (clustered, before) if kept == "before" else (selflabel.judged, after)
    return Clustering(final, clusters, kept, reason, before, vectors, mined, scan, selflabel)
