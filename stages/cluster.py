"""cluster: neighbors agree, and all clusters stay in use."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.environment import use_threads
from pipeline.progress import say
from pipeline.stage import Stage

if TYPE_CHECKING:
    from scan_core.clustering.settings import FrozenCluster, ScanCluster


FEW = 10  # images for each cluster: with fewer, most methods find little


def cluster(stage: Stage) -> None:
    """Train heads with the SCAN loss, or cluster stored embeddings; write models/cluster.safetensors."""
    from scan_core.clustering.settings import ScanCluster

    settings = stage.params.cluster.model_copy(update={"num_clusters": artifacts.load_number()})
    cluster_images(stage, settings) if isinstance(settings, ScanCluster) else cluster_embeddings(stage, settings)


def cluster_images(stage: Stage, settings: "ScanCluster") -> None:
    """Trains heads with the SCAN loss; writes the head and epoch of the lowest validation loss."""
    import torch

    from scan_core.clustering.scan import best_model, start_scan, train_scan
    from scan_core.compute.device import configure_compute, make_fabric
    from scan_core.models.files import load_model, save_model
    from scan_core.training.step import check_batch

    params = stage.params
    compute = stage.use(configure_compute(params.precision, stage.device))
    fabric = make_fabric(compute.precision, compute.device.type)
    images, rows, stats = stage.images(compute)
    distinct, near = load_distinct(len(rows["train"]))
    rows["train"], train = rows["train"][distinct], torch.from_numpy(near)
    val = torch.from_numpy(artifacts.load_neighbors("val", len(rows["val"])))
    steps = check_batch("cluster", settings.batch_size, len(rows["train"]))
    warn_of_many(artifacts.load_number(), len(rows["train"]))
    pretext, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    state = start_scan(settings, pretext, params.seed, fabric)
    loop = train_scan(state, images, rows["train"], train, rows["val"], val, settings, fabric)
    stage.train(state, loop, settings.epochs, steps)

    save_model(stage.out(artifacts.MODELS / "cluster.safetensors"), best_model(state), params.backbone, stats)
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "cluster.npy"), torch.stack(state.assignments).numpy())
    assert state.best_heads is not None
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "heads.npy"), state.best_heads.numpy())
    artifacts.save_history(stage.out(artifacts.PLOTS / "cluster.csv"), state.history)
    heads = [
        {"epoch": epoch, "head": head, "val_loss": loss}
        for epoch, losses in enumerate(state.head_losses, 1)
        for head, loss in enumerate(losses)
    ]
    artifacts.save_csv(stage.out(artifacts.PLOTS / "cluster_heads.csv"), heads, ["epoch", "head", "val_loss"])
    stage.tracker.metrics(
        {"best_epoch": state.best_epoch, "best_head": state.best_head, "best_val_loss": state.best_loss}
    )


def cluster_embeddings(stage: Stage, settings: "FrozenCluster") -> None:
    """Clusters data/embeddings by several methods; writes the head that is kept, and what each of them finds."""
    import torch

    from scan_core.clustering.candidates import kept_head, propose
    from scan_core.clustering.heads import assign
    from scan_core.models.files import load_reduction, save_reduction

    use_threads()
    train, val = (
        artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (None, None))
        for split in ("train", "val")
    )
    distinct, near = load_distinct(len(train))
    train = train if len(distinct) == len(train) else train[distinct]
    if near.shape[1] < stage.params.neighbors.k:  # of few images
        settings = settings.model_copy(update={"neighbors": min(settings.neighbors, near.shape[1])})
    warn_of_many(artifacts.load_number(), len(train))
    candidates = propose(train, near, settings, stage.params.seed, lambda name: say(f"cluster   {name}"))
    assigned = assign(torch.from_numpy(val), candidates.joined()).to(torch.int32).numpy()  # (H,N_val)
    kept, names, shares = candidates.kept, candidates.names, candidates.agreement
    say(f"cluster   kept {names[kept]}, which agrees with the others on {shares[kept]:.0%} of the images")
    reduction, spaces = load_reduction(artifacts.EMBEDDINGS / "reduction.safetensors")
    save_reduction(
        stage.out(artifacts.MODELS / "cluster.safetensors"),
        reduction,
        spaces,
        kept_head(candidates, torch.from_numpy(train)),
    )
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "cluster.npy"), assigned[[kept]])
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "heads.npy"), assigned)
    artifacts.save_history(stage.out(artifacts.PLOTS / "cluster.csv"), [])
    rows = [
        {"head": head, "method": name, "agreement": share, "kept": int(head == kept)}
        for head, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    artifacts.save_csv(stage.out(artifacts.PLOTS / "cluster_heads.csv"), rows, ["head", "method", "agreement", "kept"])
    stage.tracker.event("tags", values={"scan.method": names[kept]})
    stage.tracker.metrics({"agreement": shares[kept]})


def load_distinct(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of ``count`` images of train, the positions (M,) of those that are no copies, and their neighbors (M,K) in them.

    Each set of copies has one vote, however many they are.
    """
    distinct, near = np.unique(artifacts.load_first("train", count)), artifacts.load_neighbors("train", count)
    return distinct, near if len(distinct) == count else np.searchsorted(distinct, near[distinct])


def warn_of_many(clusters: int, images: int) -> None:
    """Says so if clusters have fewer than ten images on average."""
    if clusters > images / FEW:
        say(f"cluster   {clusters} clusters of {images} images are many: fewer than {FEW} images in each")


app = command("cluster", cluster)

if __name__ == "__main__":
    run(app)
