"""How fast and in how much memory images become the store: ``python -m bench.prepare --data DIR``.

DIR holds tiny-imagenet-50.tar.xz and cifar10-jpeg.tar.xz. Three measurements, into bench/results/prepare.{json,md}:
the 27,500 JPEGs of tiny-imagenet-50 as a folder against bare decoding and resizing (PIL, as data loaders do it) with as
many processes, alternating; the 60,000 of CIFAR-10 out of their archive; and a synthetic ImageNet, 500x375 JPEGs made
here, into the jpeg store, with the memory of all processes together by tenths of the run.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.machine import Memory, machine
from tests.project import make_project, run, set_params

RESULTS = Path(__file__).resolve().parent / "results"
CORES = os.cpu_count() or 1
FORK = multiprocessing.get_context("fork")
IMAGENET = 1_281_167
WIDTH, HEIGHT = 500, 375


def bare(files: list[str], size: int) -> float:
    """Seconds to decode and resize ``files`` on all cores, keeping nothing."""
    parts = [files[start : start + 256] for start in range(0, len(files), 256)]
    started = time.monotonic()
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        list(pool.map(_bare_part, parts, [size] * len(parts)))
    return time.monotonic() - started


def _bare_part(files: list[str], size: int) -> int:
    batch = np.empty((len(files), size, size, 3), np.uint8)
    for row, file in enumerate(files):
        with Image.open(file) as image:
            batch[row] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return len(batch)


def prepare(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The stage as a user runs it, in a project of its own: seconds, those inside the stage, and memory."""
    project = folder / "project"
    if not project.exists():
        make_project(project)
    set_params(project, {"data": data})
    run(project, sys.executable, "-m", "stages.source")
    shutil.rmtree(project / "data" / "images", ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.prepare"], cwd=project, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SCAN_TRACKING": "spool"},
    )  # fmt: skip
    memory = Memory(process.pid)
    _, said = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(said)
    samples = memory.stop()
    stats = json.loads((project / "data" / "images" / "stats.json").read_text())
    return {
        "images": stats["count"],
        "seconds": seconds,
        "mib": max(size for _, size in samples) / 2**20,
        "tenths_mib": tenths(samples),
        "said": [line for line in said.splitlines() if line.startswith("prepare")][-2:],
    }


def tenths(samples: list[tuple[float, int]]) -> list[float]:
    """Peak MiB in each tenth of the run."""
    first, last = samples[0][0], samples[-1][0]
    parts: list[list[int]] = [[] for _ in range(10)]
    for moment, size in samples:
        parts[min(int(10 * (moment - first) / max(last - first, 1e-9)), 9)].append(size)
    return [max(part) / 2**20 if part else float("nan") for part in parts]


def work_seconds(path: Path, size: int, folder: Path) -> float:
    """Seconds of all that prepare computes and writes, without starting Python: what bare decoding is compared with."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.prepare import work\n"
        "print(work(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))"
    )
    done = run(Path.cwd(), sys.executable, "-c", script, str(path), str(size), str(folder))
    return float(done.stdout)


def work(path: Path, size: int, folder: Path) -> float:
    """``work_seconds`` in this process: what the stage calls, from the listing of the folder to the written store."""
    from pipeline.params import read_params
    from scan_core.decode import target_of
    from scan_core.ingest import ingest, load_chunks
    from scan_core.labels import labels_and_splits
    from scan_core.settings import Data
    from scan_core.sources import open_source
    from scan_core.store import plan_store, write_store

    settings = Data(**dict(read_params(Path("presets/digits.yaml")).data, name="folder", path=str(path), size=size))
    chunks, store = folder / "chunks", folder / "store"
    chunks.mkdir(parents=True)
    started = time.monotonic()
    source = open_source(settings, Path.cwd(), folder)
    count = ingest(source, target_of(settings), chunks, CORES, lambda *_: None)
    known, where = load_chunks(chunks, count)
    _, splits = labels_and_splits(source, known, settings, Path.cwd())
    plan = plan_store(known, where, splits, settings, chunks)
    write_store(plan, known, where, settings, chunks, store)
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return seconds


def make_imagenet(folder: Path, count: int) -> None:
    """``count`` JPEGs of 500x375 in 1,000 class folders: smooth random colours under noise, each its own."""
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        starts = range(0, count, 500)
        list(pool.map(_make_part, [folder] * len(starts), starts, [min(500, count - start) for start in starts]))


def _make_part(folder: Path, first: int, count: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    for number in range(first, first + count):
        colours = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        image = Image.blend(Image.fromarray(colours).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), noise, 0.06)
        target = folder / "train" / f"n{number % 1000:08d}"
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{number}.jpg", quality=85)


def measure(data: Path, images: int, repeats: int) -> dict[str, Any]:
    """All three measurements."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        scratch = Path(name)
        with tarfile.open(data / "tiny-imagenet-50.tar.xz") as archive:
            archive.extractall(scratch / "tiny", filter="data")
        files = sorted(map(str, (scratch / "tiny").rglob("*.jpg")))
        random.Random(0).shuffle(files)
        bare(files, 64)  # the files are in memory from here on
        pairs = []
        for number in range(repeats):
            pairs.append((bare(files, 64), work_seconds(scratch / "tiny", 64, scratch / f"work{number}")))
            print(f"bare {pairs[-1][0]:.2f} s, prepare {pairs[-1][1]:.2f} s", flush=True)
        common = {"size": 64, "labels": "folders", "split_seed": 0}
        tiny = prepare(scratch, {**common, "name": "folder", "path": str(scratch / "tiny")})
        tiny |= {"files": len(files), "bare_seconds": [a for a, _ in pairs], "work_seconds": [b for _, b in pairs]}
        cifar = prepare(
            scratch, {**common, "size": 32, "name": "archive", "path": str((data / "cifar10-jpeg.tar.xz").resolve())}
        )
        print(f"cifar {cifar['seconds']:.1f} s", flush=True)
        shutil.rmtree(scratch / "tiny")
        started = time.monotonic()
        make_imagenet(scratch / "imagenet", images)
        print(f"{images} images made in {time.monotonic() - started:.0f} s", flush=True)
        size = sum(file.stat().st_size for file in (scratch / "imagenet").rglob("*.jpg"))
        large = prepare(scratch, {
            **common, "name": "folder", "path": str(scratch / "imagenet"), "size": 256, "view": 224,
        })  # fmt: skip
        large["bytes_each"] = size / images
    return {"tiny": tiny, "cifar": cifar, "imagenet": large}


