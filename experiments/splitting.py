"""``python -m experiments.splitting FOLDER``: two classes in one group, and ``scan edit split`` on it.

FOLDER is that of ``experiments.features``. The embeddings are those of ``scan run``: both networks' features, reduced
on the whole set. The classes of a pair are drawn; all images of these two are one group, all others another.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import adjusted_rand_score

from pipeline import artifacts
from pipeline.artifacts import PREDICTED
from scan_core.models.reduction import fit_reduction

PAIRS = 10
SETS = {"cifar": "CIFAR-10", "tiny": "Tiny-ImageNet, 50 classes"}


def finished(project: Path, embeddings: np.ndarray, clusters: np.ndarray) -> None:
    """What ``scan edit`` reads of a project whose run has put N images with these embeddings into two clusters."""
    count = len(clusters)
    for folder in (artifacts.IMAGES, artifacts.EMBEDDINGS, artifacts.MODELS, artifacts.PREDICTIONS.parent, ".scan"):
        (project / folder).mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", np.arange(1, count)), ("val", np.arange(1))):
        np.save(project / artifacts.IMAGES / f"{split}.npy", rows)
        np.save(project / artifacts.EMBEDDINGS / f"{split}.npy", embeddings[rows])
    (project / artifacts.MODELS / "selflabel.safetensors").write_bytes(clusters.tobytes())  # only its hash is read
    artifacts.save_json(project / artifacts.GROUPS, {"number": 2})
    names = [f"{row:06d}" for row in range(count)]
    table = {"id": pa.array(range(count)), "source": names, "split": ["train"] * count, "content": names}
    table |= {"cluster": pa.array(clusters), "probability": pa.array(np.ones(count, np.float32))}
    table |= {PREDICTED[1][0]: pa.array(1 - clusters), PREDICTED[1][1]: pa.array(np.zeros(count, np.float32))}
    pq.write_table(pa.table(table | {"state": ["sure"] * count}), project / artifacts.PREDICTIONS)


def split_again(project: Path) -> np.ndarray:
    """(N,) the groups after ``scan edit split`` of the group that cluster 0 is."""
    from pipeline.groups.apply import Grouping, read_predictions

    with contextlib.chdir(project):
        whole = Grouping().groups.clusters[0]
        command = [sys.executable, "-m", "pipeline.cli", "edit", "split", str(whole)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SCAN_DEVICE": "cpu"})
        return np.array(read_predictions()["group"].to_pylist())


def main() -> None:
    """Prints a row for each set."""
    parser = argparse.ArgumentParser(prog="python -m experiments.splitting", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder_of_features = parser.parse_args().folder
    print("| set | ARI, mean ± standard deviation | lowest to highest | pairs below 0.6 |\n" + "| --- " * 4 + "|")
    for name, title in SETS.items():
        with np.load(folder_of_features / f"{name}.npz") as file:
            features, labels, classes = [file["lite0"], file["lite2"]], file["labels"], file["classes"]
        embeddings, scores = fit_reduction(features, 256)(features), {}
        every = list(itertools.combinations(range(len(classes)), 2))
        for pair in np.random.default_rng(0).permutation(len(every))[:PAIRS]:
            chosen = np.isin(labels, every[pair])
            with tempfile.TemporaryDirectory() as folder:
                finished(Path(folder), embeddings, np.where(chosen, 0, 1))
                groups = split_again(Path(folder))[chosen]
            scores[" and ".join(str(classes[each]) for each in every[pair])] = adjusted_rand_score(
                labels[chosen], groups
            )
        found = np.array(list(scores.values()))
        low = ", ".join(f"{pair} {score:.2f}" for pair, score in scores.items() if score < 0.6)
        span = f"{found.min():.2f} to {found.max():.2f}"
        print(f"| {title} | {found.mean():.2f} ± {found.std(ddof=1):.2f} | {span} | {low or 'none'} |", flush=True)


if __name__ == "__main__":
    main()
