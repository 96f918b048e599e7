"""selflabel: the network learns from its own confident predictions."""

import shutil

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.progress import say
from pipeline.stage import Stage


def selflabel(stage: Stage) -> None:
    """Refine models/cluster.safetensors on confident samples; write models/selflabel.safetensors, or the same model."""
    from scan_core.models.files import is_of_frozen

    keep(stage) if is_of_frozen(artifacts.MODELS / "cluster.safetensors") else train_network(stage)


def keep(stage: Stage) -> None:
    """Hands on a model of stored embeddings as it is."""
    why = "a model of frozen features is not refined"
    shutil.copy(
        artifacts.require(artifacts.MODELS / "cluster.safetensors"),
        stage.out(artifacts.MODELS / "selflabel.safetensors"),
    )
    artifacts.save_json(stage.out(artifacts.MODELS / "selflabel.json"), {"kept": "before", "reason": why})
    assigned = artifacts.load_array(artifacts.ASSIGNMENTS / "cluster.npy", "int32", (1, None))
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "selflabel.npy"), assigned)
    artifacts.save_history(stage.out(artifacts.PLOTS / "selflabel.csv"), [])


def train_network(stage: Stage) -> None:
    """Trains the network until the confident share of the images no longer grows."""
    import torch

    from scan_core.clustering.selflabel import choose_model, has_learned, start_selflabel, train_selflabel
    from scan_core.compute.device import configure_compute, make_fabric
    from scan_core.models.files import load_model, save_model
    from scan_core.training.step import check_batch

    params, settings = stage.params, stage.params.selflabel
    compute = stage.use(configure_compute(params.precision, stage.device))
    fabric = make_fabric(compute.precision, compute.device.type)
    images, rows, stats = stage.images(compute)
    nearest = torch.from_numpy(artifacts.load_neighbors("val", len(rows["val"])))[:, 0]
    steps = check_batch("selflabel", settings.batch_size, len(rows["train"]))
    before, _ = load_model(artifacts.MODELS / "cluster.safetensors")
    after, _ = load_model(artifacts.MODELS / "cluster.safetensors")
    state = start_selflabel(settings, after, params.seed, fabric)
    loop = train_selflabel(state, images, rows["train"], rows["val"], settings, fabric)
    stage.train(state, loop, settings.epochs, steps)

    assignments = state.assignments
    kept, why = choose_model(assignments[0], assignments[-1], nearest, has_learned(state, steps))
    say(f"selflabel kept the model from {kept} it: {why}" if kept == "before" else f"selflabel: {why}")
    model = before if kept == "before" else state.judged
    save_model(stage.out(artifacts.MODELS / "selflabel.safetensors"), model, params.backbone, stats)
    artifacts.save_json(stage.out(artifacts.MODELS / "selflabel.json"), {"kept": kept, "reason": why})
    artifacts.save_array(stage.out(artifacts.ASSIGNMENTS / "selflabel.npy"), torch.stack(assignments).numpy())
    artifacts.save_history(stage.out(artifacts.PLOTS / "selflabel.csv"), state.history)
    stage.tracker.event("tags", values={"scan.kept": kept, "scan.kept_because": why})


app = command("selflabel", selflabel)

if __name__ == "__main__":
    run(app)
