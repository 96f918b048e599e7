"""neighbors: each image's nearest others in feature space."""

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage
from scan_core.clustering.neighbors import mine_neighbors


def neighbors(stage: Stage) -> None:
    """Mine neighbors.k neighbors inside train and inside val; write data/neighbors."""
    folder, settings = stage.out(artifacts.NEIGHBORS), stage.params.neighbors
    for split in ("train", "val"):
        embeddings = artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (None, None))
        # A tenth of a small folder has few images. Pretext has refused that, unless nothing is trained.
        k = settings.k if split == "train" else min(settings.k, len(embeddings) - 1)
        mined = mine_neighbors(embeddings, k, settings.exact_rows, settings.recall, stage.device, settings.smoothing)
        artifacts.save_array(folder / f"{split}.npy", mined.nearest)
        artifacts.save_array(folder / f"{split}_similarity.npy", mined.similarity)
        stage.tracker.metrics({f"{split}_similarity": float(mined.similarity.mean()), f"{split}_recall": mined.recall})


app = command("neighbors", neighbors)

if __name__ == "__main__":
    run(app)
