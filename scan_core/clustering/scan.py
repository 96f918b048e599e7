"""Clustering with the SCAN loss (paper, section 2.2): neighbours agree, and all clusters stay in use."""

import copy

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.device import seed_everything, to_device
from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.errors import ScanError
from scan_core.images.store import Images
from scan_core.losses import imbalance, scan_loss
from scan_core.models.inference import forward_all, log_probabilities
from scan_core.models.networks import ClusterHeads, Model, feature_size
from scan_core.settings import Cluster
from scan_core.training.step import (
    Progress,
    Step,
    Stepper,
    TrainingState,
    batches,
    build_optimizer,
    check_batch,
    compiled,
)
from scan_core.views.random_view import random_view

BLOCK = 1024  # images at a time in the validation loss


def start_scan(settings: Cluster, pretext: Model, seed: int, fabric: Fabric) -> TrainingState:
    """``settings.heads`` new heads on the trained backbone, their optimiser and the generator, on the device."""
    generator = seed_everything(seed)
    heads = ClusterHeads(feature_size(pretext.backbone), settings.num_clusters, settings.heads)
    module = Model(pretext.backbone, heads, frozen=settings.train == "head").to(fabric.device)
    return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator)


def train_scan(
    state: TrainingState,
    images: Images,
    rows: Tensor,
    neighbors: Tensor,
    val_rows: Tensor,
    val_neighbors: Tensor,
    settings: Cluster,
    fabric: Fabric,
) -> Progress:
    """Trains ``state`` in place from its epoch on. Yields steps and epochs.

    ``rows`` (N,) and ``val_rows`` (N_val,) index images; ``neighbors`` (N,K) and ``val_neighbors`` (N_val,K') index
    positions in them, nearest first. Each step pairs an anchor with one neighbour drawn uniformly from its first
    ``settings.neighbors``. Keeps the head and epoch of the lowest validation loss in ``state.extra["best"]``, with what
    all heads made of the validation images then, and each epoch's assignments by its best head in
    ``state.extra["assignments"]``.
    """
    for name, wanted, mined in (
        ("neighbors", settings.neighbors, neighbors),
        ("val_neighbors", settings.val_neighbors, val_neighbors),
    ):
        if wanted > mined.shape[1]:
            raise ScanError(
                f"cluster.{name} is {wanted}, but {mined.shape[1]} neighbours were mined; lower it or raise neighbors.k"
            )
    steps = check_batch("cluster", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)
    prior = None if settings.prior is None else torch.tensor(settings.prior, device=fabric.device)  # (C,)
    # A frozen backbone makes the same features of plain images in every epoch: (N,D) and (N_val,D), computed once.
    features = val_features = None
    if settings.train == "head" and settings.augmentation.kind == "none":
        features, val_features = (forward_all(state.module, images, each, fabric)[0] for each in (rows, val_rows))

    def objective(seen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if features is None:  # seen: views (2B / processes,...); else (2B,) which features
            log_p = F.log_softmax(model(seen)[1], dim=-1)  # (H,2B / processes,C)
            anchor_p, partner_p = (all_gather(half, dim=1) for half in log_p.chunk(2, dim=1))  # (H,B,C) each
        else:  # Not through Fabric, which would round the features; so little that each process does all of it.
            _, logits = state.module(features.index_select(0, seen), embedded=True)  # (H,2B,C)
            anchor_p, partner_p = F.log_softmax(logits, dim=-1).chunk(2, dim=1)
        total, consistency, entropy = scan_loss(  # (H,) each
            anchor_p, partner_p, settings.entropy_weight, prior, settings.entropy_of
        )
        return total.sum(), {"loss": total.mean(), "consistency": consistency.mean(), "entropy": entropy.mean()}

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    model.train()
    for epoch in range(state.epoch, settings.epochs):
        order = torch.randperm(len(rows), generator=state.generator)
        for anchors in batches(order, settings.batch_size):
            partners = anchors
            if settings.neighbors:
                column = torch.randint(settings.neighbors, (len(anchors),), generator=state.generator)
                partners = neighbors[anchors, column]
            if features is None:
                pair = torch.cat([local_shard(anchors), local_shard(partners)])
                seen = random_view(images, rows[pair], settings.augmentation, local_generator(state.generator))
            else:
                seen = to_device(torch.cat([anchors, partners]), features.device)  # (2B,)
            step(epoch, seen)
            yield Step(2 * len(anchors))
        log_p = log_probabilities(state.module, images, val_rows, fabric, val_features)  # (H,N_val,C)
        losses = validation_loss(log_p, val_neighbors[:, : settings.val_neighbors], settings.entropy_weight, prior)
        _keep_best(state, losses, log_p)
        lowest = {"val_loss": float(losses.min()), "val_loss_worst_head": float(losses.max())}
        yield state.end_epoch({**step.means(epoch), **lowest})


def validation_loss(log_p: Tensor, neighbors: Tensor, entropy_weight: float, prior: Tensor | None = None) -> Tensor:
    """The SCAN loss of every image with all its neighbours, without augmentation: (H,).

    ``log_p`` is (H,N,C), ``neighbors`` (N,K) positions in N; the entropy is that of the whole set.
    """
    neighbors, agreement = neighbors.to(log_p.device), log_p.new_zeros(len(log_p))
    for start in range(0, len(neighbors), BLOCK):  # memory grows as N
        part = neighbors[start : start + BLOCK]  # (B,K)
        pairs = log_p[:, start : start + BLOCK, None] + log_p[:, part]  # (H,B,K,C)
        agreement += torch.logsumexp(pairs, dim=-1).sum(dim=(1, 2))
    return entropy_weight * imbalance(log_p, prior) - agreement / max(neighbors.numel(), 1)


def _keep_best(state: TrainingState, losses: Tensor, log_p: Tensor) -> None:
    """Copies the weights if this epoch has the lowest validation loss so far; records losses and assignments."""
    extra, head = state.extra, int(losses.argmin())
    extra.setdefault("head_losses", []).append(losses.tolist())
    extra.setdefault("assignments", []).append(log_p[head].argmax(dim=1).to(torch.int32).cpu())
    if "best" not in extra or float(losses[head]) < extra["best"]["loss"]:
        assert isinstance(state.module.head, ClusterHeads)
        extra["best"] = {
            "loss": float(losses[head]),
            "epoch": state.epoch + 1,
            "head": head,
            "backbone": {key: value.clone() for key, value in state.module.backbone.state_dict().items()},
            "weights": state.module.head.only(head).state_dict(),
            "heads": log_p.argmax(dim=2).to(torch.int32).cpu(),  # (H,N_val)
        }


def best_model(state: TrainingState) -> Model:
    """The backbone and the one head of the lowest validation loss: a copy, ``state`` stays as it is."""
    assert isinstance(state.module.head, ClusterHeads)
    best = state.extra["best"]
    model = Model(copy.deepcopy(state.module.backbone), state.module.head.only(best["head"]))
    model.backbone.load_state_dict(best["backbone"])
    model.head.load_state_dict(best["weights"])
    return model
