"""Pretext task: a published network adapts to the images, whose groups its last layers learn.

The frozen path proposes groups by several methods (``clustering.candidates``). Methods err differently: the images of a
group on which most of them agree are mostly right. The network's last layers learn the groups of these images from
random views, and their own sure predictions for all images (FixMatch, arXiv 2001.07685). The layers below stay as they
are: what they give for each view is computed once. The frozen path then runs again on the new features, and the network
is kept if the images that another network sees as neighbors are as often in one group as before: that network has not
learned the groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.clustering.candidates import UNEQUAL, Candidates, propose
from scan_core.clustering.consensus import image_votes
from scan_core.clustering.heads import assign
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.number import estimate_number, numbers_to_try
from scan_core.compute.device import to_device
from scan_core.data.npy import create_array
from scan_core.evaluation.verdict import NONE, judge_groups
from scan_core.images.store import Images
from scan_core.models.frozen import FrozenNetwork, embed_frozen
from scan_core.models.halves import LowerLayers, UpperLayers
from scan_core.models.networks import Model
from scan_core.models.reduction import fit_reduction
from scan_core.pretext.collapse import check_spread
from scan_core.pretext.settings import AdaptedPretext
from scan_core.training.settings import Optimizer
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import simclr_pixels

HEAD_STEPS, HEAD_BATCH, HEAD_LR = 150, 256, 1e-3  # of the classifier, before the layers below it learn
# Share of neighbors by which the groups may be worse. Chosen on seeds 10 to 12 of ``experiments.adapting``: where ACC
# fell by five points it was 0.02. What the adapted network itself sees, and how much methods agree, told nothing.
SLACK, NEIGHBORS = 0.01, 10
BLOCK, VIEWED = 256, 64  # images at a time, in the upper and in the lower layers


class Standardized(nn.Module):
    """Each dimension of features (N,D) to mean 0 and deviation 1 over the images."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", 1 / features.std(dim=0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        return (features - cast(Tensor, self.mean)) * cast(Tensor, self.scale)


def store_views(
    file: Path, weights: Path, images: Images, rows: Tensor, settings: AdaptedPretext, seed: int,
    report: Callable[[int], None],
) -> np.ndarray:  # fmt: skip
    """What the lower layers give for each image of ``rows`` (N,) and its views: (N,V,...) float16.

    The plain image comes first, then ``settings.views`` random ones. The array is memory-mapped from ``file``, which is
    made if an earlier call has not. ``report`` is called with the number of images done.
    """
    if not file.exists():
        lower = FrozenNetwork(weights, images.device, settings.side, part=LowerLayers)
        unfinished, done = file.with_suffix(".partial"), 0
        for maps in view_maps(lower, images, rows, settings, seed):
            if not done:
                views = create_array(unfinished, np.float16, (len(rows), *maps.shape[1:]))
            views[done : done + len(maps)] = maps
            done += len(maps)
            report(done)
        del views
        unfinished.replace(file)
    stored: np.ndarray = np.load(file, mmap_mode="r")
    return stored


def view_maps(
    lower: FrozenNetwork, images: Images, rows: Tensor, settings: AdaptedPretext, seed: int
) -> Iterator[np.ndarray]:
    """What the lower layers give for each image of ``rows`` (N,) and its views: (B,V,...) float16, batch by batch.

    The plain image comes first, then ``settings.views`` random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(rows), VIEWED):
        batch = rows[start : start + VIEWED]
        seen = [images.squares(batch, lower.side)]
        for _ in range(settings.views):
            view = simclr_pixels(images, batch, settings.augmentation, lower.side, generator)
            seen.append(view.mul(255).round_().clamp_(0, 255).to(torch.uint8))
        maps = np.stack([lower(pixels) for pixels in seen], axis=1)
        yield maps.astype(np.float16)


@dataclass(frozen=True)
class Proposed:
    """What the frozen path makes of features of N images."""

    candidates: Candidates
    clusters: np.ndarray  # (N,) int64, those of the head that is kept
    votes: np.ndarray  # (N,) float64: the share of methods that agree on the image's cluster
    num_clusters: int
    found_any: bool  # whether the verdict sees any group in them


def propose_groups(
    features: np.ndarray, settings: AdaptedPretext, seed: int, report: Callable[[str], None], number: int | None = None
) -> Proposed:
    """Groups of ``features`` (N,F) by ``settings.groups``, with its number of groups, or ``number``.

    Raises ``ScanError`` if the settings do not fit so few images.
    """
    embeddings = fit_reduction([features], settings.dimensions)([features])
    if number is None and settings.groups.num_clusters != "auto":
        number = settings.groups.num_clusters
    if number is None:
        report("number of groups")
        number = estimate_number(embeddings, numbers_to_try(len(embeddings)), seed, lambda _: None).number
    near = mine_neighbors(embeddings, min(settings.neighbors, len(embeddings) - 1), len(embeddings), 1.0).nearest
    groups = settings.groups.model_copy(
        update={"num_clusters": number, "neighbors": min(settings.groups.neighbors, near.shape[1])}
    )
    candidates = propose(embeddings, near, groups, seed, report)
    assigned = assign(torch.from_numpy(embeddings), candidates.joined()).numpy()
    votes = image_votes(assigned, candidates.names, candidates.kept, number, UNEQUAL)
    clusters = assigned[candidates.kept]
    word = judge_groups(embeddings, clusters, number, seed).word
    return Proposed(candidates, clusters, votes, number, word != NONE)


def trusted_images(proposed: Proposed, share: float) -> list[Tensor]:
    """For each cluster that is used, the positions of the ``share`` of its images on which most methods agree."""
    found = []
    for cluster in range(proposed.num_clusters):
        rows = np.flatnonzero(proposed.clusters == cluster)
        if len(rows):
            surest = rows[np.argsort(-proposed.votes[rows], kind="stable")]
            found.append(torch.from_numpy(surest[: max(round(share * len(rows)), 1)]))
    return found


@torch.inference_mode()
def upper_features(upper: nn.Module, views: np.ndarray, fabric: Fabric) -> np.ndarray:
    """(N,D) float32 features of the plain images: of ``views`` (N,V,...) those at 0."""
    blocks = [views[start : start + BLOCK, 0] for start in range(0, len(views), BLOCK)]
    return np.concatenate([upper(_maps(each, fabric)).float().cpu().numpy() for each in blocks])


def start_adapted(
    upper: UpperLayers, features: np.ndarray, proposed: Proposed, settings: AdaptedPretext, seed: int, fabric: Fabric
) -> TrainingState:
    """``upper`` with a linear classifier that knows the trusted images' clusters from their ``features`` (N,D)."""
    generator = torch.Generator().manual_seed(seed)
    points, labels = torch.from_numpy(features), torch.from_numpy(proposed.clusters)
    rows = torch.cat(trusted_images(proposed, settings.trusted))
    linear = nn.Linear(features.shape[1], proposed.num_clusters)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    standardized, adam = Standardized(points), torch.optim.Adam(linear.parameters(), lr=HEAD_LR)
    for _ in range(HEAD_STEPS):
        batch = rows[torch.randint(len(rows), (HEAD_BATCH,), generator=generator)]
        torch.autograd.backward(F.cross_entropy(linear(standardized(points[batch])), labels[batch]))
        adam.step()
        adam.zero_grad()
    module = Model(upper, nn.Sequential(standardized, linear)).to(fabric.device)
    module.backbone.to(memory_format=torch.channels_last)
    return TrainingState(
        module=module, optimizer=build_optimizer(settings.optimizer, module, fabric), generator=generator
    )


@dataclass(frozen=True)
class Loop:
    """What ``TrainStep`` asks for."""

    epochs: int
    batch_size: int
    optimizer: Optimizer


def loop_of(settings: AdaptedPretext, count: int) -> Loop:
    """The loop over ``count`` images: as many epochs as come nearest to ``settings.steps``, which few images exceed."""
    batch = max(min(settings.batch_size, count), 2)
    return Loop(max(round(settings.steps / max(count // batch, 1)), 1), batch, settings.optimizer)


def train_adapted(
    state: TrainingState, views: np.ndarray, proposed: Proposed, settings: AdaptedPretext, fabric: Fabric
) -> Progress:
    """Trains ``state`` in place to its last epoch. Yields steps and epochs.

    ``views`` (N,V,...) float16 are what the lower layers give for each image's views, the plain one first. A step takes
    a batch of images, and as many trusted ones, equally many of each cluster.
    """
    loop = loop_of(settings, len(views))
    train = TrainStep("pretext", state, loop, fabric, len(views))
    labels, trusted = torch.from_numpy(proposed.clusters), trusted_images(proposed, settings.trusted)

    @train.graphed
    def step(known: Tensor, label: Tensor, plain: Tensor, view: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            sure, guess = train.model(plain)[1].softmax(dim=1).max(dim=1)
        features, logits = train.model(torch.cat([known, view]))
        of_known, of_view = logits.chunk(2)
        used = (sure >= settings.threshold).float()
        loss = F.cross_entropy(of_known, label)
        loss = loss + (used * F.cross_entropy(of_view, guess, reduction="none")).mean()
        train.backward_and_update(loss)
        return {"loss": loss, "confident": used.mean(), "features": features}

    for _ in train.epochs():
        for batch in train.batches():
            draw, size = train.generator(), len(batch)
            chosen = torch.randint(len(trusted), (size,), generator=draw).tolist()
            places = torch.rand(size, generator=draw).tolist()
            known = torch.stack(
                [trusted[each][int(place * len(trusted[each]))] for each, place in zip(chosen, places, strict=True)]
            )
            any_view = torch.randint(views.shape[1], (size,), generator=draw)
            other_view = torch.randint(1, views.shape[1], (size,), generator=draw)
            features = step(
                _maps(views[known, any_view], fabric),
                to_device(labels[known], fabric.device),
                _maps(views[batch, 0], fabric),
                _maps(views[batch, other_view], fabric),
            )["features"]
            yield train.end_step(3 * size)
        yield train.end_epoch(**check_spread(features, state.epoch + 1))


def neighbors_seen(weights: Path, side: int | None, images: Images, rows: Tensor, dimensions: int) -> np.ndarray:
    """For ``rows`` (N,) of the images the positions (N,K) of the nearest others, as the network of ``weights`` sees."""
    judge = FrozenNetwork(weights, images.device, side)
    features = np.concatenate(list(embed_frozen(judge, images, rows)))
    embeddings = fit_reduction([features], dimensions)([features])
    return mine_neighbors(embeddings, min(NEIGHBORS, len(rows) - 1), len(rows), 1.0).nearest


def choose_network(before: Proposed, after: Proposed, nearest: np.ndarray) -> tuple[bool, str]:
    """Whether the adapted network is kept, and why. ``nearest`` (N,K) are neighbors as another network sees them."""
    was, now = (float((each.clusters[nearest] == each.clusters[:, None]).mean()) for each in (before, after))
    return now >= was - SLACK, f"of neighbors for another network {now:.1%} are in one group, {was:.1%} before"


def _maps(views: np.ndarray, fabric: Fabric) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(views)), fabric.device).float()
