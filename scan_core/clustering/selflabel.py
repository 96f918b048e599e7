"""Self-labelling (paper, section 2.3): the network learns from its own confident predictions."""

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from scan_core.compute.cuda_graphs import cuda_graphed
from scan_core.compute.device import seed_everything, to_device
from scan_core.compute.distributed import all_gather, local_generator, local_shard
from scan_core.images.store import Images
from scan_core.losses import confident_cross_entropy
from scan_core.models.inference import forward_all, log_probabilities
from scan_core.models.networks import Model
from scan_core.settings import Selflabel
from scan_core.training.step import (
    Progress,
    Step,
    Stepper,
    TrainingState,
    batches,
    build_optimizer,
    check_batch,
    compiled,
    ema_update_,
    momentum_copy,
)
from scan_core.views.random_view import plain_view, random_view

PLATEAU_MEAN, PLATEAU_EPOCHS, PLATEAU_GROWTH = 5, 10, 0.001  # epochs averaged, epochs back, share of the images
GUARD_PERCENT = 1  # of the validation images may part from their nearest neighbour
GUARD_SHRINK = 10  # times smaller than the smallest was before, a cluster counts as dead


def start_selflabel(settings: Selflabel, model: Model, seed: int, fabric: Fabric) -> TrainingState:
    """A clustering network with one head, its average, a new optimiser and the generator, on the device."""
    generator = seed_everything(seed)
    module = Model(model.backbone, model.head, frozen=settings.train == "head").to(fabric.device)
    average = momentum_copy(module) if settings.ema else None
    return TrainingState(module, build_optimizer(settings.optimizer, module, fabric), generator, average)


def final_model(state: TrainingState) -> Model:
    """What is evaluated and kept: the average, where there is one."""
    return state.average or state.module


