"""``python -m experiments.answers FOLDER``: what some answers of a person do to images that were not asked about.

FOLDER is that of ``experiments.features``. An oracle answers by the labels: which group an image belongs to is that of
its class, matched one to one. First, twenty moves of one kind, as a person who sees it in the wrong group would make
them; then 100 and 500 answers, drawn at random or asked for by the page, beside a linear probe and label propagation on
the same answers, and 1 % of the labels. Accuracies are of images that were not asked about, over three seeds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import diags

from experiments.verdict import table
from pipeline.presets import find_preset, read_preset
from pipeline.review.questions import questions_of
from scan_core.clustering.answers import learn_answers
from scan_core.clustering.candidates import propose
from scan_core.clustering.heads import log_probabilities
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.settings import FrozenCluster
from scan_core.clustering.spectral import GRAPH_NEIGHBORS, shared_neighbors
from scan_core.models.reduction import fit_reduction

SETS = {"cifar": 10, "tiny, first 20": 20, "digits": 10}  # and their classes
SEEDS, COUNTS = (10, 11, 12), (100, 500)  # how images are asked for was chosen on 0 and 1
MOVES, LEAST = 20, 60  # moves of a kind, and images that a kind has
ROUND = 60  # questions between two looks at the groups
SPREAD, STEPS = 0.95, 50  # of label propagation (Zhou et al. 2004)


@dataclass(frozen=True)
class Grouped:
    """Images, the groups of the frozen path, and what an oracle would say."""

    embeddings: np.ndarray  # (N,D)
    neighbors: np.ndarray  # (N,K)
    labels: np.ndarray  # (N,)
    probabilities: np.ndarray  # (N,C)
    right: np.ndarray  # (N,) the group of the image's class

    @property
    def groups(self) -> np.ndarray:
        found: np.ndarray = self.probabilities.argmax(axis=1)
        return found


def group(folder: Path, name: str, seed: int) -> Grouped:
    with np.load(folder / f"{name.split(',')[0]}.npz") as file:
        chosen = file["labels"] < SETS[name]
        features, labels = file["lite0"][chosen], file["labels"][chosen]
    order = np.random.default_rng(seed).permutation(len(labels))
    features, labels = features[order], labels[order]
    embeddings = fit_reduction([features], 256)([features])
    near = mine_neighbors(embeddings, 50, len(embeddings), 1.0, "cpu").nearest
    preset = read_preset(find_preset("photos")).cluster.model_dump()
    settings = FrozenCluster.model_validate({**preset, "num_clusters": SETS[name]})
    found = propose(embeddings, near, settings, seed, lambda _: None)
    weight, bias = found.joined()
    head = weight[[found.kept]], bias[[found.kept]]
    probabilities = log_probabilities(torch.from_numpy(embeddings), head)[0].exp().numpy()
    counts = np.zeros((SETS[name],) * 2, np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    _, of_class = linear_sum_assignment(counts, maximize=True)
    return Grouped(embeddings, near, labels, probabilities, of_class[labels])


def moves(images: Grouped, seed: int) -> list[tuple[float, float]]:
    """For each kind in a wrong group: shares of its other images that follow, and of all others that move."""
    rng, found, groups = np.random.default_rng(seed), [], images.groups
    for here in np.unique(groups):
        main = np.bincount(images.labels[groups == here]).argmax()
        for label in np.unique(images.labels):
            kind = np.flatnonzero((groups == here) & (images.labels == label))
            there = images.right[images.labels == label][0]
            if label == main or there == here or len(kind) < LEAST:
                continue
            rows = rng.permutation(kind)[:MOVES]
            after = learn_answers(
                images.embeddings, groups, images.probabilities.max(axis=1), rows, np.full(MOVES, there)
            )
            rest, others = np.setdiff1d(kind, rows), np.setdiff1d(np.arange(len(groups)), kind)
            found.append((float((after[rest] == there).mean()), float((after[others] != groups[others]).mean())))
    return found


def asked(images: Grouped, count: int) -> np.ndarray:
    """The images that the page would ask about, a round at a time, each time with what it has learned."""
    rows, groups = np.empty(0, np.int64), images.groups
    chances, order = images.probabilities.max(axis=1), np.argsort(-images.probabilities, axis=1)
    while len(rows) < count:
        answered = np.zeros(len(groups), bool)
        answered[rows] = True
        second = np.where(order[:, 0] == groups, order[:, 1], order[:, 0])
        questions = questions_of(images.embeddings, groups + 1, second + 1, chances, answered)
        new = [each["image"] for each in questions][: min(ROUND, count - len(rows))]
        rows = np.concatenate([rows, np.array(new, np.int64)])
        groups = learn_answers(images.embeddings, images.groups, chances, rows, images.right[rows])
    return rows


def propagated(images: Grouped, rows: np.ndarray) -> np.ndarray:
    """Label propagation on the graph of shared neighbors."""
    graph = shared_neighbors(images.neighbors[:, :GRAPH_NEIGHBORS])
    degrees = diags(np.asarray(graph.sum(axis=1)).ravel().clip(min=1e-9) ** -0.5)
    spread = (degrees @ graph @ degrees).tocsr()
    start = np.zeros_like(images.probabilities)
    start[rows, images.right[rows]] = 1
    found = start.copy()
    for _ in range(STEPS):
        found = SPREAD * (spread @ found) + (1 - SPREAD) * start
        found[rows] = start[rows]
    best: np.ndarray = found.argmax(axis=1)
    return best


def probed(images: Grouped, rows: np.ndarray) -> np.ndarray:
    """A linear probe on the answers alone."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0, max_iter=400).fit(images.embeddings[rows], images.right[rows])
    found: np.ndarray = model.predict(images.embeddings)
    return found


