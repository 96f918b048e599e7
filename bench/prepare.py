"""How fast and in how much memory images become the store.

Three measurements: the 27,500 JPEGs of tiny-imagenet-50 as a folder against bare decoding and resizing (PIL, as data
loaders do it) with as many processes, alternating; the 60,000 of CIFAR-10 out of their archive; and a synthetic
ImageNet, 500x375 JPEGs made here, into the jpeg store. Memory is that of all processes together, shared pages counted
in each, files being in the page cache.
"""

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

from bench.machine import Memory
from bench.timing import Row
from tests.project import make_project, run, set_params

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
    from pipeline.presets import read_preset
    from scan_core.data.decode import target_of
    from scan_core.data.ingest import ingest, load_chunks
    from scan_core.data.labels import labels_and_splits
    from scan_core.data.sources import open_source
    from scan_core.data.store import plan_store, write_store
    from scan_core.settings import Data

    settings = Data(**dict(read_preset(Path("presets/digits.yaml")).data, name="folder", path=str(path), size=size))
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


def measure(images: int, repeats: int) -> list[Row]:
    """The archives lie in ``SCAN_DATA``, by default ``datasets``; what is not there is not measured."""
    data, rows = Path(os.environ.get("SCAN_DATA", "datasets")), []
    common = {"size": 64, "labels": "folders", "split_seed": 0}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        scratch = Path(name)
        tiny, cifar = (data / f"{archive}.tar.xz" for archive in ("tiny-imagenet-50", "cifar10-jpeg"))
        if tiny.exists():
            rows.append(_folder(tiny, scratch, common, repeats))
            shutil.rmtree(scratch / "tiny")
        if cifar.exists():
            changes = {"size": 32, "name": "archive", "path": str(cifar.resolve())}
            rows.append(
                _row(f"{cifar.name}: {{}} JPEGs to 32 px, the whole command", prepare(scratch, common | changes))
            )
            rows[-1].note += " (bar: ≤ 60 s)"
        make_imagenet(scratch / "imagenet", images)
        changes = {"name": "folder", "path": str(scratch / "imagenet"), "size": 256, "view": 224}
        large = prepare(scratch, common | changes)
        what = f"{{}} synthetic JPEGs of {WIDTH}x{HEIGHT} to the jpeg store, short side 256, the whole command"
        rows.append(_row(what, large))
        hours = IMAGENET * large["seconds"] / large["images"] / 3600
        tenths = ", ".join(f"{value:.0f}" for value in large["tenths_mib"])
        rows[-1].note += f"; {IMAGENET:,} would take {hours:.1f} h; MiB by tenths of the run: {tenths}"
    return rows


def _folder(archive: Path, scratch: Path, common: dict[str, Any], repeats: int) -> Row:
    """All that prepare computes, against bare decoding and resizing, in turn."""
    with tarfile.open(archive) as opened:
        opened.extractall(scratch / "tiny", filter="data")
    files = sorted(map(str, (scratch / "tiny").rglob("*.jpg")))
    random.Random(0).shuffle(files)
    bare(files, 64)  # the files are in memory from here on
    pairs = [
        (bare(files, 64), work_seconds(scratch / "tiny", 64, scratch / f"work{number}")) for number in range(repeats)
    ]
    whole = prepare(scratch, common | {"name": "folder", "path": str(scratch / "tiny")})
    seconds = statistics.median(ours for _, ours in pairs)
    return Row(
        f"{len(files):,} JPEGs of 64x64 to a 64 px array", len(files) / seconds, "bare decoding and resizing by PIL",
        [plain / ours for plain, ours in pairs], "≥ 0.80", mib=whole["mib"],
        note=f"{seconds:.1f} s, the whole command {whole['seconds']:.1f} s; at most 600 MiB is the bar",
    )  # fmt: skip


def _row(what: str, run: dict[str, Any]) -> Row:
    return Row(
        what.format(f"{run['images']:,}"),
        run["images"] / run["seconds"],
        mib=run["mib"],
        note=f"{run['seconds']:.1f} s",
    )
