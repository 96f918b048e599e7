"""embed: one unit vector an image."""

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage


def embed(stage: Stage) -> None:
    """Embed train and val with models/pretext.safetensors; write data/embeddings."""
    from scan_core.compute.device import configure_compute
    from scan_core.models.files import load_model
    from scan_core.models.inference import embed as embed_rows

    compute = stage.use(configure_compute(stage.params.precision, stage.device))
    images, rows, _ = stage.images(compute)
    model, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    projected = stage.params.embed.features == "projector"
    folder = stage.out(artifacts.EMBEDDINGS)
    for split in ("train", "val"):
        embedded = embed_rows(model.to(compute.device), images, rows[split], projected, compute)
        artifacts.save_array(folder / f"{split}.npy", embedded.cpu().numpy())


app = command("embed", embed)

if __name__ == "__main__":
    run(app)
