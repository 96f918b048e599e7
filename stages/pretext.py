"""pretext: features without labels."""

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage


def pretext(stage: Stage) -> None:
    """Train the backbone on data/images by pretext.method; write models/pretext.safetensors and its history."""
    leave_to_embed(stage) if stage.params.pretext.method == "frozen" else train_network(stage)


def leave_to_embed(stage: Stage) -> None:
    """Embed has frozen networks: the model is a file without one, whatever the seed."""
    from scan_core.models.files import save_no_model

    save_no_model(stage.out(artifacts.MODELS / "pretext.safetensors"))
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), [])


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
