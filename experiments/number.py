"""``python -m experiments.number FOLDER``: how near the estimated number of groups is to the number of classes.

FOLDER holds features of frozen networks as NAME.npz, with ``labels`` (N,), ``classes`` (C,) and an array (N,D) for each
network; NAME is tiny, cifar, digits or letters. Labels choose what is drawn and judge what is estimated; the estimate
does not see them. The classes on which its rule was fitted are drawn only with ``--fit``.
"""

import argparse
from pathlib import Path

import numpy as np

from scan_core.clustering.number import estimate_number, numbers_to_try
from scan_core.models.reduction import fit_reduction

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
TAIL = 50.0  # images of the largest class for one of the smallest

Set = tuple[str, list[int], int | None, float]  # file, classes to draw from, how many of them, largest to smallest
Features = dict[str, np.ndarray]


def sets(files: dict[str, Features], fit: bool) -> dict[str, Set]:
    """What is drawn from."""
    half = list(range(25, 50)) if fit else list(range(25))
    names = files["cifar"]["classes"].tolist()
    some = [row for row, name in enumerate(names) if (name in ANIMALS) == fit]
    found: dict[str, Set] = {
        f"Tiny-ImageNet, {count} classes": ("tiny", half, count, 1.0) for count in ((3, 8, 18) if fit else (5, 10, 20))
    }
    found["Tiny-ImageNet, 25 classes, sizes 50 to 1"] = ("tiny", half, 25, TAIL)
    found[f"CIFAR-10, {'animals' if fit else 'vehicles'}"] = ("cifar", some, None, 1.0)
    if not fit:
        found["CIFAR-10"] = ("cifar", list(range(10)), None, 1.0)
        found["digits"] = ("digits", list(range(10)), None, 1.0)
        found["letters of many fonts, 12 of 26"] = ("letters", list(range(26)), 12, 1.0)
    return found


def draw(features: Features, what: Set, networks: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduced features (N,D) of half the images of some classes, in random order, and their labels (N,)."""
    _, classes, count, ratio = what
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(classes)[:count]
    rows = []
    for place, label in enumerate(chosen):
        of_class = rng.permutation(np.flatnonzero(features["labels"] == label))
        share = ratio ** (-place / max(len(chosen) - 1, 1))
        rows.append(of_class[: max(round(len(of_class) * (share if ratio > 1 else 0.5)), 3)])
    index = rng.permutation(np.concatenate(rows))
    spaces = [features[network][index] for network in networks]
    return fit_reduction(spaces, 256)(spaces), features["labels"][index]


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m experiments.number", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--networks", default="lite0,lite2")
    parser.add_argument("--fit", action="store_true")
    asked = parser.parse_args()
    files = {path.stem: dict(np.load(path)) for path in sorted(asked.folder.glob("*.npz"))}
    print("| set | classes | estimates, median (lowest to highest) | within 30 % | within 20 % | inside the interval |")
    print("| " + "--- | " * 6)
    for name, what in sets(files, asked.fit).items():
        numbers, inside = [], 0
        for seed in range(asked.draws):
            points, labels = draw(files[what[0]], what, asked.networks.split(","), seed)
            truth = len(set(labels.tolist()))
            found = estimate_number(points, numbers_to_try(len(points)), seed, lambda _: None)
            numbers.append(found.number)
            inside += found.low <= truth <= found.high
        off = np.abs(np.array(numbers) / truth - 1)
        cells = [f"{(off <= most + 1e-9).sum()} of {len(off)}" for most in (0.3, 0.2)] + [f"{inside} of {len(off)}"]
        spread = f"{np.median(numbers):g} ({min(numbers)} to {max(numbers)})"
        print(f"| {name} | {truth} | {spread} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
