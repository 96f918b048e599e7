"""Self-labeling (paper, section 2.3): the network learns from its own confident predictions."""

from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from scan_core.clustering.losses import confident_cross_entropy
from scan_core.clustering.settings import Selflabel
from scan_core.compute.cuda_graphs import cuda_graphed
from scan_core.compute.device import seed_everything
from scan_core.compute.distributed import all_gather, local_shard
from scan_core.images.store import Images
from scan_core.models.inference import Autocast, cache_features, log_probabilities
from scan_core.models.networks import Model
from scan_core.training.state import Progress, TrainingState, ema_update_, momentum_copy
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view

PLATEAU_MEAN, PLATEAU_EPOCHS, PLATEAU_GROWTH = 5, 10, 0.001  # epochs averaged, epochs back, share of the images
GUARD_PERCENT = 1  # largest allowed drop of neighbor agreement, in percent of the validation images
GUARD_SHRINK = 10  # a cluster is dead if it is this many times smaller than the smallest one before


@dataclass(kw_only=True)
class SelflabelState(TrainingState):
    """``module`` is the network that learns."""

    ema: Model | None = None  # its average, if one is asked for
    assignments: list[Tensor] = field(default_factory=list)  # (N_val,) int32: before the first epoch, then per epoch
    confident: list[float] = field(default_factory=list)  # share of the training images, likewise
    skipped: int = 0  # steps of the epoch under way that had no confident image

    @property
    def judged(self) -> Model:
        """The network that is evaluated and kept: the average if there is one."""
        return self.ema or self.module


def start_selflabel(settings: Selflabel, model: Model, seed: int, fabric: Fabric) -> SelflabelState:
    """A clustering network with one head, its average, a new optimizer and the generator, on the device."""
    generator = seed_everything(seed)
    module = Model(model.backbone, model.head, frozen=settings.train == "head").to(fabric.device)
    optimizer = build_optimizer(settings.optimizer, module, fabric)
    ema = momentum_copy(module) if settings.ema else None
    return SelflabelState(module=module, optimizer=optimizer, generator=generator, ema=ema)


def train_selflabel(
    state: SelflabelState, images: Images, rows: Tensor, val_rows: Tensor, settings: Selflabel, fabric: Fabric
) -> Progress:
    """Trains ``state`` in place until the confident share plateaus. Yields steps and epochs.

    ``rows`` (N,) and ``val_rows`` (N_val,) index images. ``state.judged`` gives what an epoch reports and whether
    it is the last. The averaged weights affect neither training nor pseudo-labels. The function is longer
    than most, so that the whole step is in one place.
    """
    train = TrainStep("selflabel", state, settings, fabric, len(rows))
    weak_model, judged, plain, plain_rows, plain_val = train.model, state.judged, images, rows, val_rows
    if settings.train == "head":  # plain views have the same features in every epoch
        table, plain, (plain_rows, plain_val) = cache_features(state.module, images, [rows, val_rows], fabric)
        weak_model, judged = (Model(table, each.head, frozen=True) for each in (state.module, state.judged))

    @torch.no_grad()
    def label(views: Tensor) -> tuple[Tensor, Tensor]:
        weak = all_gather(F.log_softmax(weak_model(views)[1][0], dim=-1))  # (B,C)
        return weak, (weak.amax(dim=1).exp() > settings.threshold).any()

    @train.graphed
    def step(strong: Tensor, weak: Tensor) -> dict[str, Tensor]:
        logits = all_gather(train.model(strong)[1][0])  # (B,C)
        loss = confident_cross_entropy(logits, weak, settings.threshold, settings.class_weights)
        train.backward_and_update(loss)
        return {"loss": loss}

    pseudo_labels = cuda_graphed(label, fabric.device)

    def judge() -> None:
        state.confident.append(confident_share(judged, plain, plain_rows, settings.threshold, fabric))
        state.assignments.append(_assigned(judged, plain, plain_val, fabric))

    if not state.assignments:
        judge()
    for _ in train.epochs():
        if has_plateaued(state.confident):
            return
        for positions in train.batches():
            shard = local_shard(positions)
            # The pseudo-labels come from the network that is being trained, in training mode, as for its strong views.
            train.model.train()
            weak, any_confident = pseudo_labels(plain.plain_view(plain_rows[shard]))
            # Drawn while a GPU still computes the weak views.
            strong = random_view(images, rows[shard], settings.augmentation, train.generator())
            if not any_confident:  # the one wait for the device: a step without a gradient would decay the weights
                state.skipped += 1
                yield train.end_step(len(positions))
                continue
            step(strong, weak)
            if state.ema:
                ema_update_(state.ema, state.module, settings.ema, buffers=True)
            yield train.end_step(2 * len(positions))
        judge()
        before, after = state.assignments[-2:]
        skipped, state.skipped = state.skipped, 0
        yield train.end_epoch(
            confident=state.confident[-1] * len(rows), confident_share=state.confident[-1], skipped_steps=skipped,
            clusters_used=len(torch.unique(after)), agreement=float((after == before).double().mean()),
        )  # fmt: skip


