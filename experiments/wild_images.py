"""``python -m experiments.wild_images NAME=FOLDER … --reference OPENCV``: test images of image libraries.

As prepare and a reference read them: ``docs/ledger/wild_images.csv``. Each FOLDER is an unpacked source package. OpenCV
is installed apart (pip install --target), as it is no dependency. Each image is read in a process of its own, so that a
crash or an image that takes for ever is one row.
"""

import argparse
import csv
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scan_core.data.types import IMAGE_SUFFIXES

LISTED = Path("docs/ledger/wild_images.csv")
MOST_BYTES = 40_000_000
SECONDS = 20
ONE = """
import sys
import numpy as np
from scan_core.data.decode import Refused, Target, decode
path, reference = sys.argv[1:]
whole = Target(32, "crop", "array", 200_000_000, unreduced=True)
try:
    found = decode(path, whole)
except Refused as error:
    print(f"rejected\\t{error}")
    sys.exit()
sys.path.append(reference)
import cv2
wanted = cv2.imread(path, cv2.IMREAD_UNCHANGED)
upright = cv2.imread(path, cv2.IMREAD_COLOR)
ours = np.asarray(found.image.convert("RGB"), float)
if wanted is None or upright is None:
    print("read\\tthe reference does not read it")
elif upright.shape[:2] != ours.shape[:2]:
    print(f"differs\\tthe size is {ours.shape[:2]}, the reference's {upright.shape[:2]}")
elif found.extent is not None:
    gray = wanted.astype(float).mean(axis=-1) if wanted.ndim == 3 else wanted.astype(float)
    agree = np.corrcoef(gray.ravel(), ours.mean(axis=-1).ravel())[0, 1] if gray.std() and ours.std() else 1.0
    print(f"{'as the reference' if agree > 0.99 else 'differs'}\\tmore than 8 bits; correlation {agree:.3f}")
else:
    colors = upright[..., ::-1].astype(float)
    if wanted.ndim == 3 and wanted.shape[2] == 4 and wanted.shape[:2] == colors.shape[:2] and wanted.dtype == np.uint8:
        share = wanted[..., 3:] / 255
        colors = wanted[..., 2::-1] * share + 255 * (1 - share)
    apart = np.abs(colors - ours).mean()
    print(f"{'as the reference' if apart <= 3 else 'differs'}\\tmean difference {apart:.1f} of 255")
"""


def outcome(path: Path, reference: str) -> tuple[str, str]:
    """What became of an image, and why."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ONE, str(path), reference],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "failed", f"not done in {SECONDS} s"
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        return "failed", (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    kind, reason = said[-1].split("\t")
    return kind, reason


def main() -> None:
    """Writes the list and prints the counts."""
    parser = argparse.ArgumentParser(prog="python -m experiments.wild_images", description=__doc__)
    parser.add_argument("packages", nargs="+", metavar="NAME=FOLDER", help="such as pillow=FOLDER")
    parser.add_argument("--reference", required=True, help="the folder of OpenCV")
    asked = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    counts: Counter[tuple[str, str]] = Counter()
    for package in asked.packages:
        name, _, folder = package.partition("=")
        root = Path(folder)
        files = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        paths = sorted(file for file in files if file.stat().st_size <= MOST_BYTES)
        with ThreadPoolExecutor() as threads:
            outcomes = list(threads.map(outcome, paths, [asked.reference] * len(paths)))
        for path, (kind, reason) in zip(paths, outcomes, strict=True):
            rows.append((name, path.relative_to(root).as_posix(), kind, reason))
            counts[name, kind] += 1
    with LISTED.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("package", "file", "outcome", "reason"), *rows])
    for (name, kind), count in sorted(counts.items()):
        print(f"{name:<10} {count:5} {kind}")


if __name__ == "__main__":
    main()
