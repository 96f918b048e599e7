"""pretext: features without labels."""

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.progress import CountProgress, say
from pipeline.stage import Stage
from scan_core.errors import ScanError


def pretext(stage: Stage) -> None:
    """Train the backbone on data/images by pretext.method; write models/pretext.safetensors and its history."""
    how = {"frozen": leave_to_embed, "adapted": adapt_network}.get(stage.params.pretext.method, train_network)
    how(stage)


def leave_to_embed(stage: Stage) -> None:
    """Embed has frozen networks: the model is a file without one, whatever the seed."""
    from scan_core.models.files import save_no_model

    save_no_model(stage.out(artifacts.MODELS / "pretext.safetensors"))
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), [])


def adapt_network(stage: Stage) -> None:
    """Trains the last layers of a published network on the images' groups; embed takes it if it is better."""
    from scan_core.compute.device import configure_compute, make_fabric
    from scan_core.models.files import load_frozen, save_adapted
    from scan_core.models.halves import UpperLayers
    from scan_core.pretext.adapted import (
        choose_network,
        loop_of,
        neighbors_seen,
        propose_groups,
        start_adapted,
        store_views,
        train_adapted,
        upper_features,
    )
    from scan_core.pretext.settings import AdaptedPretext

    params, settings = stage.params, stage.params.pretext
    assert isinstance(settings, AdaptedPretext)
    if stage.processes > 1:
        raise ScanError(f"pretext.method adapted runs in one process, not in {stage.processes}; unset SCAN_LAUNCH")
    compute = stage.use(configure_compute(params.precision, stage.device))
    fabric, weights = make_fabric(compute.precision, compute.device.type), stage.weights(settings.weights)
    images, rows, stats = stage.images(compute)
    first = artifacts.load_firsts(stats["count"], {split: index.numpy() for split, index in rows.items()})["train"]
    chosen = rows["train"][np.unique(first)][: settings.images]  # copies are one image
    with CountProgress("pretext", len(chosen)) as progress:
        views = store_views(
            stage.scratch() / "views.npy", weights, images, chosen, settings, params.seed,
            lambda done: progress.update(done, 0),
        )  # fmt: skip
    network, expected = load_frozen(weights)
    upper = UpperLayers(network).to(compute.device)
    features = upper_features(upper, views, fabric)
    before = propose_groups(features, settings, params.seed, lambda name: say(f"pretext   {name}"))
    if not before.found_any:
        leave_unadapted(stage, "the images fall into no groups that could be learned from", [])
        return
    state = start_adapted(upper, features, before, settings, params.seed, fabric)
    loop = loop_of(settings, len(views))
    steps = train_adapted(state, views, before, settings, fabric)
    stage.train(state, steps, loop.epochs, len(views) // loop.batch_size)
    adapted = upper_features(upper, views, fabric)
    number = before.num_clusters
    after = propose_groups(adapted, settings, params.seed, lambda name: say(f"pretext   {name}, again"), number)
    judge = stage.weights(settings.judge)
    nearest = neighbors_seen(judge, settings.side, images, chosen, settings.dimensions)
    better, why = choose_network(before, after, nearest)
    if not better:
        leave_unadapted(stage, why, state.history)
        return
    say(f"pretext   adapted: {why}")
    side = settings.side or expected.side
    save_adapted(stage.out(artifacts.MODELS / "pretext.safetensors"), weights, network, side)
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), state.history)
    stage.tracker.event("tags", values={"scan.adapted": "kept", "scan.adapted_because": why})


def leave_unadapted(stage: Stage, why: str, history: list[dict[str, float]]) -> None:
    """Leaves the published network to embed as it is."""
    from scan_core.models.files import save_no_model

    say(f"pretext   not adapted: {why}")
    save_no_model(stage.out(artifacts.MODELS / "pretext.safetensors"))
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), history)
    stage.tracker.event("tags", values={"scan.adapted": "not kept", "scan.adapted_because": why})


def train_network(stage: Stage) -> None:
    """Trains the backbone, or leaves it at its start."""
    from scan_core.clustering.settings import check_neighbors
    from scan_core.compute.device import configure_compute, make_fabric
    from scan_core.models.files import save_model
    from scan_core.pretext.methods import start_pretext, train_pretext, trained_model
    from scan_core.training.step import check_batch

    params, settings = stage.params, stage.params.pretext
    compute = stage.use(configure_compute(params.precision, stage.device))
    fabric = make_fabric(compute.precision, compute.device.type)
    images, rows, stats = stage.images(compute)
    # What later stages would refuse, before hours of training.
    firsts = artifacts.load_firsts(stats["count"], {split: index.numpy() for split, index in rows.items()})
    distinct = {split: len(set(first.tolist())) for split, first in firsts.items()}  # copies count once
    for split, count in distinct.items():
        check_neighbors(params.neighbors.k, count, split)
    check_batch("cluster", params.cluster.batch_size, distinct["train"])
    check_batch("selflabel", params.selflabel.batch_size, len(rows["train"]))
    train = rows["pretext"]
    weights = stage.weights(params.backbone.weights) if params.backbone.weights else None
    state = start_pretext(settings, params.backbone, stats["channels"], len(train), params.seed, fabric, weights)
    loop = train_pretext(state, images, train, settings, fabric)
    stage.train(state, loop, settings.trained_epochs, len(train) // settings.batch_size)
    save_model(stage.out(artifacts.MODELS / "pretext.safetensors"), trained_model(state), params.backbone, stats)
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), state.history)


app = command("pretext", pretext)

if __name__ == "__main__":
    run(app)