def write(result: dict[str, Any], command: str) -> str:
    """Both result files; returns the Markdown."""
    here = machine()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "prepare.json").write_text(json.dumps({"machine": here, "command": command, **result}, indent=1) + "\n")
    tiny, cifar, large = result["tiny"], result["cifar"], result["imagenet"]
    ratios = [a / b for a, b in zip(tiny["bare_seconds"], tiny["work_seconds"], strict=True)]
    first, ninth, last = (large["tenths_mib"][tenth] for tenth in (0, 8, 9))
    hours = IMAGENET * large["seconds"] / large["images"] / 3600
    rows = [
        (
            "tiny-imagenet-50, 27,500 JPEGs to 64 px, against bare decoding and resizing",
            f"{100 * statistics.median(ratios):.0f} % ({', '.join(f'{100 * ratio:.0f}' for ratio in sorted(ratios))})",
            "≥ 80 % of its speed",
        ),
        (
            "  seconds: bare; all that prepare computes and writes; the whole command",
            f"{statistics.median(tiny['bare_seconds']):.2f}; {statistics.median(tiny['work_seconds']):.2f}; "
            f"{tiny['seconds']:.1f}",
            "",
        ),
        ("  memory of all processes together", f"{tiny['mib']:.0f} MiB", "≤ 600 MiB"),
        ("cifar10-jpeg.tar.xz, 60,000 JPEGs to 32 px, the whole command", f"{cifar['seconds']:.1f} s", "≤ 60 s"),
        (
            f"synthetic ImageNet, {large['images']:,} JPEGs of 500x375 ({large['bytes_each'] / 1000:.0f} kB each) to "
            "the jpeg store, short side 256",
            f"{large['seconds']:.0f} s, {large['images'] / large['seconds']:.0f} images/s",
            "≤ 15 min",
        ),
        (
            "  memory, first tenth of the run → ninth → last, which puts together what is known of all images",
            f"{first:.0f} → {ninth:.0f} → {last:.0f} MiB",
            "flat",
        ),
        ("  by tenths, MiB", ", ".join(f"{value:.0f}" for value in large["tenths_mib"]), ""),
        (f"  so {IMAGENET:,} images would take", f"{hours:.1f} h", ""),
    ]
    lines = [
        "# Preparing images",
        "",
        f"`{command}`; {here['date']}, {here['processor']}, {here['cores']} cores, {here['memory']}; "
        f"Python {here['python']}, {here['packages']}. Files in the page cache; memory is "
        "the peak resident set of all processes, shared pages counted in each.",
        "",
        "| | measured | bar |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    text = "\n".join(lines)
    (RESULTS / "prepare.md").write_text(text)
    return text


def main() -> None:
    """Parses, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="where the two archives lie")
    parser.add_argument("--images", type=int, default=100_000, help="in the synthetic ImageNet")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.images, arguments.repeats)
    print("\n" + write(result, f"python -m bench.prepare --data DIR --images {arguments.images}"))


if __name__ == "__main__":
    main()