def accuracies(images: Grouped, count: int, seed: int) -> list[float]:
    """Of the groups as they are, of what is learned from answers at random and asked for, of probe and propagation."""
    chances = images.probabilities.max(axis=1)
    at_random = np.random.default_rng(seed + 100).permutation(len(chances))[:count]
    chosen = asked(images, count)
    few = np.random.default_rng(seed + 200).permutation(len(chances))[: round(0.01 * len(chances))]

    def accuracy(clusters: np.ndarray, rows: np.ndarray) -> float:
        rest = np.setdiff1d(np.arange(len(clusters)), rows)
        return float(100 * (clusters[rest] == images.right[rest]).mean())

    def learned(rows: np.ndarray) -> np.ndarray:
        return learn_answers(images.embeddings, images.groups, chances, rows, images.right[rows])

    return [
        accuracy(images.groups, at_random), accuracy(learned(at_random), at_random), accuracy(learned(chosen), chosen),
        *(accuracy(method(images, rows), rows) for method in (probed, propagated) for rows in (at_random, chosen)),
        accuracy(learned(few), few),
    ]  # fmt: skip


def main(folder: Path) -> None:
    """Prints both tables."""
    grouped = {(name, seed): group(folder, name, seed) for name in SETS for seed in SEEDS}
    rows = []
    for name in SETS:
        found = [each for seed in SEEDS for each in moves(grouped[name, seed], seed)]
        if found:
            follow, others = (100 * np.array(each) for each in zip(*found, strict=True))
            spread = f"{follow.mean():.0f} ({follow.min():.0f} to {follow.max():.0f})"
            rows.append(f"| {name} | {len(found)} | {spread} | {others.mean():.1f} ({others.max():.1f}) |")
    print(table(["set", "kinds", "of the kind follow, %", "others that move, %: mean (most)"], rows))
    rows = []
    for name in SETS:
        for count in COUNTS:
            measured = np.array([accuracies(grouped[name, seed], count, seed) for seed in SEEDS])
            cells = [
                f"{mean:.1f} ± {std:.1f}" for mean, std in zip(measured.mean(0), measured.std(0, ddof=1), strict=True)
            ]
            rows.append(f"| {name} | {count} | {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    heads = ["set", "answers", "none", "at random", "asked for", "probe, at random", "probe, asked for"]
    print(table([*heads, "propagation, at random", "propagation, asked for", "1 % at random"], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