def train_selflabel(
    state: TrainingState,
    images: Images,
    rows: Tensor,
    val_rows: Tensor,
    settings: Selflabel,
    fabric: Fabric,
) -> Progress:
    """Trains ``state`` in place from its epoch on, until the confident count plateaus. Yields steps and epochs.

    ``rows`` (N,) and ``val_rows`` (N_val,) index images. What an epoch reports, and whether it is the last, goes by the
    average of the weights where ``settings.ema`` asks for one; it never reaches the network that learns, nor its
    pseudo-labels. Each epoch's assignments of the validation images are in
    ``state.extra["assignments"]``, those before the first epoch ahead of them.
    """
    steps = check_batch("selflabel", settings.batch_size, len(rows))
    model, optimizer = fabric.setup(compiled(state.module, fabric, steps * settings.epochs), state.optimizer)
    judged = final_model(state)
    # A frozen backbone makes the same features of plain images in every epoch: (N,D) and (N_val,D), computed once.
    features = val_features = None
    if settings.train == "head":
        features, val_features = (forward_all(state.module, images, each, fabric)[0] for each in (rows, val_rows))

    def label(seen: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            # Features go not through Fabric, which would round them to the backbone's precision.
            _, weak = model(seen) if features is None else state.module(seen, embedded=True)  # (1,B / processes,C)
            weak = all_gather(F.log_softmax(weak[0], dim=-1))  # (B,C)
            return weak, (weak.amax(dim=1).exp() > settings.threshold).any()

    def objective(views: Tensor, weak: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        strong = all_gather(model(views)[1][0])  # (B,C)
        loss = confident_cross_entropy(strong, weak, settings.threshold, settings.class_weights)
        return loss, {"loss": loss}

    step = Stepper(fabric, optimizer, settings.optimizer, steps, settings.epochs, objective)
    labels = cuda_graphed(label, fabric.device)
    if not state.extra:
        before = log_probabilities(judged, images, val_rows, fabric, val_features)[0].argmax(dim=1)
        share = confident_share(judged, images, rows, settings.threshold, fabric, features)
        state.extra.update(assignments=[before.to(torch.int32).cpu()], confident=[share])
    while state.epoch < settings.epochs and not has_plateaued(state.extra["confident"]):
        epoch, skipped = state.epoch, 0
        order = torch.randperm(len(rows), generator=state.generator)
        for positions in batches(order, settings.batch_size):
            part = local_shard(positions)
            batch = rows[part]
            # The pseudo-labels come from the network as it is being trained, in train mode, as its strong views do.
            model.train()
            if features is None:
                weak, any_confident = labels(plain_view(images, batch))
            else:
                weak, any_confident = labels(features.index_select(0, to_device(part, features.device)))
            # Drawn while a GPU is still at the weak views.
            views = random_view(images, batch, settings.augmentation, local_generator(state.generator))
            if not any_confident:  # the one synchronisation: a step without a gradient would still decay the weights
                skipped += 1
                yield Step(len(positions))
                continue
            step(epoch, views, weak)
            if state.average:
                ema_update_(state.average, state.module, settings.ema, buffers=True)
            yield Step(2 * len(positions))
        share = confident_share(judged, images, rows, settings.threshold, fabric, features)
        assigned = log_probabilities(judged, images, val_rows, fabric, val_features)[0].argmax(dim=1)
        assigned = assigned.to(torch.int32).cpu()
        state.extra["confident"].append(share)
        agreement = float((assigned == state.extra["assignments"][-1]).double().mean())
        state.extra["assignments"].append(assigned)
        yield state.end_epoch({
            "loss": 0.0, **step.means(epoch), "confident": share * len(rows), "confident_share": share,
            "skipped_steps": skipped, "clusters_alive": len(torch.unique(assigned)), "agreement": agreement,
        })  # fmt: skip


def confident_share(
    module: torch.nn.Module,
    images: Images,
    rows: Tensor,
    threshold: float,
    fabric: Fabric,
    features: Tensor | None = None,
) -> float:
    """Share of ``rows`` whose plain view, in eval mode, has a probability above ``threshold``; NaN if one is NaN.

    A network that has diverged is confident of nothing and would otherwise only skip its steps.
    """
    confidence = log_probabilities(module, images, rows, fabric, features)[0].amax(dim=1).exp()  # (N,)
    share = float((confidence > threshold).double().mean())
    return share if bool(confidence.isfinite().all()) else float("nan")


def has_plateaued(confident: list[float]) -> bool:
    """Whether the mean of the last 5 epochs' confident share has grown by less than 0.1 point in 10 epochs."""
    if len(confident) < PLATEAU_MEAN + PLATEAU_EPOCHS:
        return False
    now = sum(confident[-PLATEAU_MEAN:]) / PLATEAU_MEAN
    earlier = confident[-PLATEAU_MEAN - PLATEAU_EPOCHS : -PLATEAU_EPOCHS]
    return now - sum(earlier) / PLATEAU_MEAN < PLATEAU_GROWTH


def has_learned(state: TrainingState, steps: int) -> bool:
    """Whether one of the ``steps`` of an epoch was not skipped; True where there were to be no epochs."""
    return not state.history or any(epoch["skipped_steps"] < steps for epoch in state.history)


def choose_model(before: Tensor, after: Tensor, nearest: Tensor, learned: bool) -> tuple[str, str]:
    """``before`` or ``after``, and why, without labels.

    ``before`` and ``after`` are the (N,) clusters of the validation images, ``nearest`` (N,) the position of each
    one's nearest neighbour. The model from before is kept if clusters have died, holding less than a tenth of
    what the smallest held before, or if the share of images in one cluster with their nearest neighbour has dropped by
    more than 1 point; and if nothing was ``learned``, for every step was skipped, while BatchNorm's statistics have
    moved.
    """
    if not learned:
        return "before", "no training image was ever above selflabel.threshold"
    sizes = [torch.unique(assigned, return_counts=True)[1] for assigned in (before, after)]
    alive = [int((GUARD_SHRINK * held >= sizes[0].min()).sum()) for held in sizes]
    if alive[1] < alive[0]:
        return "before", f"self-labeling left {alive[1]} of {alive[0]} clusters in use"
    together = [int((assigned == assigned[nearest]).sum()) for assigned in (before, after)]
    count = len(nearest)
    if 100 * (together[0] - together[1]) > GUARD_PERCENT * count:  # in whole images: no rounding decides
        was, is_now = together[0] / count, together[1] / count
        return "before", (
            f"neighbor agreement fell from {was:.3f} to {is_now:.3f}: "
            "fewer images share a cluster with their nearest neighbor"
        )
    return "after", f"{alive[1]} clusters in use, neighbor agreement {together[1] / count:.3f}"
