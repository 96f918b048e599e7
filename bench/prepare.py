"""How fast, and in how much memory, images become the store.

Three measurements: the 27,500 JPEGs of tiny-imagenet-50 as a folder, against bare decoding and resizing by PIL (as data
loaders do it) with as many processes, the two taking turns; the 60,000 JPEGs of CIFAR-10 from their archive; and a
synthetic ImageNet of 500x375 JPEGs into the jpeg store. Memory is the sum over all processes, which counts shared pages
once per process. The files are in the page cache.
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

from bench.machine import MemorySampler
from bench.timing import Row, in_new_process
from tests.project import make_project, run, set_params

CORES = os.cpu_count() or 1
FORK = multiprocessing.get_context("fork")
IMAGENET = 1_281_167
WIDTH, HEIGHT = 500, 375


def measure(images: int, rounds: int) -> list[Row]:
    """All three, with ``images`` synthetic ones. An archive that is missing in ``SCAN_DATA`` is left out."""
    data, rows = Path(os.environ.get("SCAN_DATA", "datasets")), []
    common = {"size": 64, "labels": "folders", "split_seed": 0}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        scratch = Path(name)
        tiny, cifar = (data / f"{archive}.tar.xz" for archive in ("tiny-imagenet-50", "cifar10-jpeg"))
        if tiny.exists():
            rows.append(_folder_row(tiny, scratch, common, rounds))
            shutil.rmtree(scratch / "tiny")
        if cifar.exists():
            changes = {"size": 32, "name": "archive", "path": str(cifar.resolve())}
            what = f"{cifar.name}: {{}} JPEGs to 32 px, the whole command"
            rows.append(_command_row(what, run_prepare(scratch, common | changes)))
            rows[-1].note += " (target: ≤ 60 s)"
        make_imagenet(scratch / "imagenet", images)
        changes = {"name": "folder", "path": str(scratch / "imagenet"), "size": 256, "view": 224}
        measured = run_prepare(scratch, common | changes)
        what = f"{{}} synthetic JPEGs of {WIDTH}x{HEIGHT} to the jpeg store, short side 256, the whole command"
        rows.append(_command_row(what, measured))
        hours = IMAGENET * measured["seconds"] / measured["images"] / 3600
        peaks = ", ".join(f"{value:.0f}" for value in measured["peaks_by_tenth"])
        rows[-1].note += f"; {IMAGENET:,} would take {hours:.1f} h; MiB by tenths of the run: {peaks}"
    return rows


def _folder_row(archive: Path, scratch: Path, common: dict[str, Any], rounds: int) -> Row:
    """All that prepare computes, against bare decoding and resizing."""
    with tarfile.open(archive) as opened:
        opened.extractall(scratch / "tiny")
    files = sorted(map(str, (scratch / "tiny").rglob("*.jpg")))
    random.Random(0).shuffle(files)
    decode_and_resize(files, 64)  # from here on the files are in the page cache
    pairs = [
        (decode_and_resize(files, 64), in_new_process(prepare_seconds, scratch / "tiny", 64, scratch / f"work{number}"))
        for number in range(rounds)
    ]
    whole = run_prepare(scratch, common | {"name": "folder", "path": str(scratch / "tiny")})
    seconds = statistics.median(ours for _, ours in pairs)
    return Row(
        f"{len(files):,} JPEGs of 64x64 to a 64 px array", len(files) / seconds, "bare decoding and resizing by PIL",
        [bare / ours for bare, ours in pairs], "≥ 0.80", mib=whole["mib"],
        note=f"{seconds:.1f} s, the whole command {whole['seconds']:.1f} s; target: at most 600 MiB",
    )  # fmt: skip


def _command_row(what: str, measured: dict[str, Any]) -> Row:
    rate = measured["images"] / measured["seconds"]
    return Row(what.format(f"{measured['images']:,}"), rate, mib=measured["mib"], note=f"{measured['seconds']:.1f} s")


def decode_and_resize(files: list[str], size: int) -> float:
    """Seconds to decode and resize ``files`` on all cores. The pixels are not kept."""
    parts = [files[start : start + 256] for start in range(0, len(files), 256)]
    started = time.monotonic()
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        list(pool.map(_decode_part, parts, [size] * len(parts)))
    return time.monotonic() - started


def _decode_part(files: list[str], size: int) -> None:
    batch = np.empty((len(files), size, size, 3), np.uint8)
    for row, file in enumerate(files):
        with Image.open(file) as image:
            batch[row] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def run_prepare(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Runs the stage as a user does, in its own project: images, seconds, peak MiB, and peak MiB per tenth of it."""
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
    sampler = MemorySampler(process.pid)
    _, printed = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(printed)
    samples = sampler.stop()
    return {
        "images": json.loads((project / "data" / "images" / "stats.json").read_text())["count"],
        "seconds": seconds,
        "mib": max(size for _, size in samples) / 2**20,
        "peaks_by_tenth": peaks_by_tenth(samples),
    }


def peaks_by_tenth(samples: list[tuple[float, int]]) -> list[float]:
    """Peak MiB in each tenth of the run, from (seconds, bytes)."""
    first, last = samples[0][0], samples[-1][0]
    parts: list[list[int]] = [[] for _ in range(10)]
    for moment, size in samples:
        parts[min(int(10 * (moment - first) / max(last - first, 1e-9)), 9)].append(size)
    return [max(part) / 2**20 if part else float("nan") for part in parts]


def prepare_seconds(path: Path, size: int, folder: Path) -> float:
    """Seconds of all that prepare computes and writes, from the listing of ``path`` to the store, without imports."""
    from pipeline.presets import read_preset
    from scan_core.data.decode import target_of
    from scan_core.data.ingest import ingest, load_chunks
    from scan_core.data.labels import labels_and_splits
    from scan_core.data.open import open_source
    from scan_core.data.settings import Data
    from scan_core.data.store import plan_store, write_store

    settings = Data(**dict(read_preset(Path("presets/digits.yaml")).data, name="folder", path=str(path), size=size))
    chunks, store = folder / "chunks", folder / "store"
    chunks.mkdir(parents=True)
    started = time.monotonic()
    source = open_source(settings, Path.cwd(), folder)
    count = ingest(source, target_of(settings), chunks, CORES, lambda *_: None)
    known, where = load_chunks(chunks, count)
    _, splits = labels_and_splits(source, known, settings, {})
    plan = plan_store(known, where, splits, settings, chunks)
    write_store(plan, known, where, settings, chunks, store)
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return seconds


def make_imagenet(folder: Path, count: int) -> None:
    """Writes ``count`` JPEGs of 500x375 in 1,000 class folders: smooth random colors under noise, all different."""
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        starts = range(0, count, 500)
        list(pool.map(_make_part, [folder] * len(starts), starts, [min(500, count - start) for start in starts]))


def _make_part(folder: Path, first: int, count: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    for number in range(first, first + count):
        colors = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        image = Image.blend(Image.fromarray(colors).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), noise, 0.06)
        target = folder / "train" / f"n{number % 1000:08d}"
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{number}.jpg", quality=85)
