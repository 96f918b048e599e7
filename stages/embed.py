"""embed: one unit vector an image."""

from pipeline import artifacts
from pipeline.stage import Stage, command


def embed(stage: Stage) -> None:
    """Embed train and val with models/pretext.safetensors; write data/embeddings."""
    from scan_core.device import make_fabric
    from scan_core.inference import embed as embed_rows
    from scan_core.weights import load_model

    fabric = stage.use(make_fabric(stage.params.precision, stage.device))
    images, rows, _ = stage.images(fabric)
    model, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    projected = stage.params.embed.features == "projector"
    folder = stage.out(artifacts.EMBEDDINGS)
    for split in ("train", "val"):
        embedded = embed_rows(model.to(fabric.device), images, rows[split], projected, fabric)
        artifacts.save_array(folder / f"{split}.npy", embedded.cpu().numpy())


app = command("embed", embed)

if __name__ == "__main__":
    app()
