"""``python -m experiments.adapting FOLDER``: whether a network that adapts to the images finds better groups.

Eight of ten images are grouped, with the settings of the preset photos_adapted but 128 pixels and the true number of
groups; figures are ACC of these images and of the others. FOLDER keeps each run as NAME-SEED.json. The settings were
chosen on seed 10; others were looked at afterward. Each run takes three to five minutes on two cores.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from experiments.features import archived, digits, letters
from pipeline.presets import find_preset, read_preset
from pipeline.weights import sign_weights, weights_file
from scan_core.clustering.heads import assign
from scan_core.compute.device import configure_compute, make_fabric
from scan_core.images.store import ArrayImages
from scan_core.models.files import load_frozen
from scan_core.models.halves import UpperLayers
from scan_core.models.reduction import fit_reduction
from scan_core.pretext.adapted import (
    Proposed,
    choose_network,
    neighbors_seen,
    propose_groups,
    start_adapted,
    store_views,
    train_adapted,
    upper_features,
)
from scan_core.pretext.settings import AdaptedPretext

SIDE, SMALLEST, GROUPED = 128, 32, 0.8
SETS = {"digits": 1797, "letters": 1500, "cifar": 1500, "cifar, all": 6000, "tiny": 2000}  # images at most
GRAY = ("digits", "letters")
SEEDS = (10, 11, 12, 13, 14)


@dataclass(frozen=True)
class Result:
    """ACC of grouped and other images before and after, in percent, and what is seen without labels."""

    before: tuple[float, float]
    after: tuple[float, float]
    together: tuple[float, float]  # of neighbors for another network, the share in one group, before and after
    kept: bool


def settings(name: str, number: int) -> AdaptedPretext:
    """Those of the preset, for a set and its number of classes."""
    preset = read_preset(find_preset("photos_adapted")).pretext.model_dump(mode="json")
    preset["side"], preset["groups"]["num_clusters"] = SIDE, number
    if name in GRAY:
        preset["augmentation"]["flip"] = 0.0
    return AdaptedPretext.model_validate_json(json.dumps(preset))


def load(name: str, tiny: Path, cifar: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N,side,side,3) uint8 and labels (N,)."""
    archives = {"tiny": (tiny, 160), "cifar": (cifar, 600), "cifar, all": (cifar, 600)}
    images = {"digits": digits, "letters": letters}[name]() if name in GRAY else archived(*archives[name])
    sized = (
        (image.resize((SMALLEST, SMALLEST)) if image.width < SMALLEST else image, label) for image, label in images
    )
    pixels, labels = zip(*((np.array(image), label) for image, label in sized), strict=True)
    names = sorted(set(labels))[: 25 if name == "tiny" else None]  # those of Tiny ImageNet that nothing was fitted on
    chosen = np.isin(labels, names)
    return np.stack(pixels)[chosen], np.array([names.index(each) for each in np.array(labels)[chosen]])


def accuracy(clusters: np.ndarray, labels: np.ndarray, number: int) -> float:
    table = np.zeros((number, number), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return float(100 * table[linear_sum_assignment(table, maximize=True)].sum() / len(labels))


def run(name: str, seed: int, pixels: np.ndarray, labels: np.ndarray) -> Result:
    """One draw of the images, before and after the network has adapted."""
    order = np.random.default_rng(seed).permutation(len(labels))[: SETS[name]]
    pixels, labels, count = pixels[order], labels[order], round(GROUPED * len(order))
    number = int(labels.max()) + 1
    asked, cpu = settings(name, number), torch.device("cpu")
    compute = configure_compute("auto", "cpu")
    fabric, weights = make_fabric(compute.precision, "cpu"), weights_file(asked.weights, Path.cwd())
    images = ArrayImages(cpu, [np.ascontiguousarray(pixels)], [0.5] * 3, [0.5] * 3)
    with tempfile.TemporaryDirectory() as folder:
        every = torch.arange(len(labels))
        views = store_views(Path(folder, "views.npy"), weights, images, every, asked, seed, lambda _: None)
        upper = UpperLayers(load_frozen(weights)[0])
        found: list[Proposed] = []
        features: list[np.ndarray] = []
        for step in range(2):
            if step:
                state = start_adapted(upper, features[0][:count], found[0], asked, seed, fabric)
                for _ in train_adapted(state, views[:count], found[0], asked, fabric):
                    pass
            features.append(upper_features(upper, views, fabric))
            found.append(propose_groups(features[step][:count], asked, seed, lambda _: None))

    def scores(proposed: Proposed, of: np.ndarray) -> tuple[float, float]:
        points = torch.from_numpy(fit_reduction([of[:count]], asked.dimensions)([of[count:]]))
        others = assign(points, proposed.candidates.joined())[proposed.candidates.kept].numpy()
        return accuracy(proposed.clusters, labels[:count], number), accuracy(others, labels[count:], number)

    judge = weights_file(asked.judge, Path.cwd())
    nearest = neighbors_seen(judge, SIDE, images, torch.arange(count), asked.dimensions)
    together = [float((each.clusters[nearest] == each.clusters[:, None]).mean()) for each in found]
    kept, _ = choose_network(found[0], found[1], nearest)
    return Result(scores(found[0], features[0]), scores(found[1], features[1]), (together[0], together[1]), kept)


def main() -> None:
    """Runs what FOLDER does not hold yet, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.adapting", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", type=Path, required=True, help="tiny-imagenet-50.tar.xz")
    parser.add_argument("--cifar", type=Path, required=True, help="cifar10-png.tar.xz")
    parser.add_argument("--sets", default=";".join(SETS), help="some of them")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for network in ("efficientnet_lite0", "efficientnet_lite2"):
        sign_weights("", network, Path.cwd())
    for name in asked.sets.split(";"):
        loaded = None
        for seed in map(int, asked.seeds.split(",")):
            file = asked.folder / f"{name}-{seed}.json"
            if not file.exists():
                loaded = loaded or load(name, asked.tiny, asked.cifar)
                file.write_text(json.dumps(asdict(run(name, seed, *loaded)), indent=1))
            found = json.loads(file.read_text())
            was, now = found["together"]
            cells = [name, str(seed)]
            cells += [f"{before:.1f} / {held:.1f}" for before, held in (found["before"], found["after"])]
            cells += [f"{was:.3f} to {now:.3f}", "kept" if found["kept"] else ""]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