def _assigned(module: torch.nn.Module, images: Images, rows: Tensor, compute: Autocast) -> Tensor:
    """(N,) int32 on the host: the likeliest cluster of each of ``rows`` (N,)."""
    return log_probabilities(module, images, rows, compute)[0].argmax(dim=1).to(torch.int32).cpu()


def confident_share(
    module: torch.nn.Module, images: Images, rows: Tensor, threshold: float, compute: Autocast
) -> float:
    """Share of ``rows`` (N,) whose plain view has a probability above ``threshold``, in eval mode; NaN if one is NaN.

    A network that has diverged is confident of nothing, so without the NaN its steps would only be skipped.
    """
    confidence = log_probabilities(module, images, rows, compute)[0].amax(dim=1).exp()  # (N,)
    share = float((confidence > threshold).double().mean())
    return share if bool(confidence.isfinite().all()) else float("nan")


def has_plateaued(confident: list[float]) -> bool:
    """True if the mean of the last 5 epochs' confident share has grown by less than 0.1 point in 10 epochs."""
    if len(confident) < PLATEAU_MEAN + PLATEAU_EPOCHS:
        return False
    now = sum(confident[-PLATEAU_MEAN:]) / PLATEAU_MEAN
    earlier = confident[-PLATEAU_MEAN - PLATEAU_EPOCHS : -PLATEAU_EPOCHS]
    return now - sum(earlier) / PLATEAU_MEAN < PLATEAU_GROWTH


def has_learned(state: TrainingState, steps: int) -> bool:
    """True if any of the ``steps`` of an epoch was not skipped, or if there were no epochs to be done."""
    return not state.history or any(epoch["skipped_steps"] < steps for epoch in state.history)


def choose_model(before: Tensor, after: Tensor, nearest: Tensor, learned: bool) -> tuple[str, str]:
    """``before`` or ``after``, and why, without labels.

    ``before`` and ``after`` are the (N,) clusters of the validation images, ``nearest`` (N,) the position of each
    image's nearest neighbor. The model from before is kept if clusters have died, that is if they hold less than a
    tenth of what the smallest held before; if the share of images in one cluster with their nearest neighbor has
    dropped by more than 1 point; and if nothing was ``learned``, because then only BatchNorm's statistics have moved.
    """
    if not learned:
        return "before", "no training image was ever above selflabel.threshold"
    sizes = [torch.unique(assigned, return_counts=True)[1] for assigned in (before, after)]
    used = [int((GUARD_SHRINK * size >= sizes[0].min()).sum()) for size in sizes]
    if used[1] < used[0]:
        return "before", f"self-labeling left {used[1]} of {used[0]} clusters in use"
    together = [int((assigned == assigned[nearest]).sum()) for assigned in (before, after)]
    count = len(nearest)
    if 100 * (together[0] - together[1]) > GUARD_PERCENT * count:  # in whole images, so that rounding decides nothing
        return "before", (
            f"neighbor agreement fell from {together[0] / count:.3f} to {together[1] / count:.3f}: "
            "fewer images share a cluster with their nearest neighbor"
        )
    return "after", f"{used[1]} clusters in use, neighbor agreement {together[1] / count:.3f}"
