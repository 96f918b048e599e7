"""``python -m experiments.features FOLDER``: what ``experiments.number``, ``.unequal`` and ``.verdict`` read.

Features of EfficientNet-lite0 and -lite2 at 128 pixels, as NAME.npz with ``lite0``, ``lite2``, ``labels``, ``classes``:
tiny and cifar from their archives (160 and 600 training images of a class), digits, noise, and capital letters in up to
120 fonts, which ``fc-list`` finds.
"""

import argparse
import hashlib
import io
import string
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.weights import sign_weights, weights_file
from scan_core.models.frozen import FrozenNetwork

SIDE, BATCH, FONTS = 128, 64, 120
NETWORKS = {"lite0": "efficientnet_lite0", "lite2": "efficientnet_lite2"}
Labeled = Iterator[tuple[Image.Image, str]]


def archived(archive: Path, most: int) -> Labeled:
    """The first ``most`` images of each class of a .tar.xz with paths NAME/train/CLASS/FILE."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")
            if not member.isfile() or "train" not in parts:
                continue
            label = parts[parts.index("train") + 1]
            seen[label] += 1
            file = tar.extractfile(member)
            if seen[label] <= most and file:
                yield Image.open(io.BytesIO(file.read())).convert("RGB"), label


def digits() -> Labeled:
    """Those of scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for pixels, label in zip(found.images, found.target, strict=True):
        yield Image.fromarray((pixels * 15.9375).astype(np.uint8)).convert("RGB"), str(label)


def letters() -> Labeled:
    """Black on white, 64 pixels. A font whose A and G equal those of an earlier one is left out."""
    listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True).stdout
    known = set[str]()
    for file in sorted(set(listed.splitlines())):
        if not file.lower().endswith((".ttf", ".otf")) or any(word in file.lower() for word in ("symbol", "dingbat")):
            continue
        font, drawn = ImageFont.truetype(file, 48), dict[str, Image.Image]()
        for letter in string.ascii_uppercase:
            drawn[letter] = Image.new("RGB", (64, 64), "white")
            canvas = ImageDraw.Draw(drawn[letter])
            left, top, right, bottom = canvas.textbbox((0, 0), letter, font=font)
            canvas.text((32 - (left + right) / 2, 32 - (top + bottom) / 2), letter, font=font, fill="black")
        digest = hashlib.sha256(drawn["A"].tobytes() + drawn["G"].tobytes()).hexdigest()
        if digest not in known and len(known) < FONTS:
            known.add(digest)
            yield from ((image, letter) for letter, image in drawn.items())


def noise(count: int = 1000) -> Labeled:
    """Each pixel for itself."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "noise"


def save(path: Path, images: Labeled) -> None:
    """Runs all ``images`` through both networks."""
    pictures, labels = zip(
        *((image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), each) for image, each in images), strict=True
    )
    features = {}
    for key, name in NETWORKS.items():
        sign_weights("", name, Path.cwd())
        network = FrozenNetwork(weights_file(name, Path.cwd()), torch.device("cpu"), SIDE)
        batches = [
            np.stack([np.array(each) for each in pictures[row : row + BATCH]]) for row in range(0, len(pictures), BATCH)
        ]
        features[key] = np.concatenate([network(torch.from_numpy(each).permute(0, 3, 1, 2)) for each in batches])
    classes = sorted(set(labels))
    numbers = np.array([classes.index(label) for label in labels])
    np.savez(path, labels=numbers, classes=np.array(classes), **features)  # type: ignore[arg-type]  # numpy types a name as its own option
    print(f"{path}: {len(labels):,} images, {len(classes)} classes", flush=True)


def main() -> None:
    """Writes the files that are not there yet."""
    parser = argparse.ArgumentParser(prog="python -m experiments.features", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", type=Path, help="tiny-imagenet-50.tar.xz")
    parser.add_argument("--cifar", type=Path, help="cifar10-png.tar.xz")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    sets = {"digits": digits, "letters": letters, "noise": noise}
    sets |= {"tiny": lambda: archived(asked.tiny, 160)} if asked.tiny else {}
    sets |= {"cifar": lambda: archived(asked.cifar, 600)} if asked.cifar else {}
    for name, images in sets.items():
        if not (path := asked.folder / f"{name}.npz").exists():
            save(path, images())


if __name__ == "__main__":
    main()
