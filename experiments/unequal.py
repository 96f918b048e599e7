"""``python -m experiments.unequal FOLDER``: what is kept if classes differ much in size, beside k-means.

FOLDER is that of ``experiments.number``, whose draws are used. The settings are those of the preset ``photos``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from experiments.number import ANIMALS, Features, draw
from pipeline.presets import find_preset, read_preset
from scan_core.clustering.candidates import propose
from scan_core.clustering.heads import assign
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.number import estimate_number, numbers_to_try
from scan_core.clustering.settings import FrozenCluster
from scan_core.clustering.spectral import kmeans_clusters
from scan_core.models.reduction import fit_reduction

SHARES = (0.80, 0.10, 0.05, 0.03, 0.02)
LEAST = 0.1  # share of the large class in a group that counts as holding it


def grouped(points: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, str]:
    """(N,) the groups of the candidate that is kept, and its name."""
    preset = read_preset(find_preset("photos")).cluster
    settings = FrozenCluster.model_validate({**preset.model_dump(), "num_clusters": clusters})
    near = mine_neighbors(points, min(50, len(points) - 1), len(points), 1.0, "cpu").nearest
    found = propose(points, near, settings, seed, lambda _: None)
    return assign(torch.from_numpy(points), found.heads[found.kept])[0].numpy(), found.names[found.kept]


def tail(features: Features, classes: list[int], networks: list[str], seed: int) -> str:
    """A row of the table of long tails, and of equal sizes beside them."""
    cells = []
    for ratio in (50.0, 1.0):
        points, labels = draw(features, ("", classes, None, ratio), networks, seed)
        clusters = len(set(labels.tolist()))
        kept, name = grouped(points, clusters, seed)
        kmeans = kmeans_clusters(points, clusters, seed, 5)[0]
        scores = [
            (adjusted_mutual_info_score(labels, each), adjusted_rand_score(labels, each)) for each in (kept, kmeans)
        ]
        cells += [" / ".join(f"{100 * value:.1f}" for value in pair) for pair in scores] + [name]
    return " | ".join(cells)


def shares(features: Features, networks: list[str], seed: int) -> str:
    """A row of the table of five classes with ``SHARES``, whose number is estimated."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(features["labels"]))[: len(SHARES)]
    of_class = [rng.permutation(np.flatnonzero(features["labels"] == label)) for label in classes]
    total = len(of_class[0]) / SHARES[0]
    index = rng.permutation(
        np.concatenate([rows[: round(total * share)] for rows, share in zip(of_class, SHARES, strict=True)])
    )
    spaces, labels = [features[network][index] for network in networks], features["labels"][index]
    points = fit_reduction(spaces, 256)(spaces)
    number = estimate_number(points, numbers_to_try(len(points)), seed, lambda _: None).number
    kept, name = grouped(points, number, seed)
    large = np.bincount(kept[labels == classes[0]], minlength=number) / (labels == classes[0]).sum()
    small = np.bincount(kept[labels == classes[-1]], minlength=number)
    recall = small.max() / small.sum() if small.argmax() != large.argmax() else 0.0
    return f"{len(points)} | {number} | {name} | {(large > LEAST).sum()} | {large.max():.2f} | {recall:.2f}"


def main() -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m experiments.unequal", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--networks", default="lite0,lite2")
    asked = parser.parse_args()
    networks = asked.networks.split(",")
    files = {path.stem: dict(np.load(path)) for path in sorted(asked.folder.glob("*.npz"))}
    half = list(range(25))
    vehicles = [row for row, name in enumerate(files["cifar"]["classes"].tolist()) if name not in ANIMALS]
    print("| AMI / ARI | seed | tail: kept | k-means | which | equal: kept | k-means | which |\n" + "| --- " * 8 + "|")
    for name, file, classes in (("Tiny-ImageNet, 25 classes", "tiny", half), ("vehicles", "cifar", vehicles)):
        for seed in range(asked.draws):
            print(f"| {name} | {seed} | {tail(files[file], classes, networks, seed)} |", flush=True)
    print(
        "\n| 80/10/5/3/2 | seed | images | groups | which | holding the large class | largest share | recall of 2 % |"
    )
    print("| --- " * 8 + "|")
    for name in ("tiny", "cifar"):
        for seed in range(asked.draws):
            print(f"| {name} | {seed} | {shares(files[name], networks, seed)} |", flush=True)


if __name__ == "__main__":
    main()
