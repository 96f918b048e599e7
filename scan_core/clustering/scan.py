"""Clustering with the SCAN loss (paper, section 2.2): neighbors agree, and all clusters stay in use."""

import copy
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from scan_core.clustering.losses import imbalance, scan_loss
from scan_core.clustering.settings import ScanCluster, known_number
from scan_core.compute.device import seed_everything
from scan_core.compute.distributed import all_gather, local_shard
from scan_core.errors import ScanError
from scan_core.images.store import Images
from scan_core.models.inference import cache_features, log_probabilities
from scan_core.models.networks import ClusterHeads, Model, feature_size
from scan_core.training.state import Progress, TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view

BLOCK = 1024  # images at a time in the validation loss


@dataclass(kw_only=True)
class ScanState(TrainingState):
    """``module`` has all heads; ``best_*`` belong to the head and epoch of the lowest validation loss so far."""

    head_losses: list[list[float]] = field(default_factory=list)  # validation losses, by epoch and head
    assignments: list[Tensor] = field(default_factory=list)  # (N_val,) int32 of each epoch's best head
    best_loss: float = float("inf")
    best_epoch: int = 0  # from 1
    best_head: int = 0
    best_backbone: dict[str, Tensor] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # of the one head
    best_heads: Tensor | None = None  # (H,N_val) int32: the clusters that all heads found in that epoch


def start_scan(settings: ScanCluster, pretext: Model, seed: int, fabric: Fabric) -> ScanState:
    """``settings.heads`` new heads on the trained backbone, their optimizer and the generator, on the device."""
    generator = seed_everything(seed)
    heads = ClusterHeads(feature_size(pretext.backbone), known_number(settings), settings.heads)
    module = Model(pretext.backbone, heads, frozen=settings.train == "head").to(fabric.device)
    optimizer = build_optimizer(settings.optimizer, module, fabric)
    return ScanState(module=module, optimizer=optimizer, generator=generator)


def train_scan(
    state: ScanState,
    images: Images,
    rows: Tensor,
    neighbors: Tensor,
    val_rows: Tensor,
    val_neighbors: Tensor,
    settings: ScanCluster,
    fabric: Fabric,
) -> Progress:
    """Trains ``state`` in place to its last epoch. Yields steps and epochs.

    ``rows`` (N,) and ``val_rows`` (N_val,) index images; ``neighbors`` (N,K) and ``val_neighbors`` (N_val,K') index
    positions in them, nearest first. Each step pairs an anchor with one neighbor drawn uniformly from its first
    ``settings.neighbors``. Raises ``ScanError`` if fewer neighbors were mined than are to be used.
    """
    _check_mined("neighbors", settings.neighbors, neighbors)
    _check_mined("val_neighbors", settings.val_neighbors, val_neighbors)
    module = state.module
    if settings.train == "head" and settings.augmentation.kind == "none":  # the same features in every epoch
        table, images, (rows, val_rows) = cache_features(state.module, images, [rows, val_rows], fabric)
        module = Model(table, state.module.head, frozen=True)
    train = TrainStep("cluster", state, settings, fabric, len(rows), module)
    prior = None if settings.prior is None else torch.tensor(settings.prior, device=fabric.device)  # (C,)

    @train.graphed
    def step(views: Tensor) -> dict[str, Tensor]:
        log_p = F.log_softmax(train.model(views)[1], dim=-1)  # (H,2B / world_size,C)
        anchor_p, partner_p = (all_gather(half, dim=1) for half in log_p.chunk(2, dim=1))  # (H,B,C)
        total, consistency, entropy = scan_loss(  # (H,)
            anchor_p, partner_p, settings.entropy_weight, prior, settings.entropy_of
        )
        train.backward_and_update(total.sum())
        return {"loss": total.mean(), "consistency": consistency.mean(), "entropy": entropy.mean()}

    train.model.train()
    for _ in train.epochs():
        for anchors in train.batches():
            partners = anchors
            if settings.neighbors:
                column = torch.randint(settings.neighbors, (len(anchors),), generator=state.generator)
                partners = neighbors[anchors, column]
            pair = rows[torch.cat([local_shard(anchors), local_shard(partners)])]
            step(random_view(images, pair, settings.augmentation, train.generator()))
            yield train.end_step(2 * len(anchors))
        log_p = log_probabilities(module, images, val_rows, fabric)  # (H,N_val,C)
        losses = validation_loss(log_p, val_neighbors[:, : settings.val_neighbors], settings.entropy_weight, prior)
        _keep_best(state, losses, log_p)
        yield train.end_epoch(val_loss=float(losses.min()), val_loss_worst_head=float(losses.max()))


def _check_mined(name: str, used: int, mined: Tensor) -> None:
    if used > mined.shape[1]:
        raise ScanError(
            f"cluster.{name} is {used}, but {mined.shape[1]} neighbors were mined; lower it or raise neighbors.k"
        )


def validation_loss(log_p: Tensor, neighbors: Tensor, entropy_weight: float, prior: Tensor | None = None) -> Tensor:
    """The SCAN loss of every image with all its neighbors, without augmentation: (H,).

    ``log_p`` is (H,N,C), ``neighbors`` (N,K) positions in N; the entropy is that of the whole set.
    """
    neighbors, agreement = neighbors.to(log_p.device), log_p.new_zeros(len(log_p))
    for start in range(0, len(neighbors), BLOCK):  # memory grows with N, not with N * K
        part = neighbors[start : start + BLOCK]  # (B,K)
        pairs = log_p[:, start : start + BLOCK, None] + log_p[:, part]  # (H,B,K,C)
        agreement += torch.logsumexp(pairs, dim=-1).sum(dim=(1, 2))
    return entropy_weight * imbalance(log_p, prior) - agreement / max(neighbors.numel(), 1)


def _keep_best(state: ScanState, losses: Tensor, log_p: Tensor) -> None:
    """Records the epoch's losses (H,) and assignments; copies the weights if a loss is the lowest so far."""
    head = int(losses.argmin())
    state.head_losses.append(losses.tolist())
    state.assignments.append(log_p[head].argmax(dim=1).to(torch.int32).cpu())
    if not state.best_epoch or float(losses[head]) < state.best_loss:
        assert isinstance(state.module.head, ClusterHeads)
        state.best_loss, state.best_epoch, state.best_head = float(losses[head]), state.epoch + 1, head
        state.best_backbone = {key: value.clone() for key, value in state.module.backbone.state_dict().items()}
        state.best_weights = state.module.head.only(head).state_dict()
        state.best_heads = log_p.argmax(dim=2).to(torch.int32).cpu()


def best_model(state: ScanState) -> Model:
    """The backbone and the one head of the lowest validation loss: a copy, ``state`` stays as it is."""
    assert isinstance(state.module.head, ClusterHeads)
    model = Model(copy.deepcopy(state.module.backbone), state.module.head.only(state.best_head))
    model.backbone.load_state_dict(state.best_backbone)
    model.head.load_state_dict(state.best_weights)
    return model
