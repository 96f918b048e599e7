"""neighbors: each image's nearest others in feature space."""

from pipeline import artifacts
from pipeline.stage import Stage, command
from scan_core.neighbors import mine_neighbors


def neighbors(stage: Stage) -> None:
    """Mine neighbors.k neighbours inside train and inside val; write data/neighbors."""
    folder = stage.out(artifacts.NEIGHBORS)
    for split in ("train", "val"):
        embeddings = artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (None, None))
        nearest, similarity = mine_neighbors(embeddings, stage.params.neighbors.k)
        artifacts.save_array(folder / f"{split}.npy", nearest)
        artifacts.save_array(folder / f"{split}_similarity.npy", similarity)
        stage.tracker.metrics({f"{split}_similarity": float(similarity.mean())})


app = command("neighbors", neighbors)

if __name__ == "__main__":
    app()
