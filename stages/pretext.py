"""pretext: features without labels."""

from pipeline import artifacts
from pipeline.stage import Stage, command


def pretext(stage: Stage) -> None:
    """Train the backbone with SimCLR on data/images; write models/pretext.safetensors and its history."""
    from scan_core.device import choose_compute, make_fabric
    from scan_core.simclr import start_simclr, train_simclr
    from scan_core.training import check_batch
    from scan_core.weights import save_model

    params, settings = stage.params, stage.params.pretext
    compute = stage.use(choose_compute(params.precision, stage.device))
    fabric = make_fabric(compute.precision, compute.device.type)
    images, rows, stats = stage.images(compute)
    steps = check_batch("pretext", settings.batch_size, len(rows["pretext"]))
    state = start_simclr(settings, params.backbone, stats["channels"], params.seed, fabric)
    stage.train(state, train_simclr(state, images, rows["pretext"], settings, fabric), settings.epochs, steps)
    save_model(stage.out(artifacts.MODELS / "pretext.safetensors"), state.module, params.backbone, stats)
    artifacts.save_history(stage.out(artifacts.PLOTS / "pretext.csv"), state.history)


app = command("pretext", pretext)

if __name__ == "__main__":
    app()
