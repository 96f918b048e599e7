"""neighbors: each image's nearest others in feature space."""

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage
from scan_core.clustering.neighbors import mine_distinct


def neighbors(stage: Stage) -> None:
    """Mine neighbors.k neighbors inside train and inside val; write data/neighbors."""
    folder, settings = stage.out(artifacts.NEIGHBORS), stage.params.neighbors
    untrained = (artifacts.EMBEDDINGS / "reduction.safetensors").exists()
    for split in ("train", "val"):
        embeddings = artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (None, None))
        first = artifacts.load_first(split, len(embeddings))
        # Without training, a small folder may have fewer images than there are neighbors, in val or without its copies.
        k = min(settings.k, max(len(np.unique(first)) - 1, 1)) if untrained else settings.k
        mined = mine_distinct(
            embeddings, first, k, settings.exact_rows, settings.recall, stage.device, settings.smoothing
        )
        artifacts.save_array(folder / f"{split}.npy", mined.nearest)
        artifacts.save_array(folder / f"{split}_similarity.npy", mined.similarity)
        stage.tracker.metrics({f"{split}_similarity": float(mined.similarity.mean()), f"{split}_recall": mined.recall})


app = command("neighbors", neighbors)

if __name__ == "__main__":
    run(app)
