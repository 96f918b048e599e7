"""cluster: neighbors agree, and all clusters stay in use."""

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage


def cluster(stage: Stage) -> None:
    """Train heads with the SCAN loss; write models/cluster.safetensors, the head and epoch of the lowest val loss."""
    import torch

    from scan_core.clustering.scan import best_model, start_scan, train_scan
    from scan_core.compute.device import configure_compute, make_fabric
    from scan_core.models.files import load_model, save_model
    from scan_core.training.step import check_batch

    params, settings = stage.params, stage.params.cluster
    compute = stage.use(configure_compute(params.precision, stage.device))
    fabric = make_fabric(compute.precision, compute.device.type)
    images, rows, stats = stage.images(compute)
    train, val = (torch.from_numpy(artifacts.load_neighbors(split, len(rows[split]))) for split in ("train", "val"))
    steps = check_batch("cluster", settings.batch_size, len(rows["train"]))
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


app = command("cluster", cluster)

if __name__ == "__main__":
    run(app)
