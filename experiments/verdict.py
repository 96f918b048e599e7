"""``python -m experiments.verdict FOLDER``: how often the verdict is right, by labels that it does not see.

FOLDER is that of ``experiments.features``; a set may be absent. The constants of ``scan_core.evaluation.verdict`` were
fitted on draws of ``FIT``; draws of ``REPORTED`` were only looked at afterward. Every draw takes seconds.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from scan_core.clustering.candidates import propose
from scan_core.clustering.heads import assign
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.settings import FrozenCluster
from scan_core.evaluation.belonging import (
    CHECK,
    NOWHERE,
    SURE,
    bank_of,
    fit_belonging,
    judge_images,
    nearest_in_bank,
)
from scan_core.evaluation.verdict import NONE, STRONG, WEAK, judge_groups
from scan_core.models.reduction import fit_reduction

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
DIMENSIONS = 256
HELD_OUT = 0.2  # of each class
FOREIGN = 300  # images at most of each foreign set
METHODS = ("graph",)  # that divide the draws: of the presets' methods the quickest, and the SCAN loss from it
WRONG_BY = (1.0, 0.6, 1.6)  # groups asked for, in units of the number of classes
OF_NOTHING = (2, 3, 5, 10, 20)  # groups asked for where there are none
NOTHING = ("one class", "shuffled", "noise")


@dataclass(frozen=True)
class Images:
    """A set: raw features, and the class of each image."""

    features: np.ndarray  # (N,F)
    labels: np.ndarray  # (N,)
    classes: tuple[int, ...]  # that may be drawn


@dataclass(frozen=True)
class Draw:
    """Some images of some classes, what the product makes of them, and images to judge."""

    kind: str
    labels: np.ndarray  # (N,)
    features: np.ndarray  # (N,F)
    embeddings: np.ndarray  # (N,D)
    clusters: np.ndarray  # (N,)
    num_clusters: int
    others: dict[str, tuple[np.ndarray, np.ndarray]]  # features (M,F) and clusters (M,) of images not drawn


def load(folder: Path) -> dict[str, Images]:
    """Every set and part of a set by name."""
    found = {}
    for name in ("tiny", "cifar", "digits", "letters", "noise"):
        if not (folder / f"{name}.npz").exists():
            continue
        with np.load(folder / f"{name}.npz") as file:
            features, labels, names = file["lite0"], file["labels"], file["classes"]
        every = range(len(names))
        parts: dict[str, list[int]] = {name: list(every)}
        if name == "tiny":
            parts = {"tiny, last 25": list(every[-25:]), "tiny, first 25": list(every[:25])}
        elif name == "cifar":
            animals = [each for each in every if names[each] in ANIMALS]
            parts = {"cifar, animals": animals, "cifar, vehicles": [each for each in every if each not in animals]}
        for part, classes in parts.items():
            found[part] = Images(features, labels, tuple(classes))
    return found


FIT = ("tiny, last 25", "cifar, animals")
REPORTED = ("tiny, first 25", "cifar, vehicles", "digits", "letters", "noise")


def settings(clusters: int) -> FrozenCluster:
    """Those of the preset for photos, but for ``METHODS``."""
    from pipeline.presets import find_preset, read_preset

    values = read_preset(find_preset("photos")).cluster.model_dump()
    return FrozenCluster.model_validate({**values, "num_clusters": clusters, "methods": METHODS})


def draw(sets: dict[str, Images], name: str, kind: str, seed: int) -> Draw:
    """300 to 3,000 images of one class, or of three and more, in unequal parts."""
    rng, images = np.random.default_rng([seed, len(name), len(kind)]), sets[name]
    most = len(images.classes)
    number = 1 if kind in ("one class", "noise") else int(rng.integers(3, most + 1))
    order = rng.permutation(images.classes)
    wanted = int(np.exp(rng.uniform(np.log(300), np.log(3_000))))
    shares = rng.uniform(0.4, 1, number)
    train, held = [], []
    for label, share in zip(order[:number], shares / shares.sum(), strict=True):
        rows = rng.permutation(np.flatnonzero(images.labels == label))
        kept = int(len(rows) * (1 - HELD_OUT))
        held.append(rows[kept:][:FOREIGN])
        train.append(rows[:kept][: max(round(share * wanted), 10)])
    rows, rest = rng.permutation(np.concatenate(train)), np.concatenate(held)
    features = images.features[rows]
    if kind == "shuffled":
        features = rng.permuted(features, axis=0)
    reduction = fit_reduction([features], DIMENSIONS)
    asked = OF_NOTHING[seed % 5] if kind in NOTHING else max(round(number * WRONG_BY[seed % 3]), 2)
    embeddings = reduction([features])
    near = mine_neighbors(embeddings, min(50, len(embeddings) - 1), len(embeddings), 1.0, "cpu").nearest
    candidates = propose(embeddings, near, settings(asked), seed, lambda _: None)

    def grouped(features: np.ndarray) -> np.ndarray:
        return assign(torch.from_numpy(reduction([features])), candidates.heads[candidates.kept])[0].numpy()

    others = {"held out": images.features[rest]}
    left = np.flatnonzero(images.labels == order[number]) if kind == "classes" and number < most else rest[:0]
    if left.size:
        others["class left out"] = images.features[left[:FOREIGN]]
    for other, foreign in sets.items():
        if other.split(",")[0] != name.split(",")[0]:
            chosen = rng.permutation(np.flatnonzero(np.isin(foreign.labels, foreign.classes)))[:FOREIGN]
            others[other] = foreign.features[chosen]
    judged = {other: (each, grouped(each)) for other, each in others.items()}
    return Draw(kind, images.labels[rows], features, embeddings, grouped(features), asked, judged)


@dataclass(frozen=True)
class Judged:
    """What the verdict said of a draw, and what the labels say."""

    word: str
    accuracy: float
    groups: list[tuple[str, int, int]]  # of each its word, size, and images of its most frequent class
    nowhere: dict[str, float]  # shares of the images not drawn
    words: dict[str, tuple[int, int]]  # of images: how many, and how many are of their group's most frequent class


def judge(drawn: Draw) -> Judged:
    """The verdict on a draw, then the labels."""
    clusters, count = drawn.clusters, drawn.num_clusters
    verdict, bank = judge_groups(drawn.embeddings, clusters, count, 0), bank_of([drawn.features])
    near = nearest_in_bank([drawn.features], bank)
    fitted = fit_belonging(near[0][: len(bank)], clusters[: len(bank)], verdict)
    words = judge_images(fitted, *near, clusters)
    nowhere = {
        name: float((judge_images(fitted, *nearest_in_bank([features], bank), groups) == NOWHERE).mean())
        for name, (features, groups) in drawn.others.items()
    }
    table = np.zeros((count, int(drawn.labels.max()) + 1), np.int64)
    np.add.at(table, (clusters, drawn.labels), 1)
    right = table.argmax(axis=1)[clusters] == drawn.labels
    return Judged(
        verdict.word,
        float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum()),
        [(each.word, int(row.sum()), int(row.max())) for each, row in zip(verdict.groups, table, strict=True)],
        nowhere,
        {word: (int((words == word).sum()), int(right[words == word].sum())) for word in (SURE, CHECK, NOWHERE)},
    )


def shares(pairs: list[tuple[int, int]], total: int) -> str:
    """``share (purity)`` of pairs of a size and of how many are of the most frequent class, in percent."""
    size, main = (sum(each) for each in zip(*pairs, strict=True)) if pairs else (0, 0)
    return f"{100 * size / total:.0f} ({100 * main / size:.0f})" if size else "0"


def row(name: str, found: list[Judged]) -> str:
    """A line of the table of groups and images."""
    words = Counter(each.word for each in found)
    groups = [group for each in found for group in each.groups]
    good = [group for each in found if each.accuracy >= 0.6 for group in each.groups]
    cells = [name, str(len(found)), f"{words[STRONG]} / {words[WEAK]} / {words[NONE]}"]
    for some, word in ((groups, STRONG), (groups, WEAK), (groups, NONE), (good, STRONG)):
        total = max(sum(size for _, size, _ in some), 1)
        cells.append(shares([each[1:] for each in some if each[0] == word], total))
    images = sum(size for _, size, _ in groups)
    cells += [shares([each.words[word] for each in found], images) for word in (SURE, CHECK, NOWHERE)]
    return f"| {' | '.join(cells)} |"


def nowhere_row(name: str, found: list[Judged]) -> str:
    """A line of the table of images not drawn: mean, least and most, in percent."""
    cells = [name]
    for other in ("held out", "class left out", *FIT, *REPORTED):
        of = [100 * each.nowhere[other] for each in found if other in each.nowhere]
        cells.append(f"{np.mean(of):.0f} ({min(of):.0f} to {max(of):.0f})" if of else "")
    return f"| {' | '.join(cells)} |"


def table(heads: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *rows, ""])


def main(folder: Path) -> None:
    """Prints the tables of the sets that were fitted on, then of the reported ones."""
    sets, kinds = load(folder), {"classes": 10, "one class": 10, "shuffled": 10}
    for title, names, start in (("Fitted on", FIT, 0), ("Reported", REPORTED, 100)):
        found = {}
        for name in (each for each in names if each in sets):
            for kind, draws in ({"noise": 20} if name == "noise" else kinds).items():
                seeds = range(start, start + draws)
                found[f"{name}: {kind}"] = [judge(draw(sets, name, kind, seed)) for seed in seeds]
        print(f"## {title}\n")
        heads = ["set", "draws", "strong / weak / none", "strong groups' share (purity)", "weak", "none"]
        heads += ["strong where ACC >= 60", SURE, CHECK, NOWHERE]
        print(table(heads, [row(*each) for each in found.items()]))
        heads = ["fits nowhere, %", "held out", "class left out", *FIT, *REPORTED]
        print(table(heads, [nowhere_row(*each) for each in found.items() if "shuffled" not in each[0]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
