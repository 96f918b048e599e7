"""``python -m experiments.growing --cifar FILE --tiny FILE``: photos that come after a run.

5,000 images of CIFAR-10 are grouped by ``scan run``; then one more comes, and then 500 of another kind: Tiny-ImageNet,
and after these are gone handwritten digits. The files' names say nothing of their classes.
"""

import argparse
import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.params import read_params

GROUPED, FOREIGN = 5_000, 500
RESULTS = (
    "data/images",
    "data/embeddings",
    "data/neighbors",
    "data/assignments",
    "models",
    "reports/predictions.parquet",
)
SCAN = (sys.executable, "-m", "pipeline.cli")
# ``scan run``, and then how many images it has decoded, and given to each of the networks.
COUNTED = """
import sys
from pipeline import predict
from pipeline.cli.app import app
from scan_core.models.frozen import FrozenNetwork
decode, embed, counts = predict.decoded, FrozenNetwork.__call__, {"decoded": 0, "embedded": 0}

def decoded(*arguments):
    for taken, refused in decode(*arguments):
        counts["decoded"] += taken + refused
        yield taken, refused

def embedded(network, pixels):
    counts["embedded"] += len(pixels)
    return embed(network, pixels)

predict.decoded, FrozenNetwork.__call__ = decoded, embedded
app(["run", sys.argv[1]], standalone_mode=False)
print("counted:", counts)
"""


def drawn(archive: Path, count: int, seed: int) -> list[bytes]:
    """``count`` of the training images of a .tar.xz with paths NAME/train/CLASS/FILE, encoded as they are."""
    with tarfile.open(archive) as tar:
        found = [tar.extractfile(each) for each in tar if each.isfile() and each.name.split("/")[1] == "train"]
        chosen = np.random.default_rng(seed).permutation(len(found))[:count]
        images = {row: file.read() for row in sorted(chosen.tolist()) if (file := found[row])}
    return [images[row] for row in chosen.tolist()]


def save_digits(folder: Path, seed: int) -> None:
    """``FOREIGN`` of scikit-learn's digits, enlarged to 32 pixels."""
    pixels = load_digits().images
    for row in np.random.default_rng(seed).permutation(len(pixels))[:FOREIGN]:
        image = Image.fromarray((pixels[row] * 15.9375).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{row}.png")


def save(folder: Path, images: list[bytes], suffix: str) -> None:
    """Numbered files."""
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(images):
        (folder / f"{number}{suffix}").write_bytes(data)


def call(folder: Path, *command: str) -> str:
    """What a command prints. Ends this one if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def groups(project: Path) -> dict[str, int]:
    """The group of each image, by its name."""
    from pipeline.groups.apply import read_predictions

    with contextlib.chdir(project):
        table = read_predictions()
    rows = zip(table["source"].to_pylist(), table["group"].to_pylist(), strict=True)
    return {source: group for source, group in rows if group is not None}


def renumbered(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """The groups that are there under another number, and the numbers that another group has now.

    A group is there if it has half or more of an old one's images and these are most of its own.
    """
    old, new = Counter(before.values()), Counter(after.values())
    common = Counter((before[each], after[each]) for each in before if each in after)
    moved = [
        f"{one} is {other} now"
        for (one, other), count in common.items()
        if one != other and 2 * count >= old[one] and 2 * count > new[other]
    ]
    return moved + [
        f"{number} is another group now" for number in old if 2 * common[number, number] < min(old[number], new[number])
    ]


def digests(project: Path) -> dict[str, str]:
    """Hashes of what a run has made."""
    files = [path for each in RESULTS for path in [project / each, *(project / each).rglob("*")] if path.is_file()]
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def placed(project: Path, photos: Path) -> str:
    """What ``scan run`` says of new photos, and what it has counted."""
    lines = call(project, sys.executable, "-c", COUNTED, str(photos)).splitlines()
    return "; ".join(" ".join(line.split()) for line in lines if re.match(r"(new +\d+ new|counted)", line))


def main() -> None:
    """Prints what happens, step by step."""
    parser = argparse.ArgumentParser(prog="python -m experiments.growing", description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True, help="cifar10-png.tar.xz")
    parser.add_argument("--tiny", type=Path, required=True, help="tiny-imagenet-50.tar.xz")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, project = Path(name), Path(name) / "photos-groups"
        photos, images = folder / "photos", drawn(asked.cifar, GROUPED + 1, asked.seed)
        save(photos, images[:-1], ".png")
        call(folder, *SCAN, "run", str(photos))
        with contextlib.chdir(project):
            spaces = ", ".join(f"{each.weights} at {each.side}" for each in read_params().embed.spaces)
        before = groups(project)
        print(f"{GROUPED:,} images, {spaces}: {len(set(before.values()))} groups", flush=True)

        save(photos / "later", images[-1:], ".png")
        print(f"one more: {placed(project, photos)}", flush=True)
        again = call(project, *SCAN, "run", str(photos), "--retrain")
        said = [" ".join(line.split()) for line in again.splitlines() if "by an earlier run" in line]
        print(f"--retrain: {'; '.join(said)}; renumbered: {renumbered(before, groups(project)) or 'none'}", flush=True)
        call(folder, *SCAN, "init", "fresh")
        shutil.copy(project / "params.yaml", folder / "fresh" / "params.yaml")
        call(folder / "fresh", sys.executable, "-m", "dvc", "repro")
        ours, fresh = digests(project), digests(folder / "fresh")
        differ = [file for file in ours.keys() | fresh.keys() if ours.get(file) != fresh.get(file)]
        print(f"a run from nothing: {len(fresh)} files, {len(differ)} differ: {sorted(differ)[:9]}", flush=True)

        before = groups(project)
        for kind in ("Tiny-ImageNet", "digits"):
            (foreign := photos / kind).mkdir()
            if kind == "digits":
                save_digits(foreign, asked.seed)
            else:
                save(foreign, drawn(asked.tiny, FOREIGN, asked.seed), ".jpg")
            told, moved = placed(project, photos), renumbered(before, groups(project)) or "none"
            print(f"{FOREIGN} of {kind}: {told}; renumbered: {moved}", flush=True)
            if kind != "digits":
                shutil.rmtree(foreign)
        call(project, *SCAN, "run", str(photos), "--retrain")
        after = groups(project)
        own = Counter(group for source, group in after.items() if source.startswith("digits/"))
        print(f"--retrain with the digits, renumbered: {renumbered(before, after) or 'none'}")
        print(f"{len(set(before.values()))} groups before, {len(set(after.values()))} after; digits in {dict(own)}")


if __name__ == "__main__":
    main()
