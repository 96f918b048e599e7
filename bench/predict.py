"""``scan predict`` and the served model against decoding and networks with nothing around them; predict's memory.

The bare candidate decodes with the same decoder, in as many processes, and runs the same network on what comes back.
The loop of predict begins with a loaded network and ends with a written CSV file. The network is EfficientNet-lite0,
and the run has grouped so many images that a new one is compared with as many as there can be. Photos are synthetic and
in the page cache.
"""

import contextlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bench.machine import MemorySampler
from bench.timing import Row, Work, alternate, compare, in_new_process
from pipeline.project import make_project
from scan_core.data.decode import Target, open_image, square
from scan_core.evaluation.belonging import BANK
from scan_core.models.frozen import BATCH, FrozenNetwork
from tests.project import ROOT, STAGES, environment, run_stages, set_params

CORES = os.cpu_count() or 1
FORK = multiprocessing.get_context("fork")
MEGAPIXELS, SMALL = (4000, 3000), (64, 64)
# Pixels of the photos of the run, of the store, and of what the network sees.
OF_RUN = {MEGAPIXELS: ((320, 240), 224, 224), SMALL: (SMALL, 64, 128)}
SERVED = (32, 256)  # images of a request
ONCE = 0.01  # seconds of a turn: all photos, one time


def measure(large: int, small: int, rounds: int) -> list[Row]:
    """Images per second of ``large`` photos of 12 megapixels and of ``small`` ones of 64 pixels."""
    what = (("photos of 12 megapixels", MEGAPIXELS, large), ("images of 64x64", SMALL, small))
    return [row for kind, size, count in what for row in _measure(kind, size, count, rounds)]


def _measure(kind: str, size: tuple[int, int], count: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = _finished(folder, size)
        make_photos(folder / "new", size, BANK, count)
        files = sorted(map(str, (folder / "new").rglob("*.jpg")))
        seconds = _command(project, folder / "new")[0]
        _end(_start(project, "runs", "--send"))  # among MLflow's files is the model that is served
        with contextlib.chdir(project), _quiet():
            works, spent = _works(project, folder / "new", files), dict[str, list[float]]()
            rates = alternate({name: partial(_noting, spent, name, work) for name, work in works.items()}, ONCE, rounds)
    what = {"predict": f"scan predict of {count:,} {kind}"}
    what |= {f"served {batch}": f"the served model, {kind}, {batch} at a time" for batch in SERVED}
    rows = []
    for name, words in what.items():
        peer = "bare" if name == "predict" else "predict"
        row = compare(words, rates, name, peer, target="≥ 0.80")
        row.peer = "the same decoder and network, bare" if name == "predict" else "scan predict"
        row.note = f"{statistics.median(spent[peer]) / statistics.median(spent[name]):.2f} by processor time"
        rows.append(row)
    rows[0].note += f"; the whole command, with its start, {seconds:.1f} s"
    return rows


def _noting(spent: dict[str, list[float]], name: str, work: Work) -> int:
    """Does ``work``, and notes its seconds of processor time: other programs lengthen these less than the hour."""
    before = os.times()
    count = work()
    after = os.times()
    spent.setdefault(name, []).append((sum(after[:4]) - sum(before[:4])) / count)
    return count


def _works(project: Path, photos: Path, files: list[str]) -> dict[str, Work]:
    """The candidates; each piece of work is all of ``files``, which are in ``photos``."""
    import mlflow

    from pipeline.cli.predict import _write_csv
    from pipeline.params import read_params
    from pipeline.predict import Predictions, source_of

    params = read_params()
    predictor = Predictions(source_of([], params.data), params).predictor
    target = Predictions(source_of([], params.data), params).target
    (package,) = project.glob("mlartifacts/**/MLmodel")
    model = mlflow.pyfunc.load_model(str(package.parent))
    data = [Path(file).read_bytes() for file in files]

    def predict() -> int:
        predictions = Predictions(source_of([str(photos)], params.data), params)
        predictions.predictor = predictor
        (scratch := project / ".scan" / "bench").mkdir()
        with (project / "out.csv").open("wb") as file:
            _write_csv(predictions.tables(scratch), file)
        shutil.rmtree(scratch)
        return len(files)

    def served(batch: int) -> int:
        return sum(
            len(model.predict(pd.DataFrame({"image": data[start : start + batch]})))
            for start in range(0, len(data), batch)
        )

    works: dict[str, Work] = {"predict": predict, "bare": partial(_bare, predictor.networks, target, files)}
    return works | {f"served {batch}": partial(served, batch) for batch in SERVED}


def _bare(networks: list[FrozenNetwork], target: Target, files: list[str]) -> int:
    """Decodes ``files`` on all cores and runs ``networks``, which all see images of one size, on all cores."""
    (side,) = {network.side for network in networks}
    parts = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        for batch in pool.map(_decode_part, parts, [target] * len(parts), [side] * len(parts)):
            for network in networks:
                network(torch.from_numpy(batch).permute(0, 3, 1, 2))
    return len(files)


def _decode_part(files: list[str], target: Target, side: int) -> np.ndarray:
    seen = Target(side, target.fit, "array", target.max_pixels)
    return np.stack([np.asarray(square(open_image(file, target), seen).convert("RGB")) for file in files])


def measure_memory(counts: tuple[int, int]) -> list[Row]:
    """Peak memory of the whole command on few and on many images of 64 pixels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project, found = _finished(folder, SMALL), []
        for count in counts:
            make_photos(folder / f"{count}", SMALL, BANK, count)
            found.append(_command(project, folder / f"{count}"))
    (_, few), (seconds, many) = found
    return [
        Row(
            f"scan predict of {counts[1]:,} images of 64x64, the whole command", counts[1] / seconds,
            f"the memory at {counts[0]:,}, {few:,.0f} MiB", [many / few], "flat", mib=many, note=f"{seconds:.0f} s",
        )
    ]  # fmt: skip


def _finished(folder: Path, size: tuple[int, int]) -> Path:
    """A project in ``folder`` with a finished run, by whose model photos of ``size`` are to be put into groups."""
    of_run, stored, seen = OF_RUN[size]
    make_photos(folder / "photos", of_run, 0, BANK)
    project = folder / "photos-groups"
    make_project(project)
    spaces = [{"weights": "efficientnet_lite0", "side": seen, "mirror": False}]
    set_params(project, {
        "data": {"path": str(folder / "photos"), "size": stored}, "embed": {"spaces": spaces},
        "cluster": {"num_clusters": 2, "methods": ["kmeans"]},
    })  # fmt: skip
    in_new_process(run_stages, project, "source", *STAGES)  # which sets how many threads there are
    return project


def _command(project: Path, photos: Path) -> tuple[float, float]:
    """Seconds and peak MiB, of all processes together, of ``scan predict``."""
    started = time.monotonic()
    process = _start(project, "predict", str(photos), "-o", "out.csv")
    sampler = MemorySampler(process.pid)
    _end(process)
    seconds = time.monotonic() - started
    return seconds, max(size for _, size in sampler.stop()) / 2**20


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    variables = environment(PYTHONPATH=str(ROOT))
    del variables["SCAN_THREADS"]  # measured is what a person gets
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *words], cwd=folder, env=variables, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[Any]) -> None:
    said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def make_photos(folder: Path, size: tuple[int, int], first: int, count: int) -> None:
    """Writes JPEGs of ``size``, numbers ``first`` and after: smooth random colors under noise, all different."""
    folder.mkdir()
    make: Callable[[int], None] = partial(_make_photo, folder, size)
    with ProcessPoolExecutor(CORES, mp_context=FORK) as pool:
        list(pool.map(make, range(first, first + count), chunksize=16))


def _make_photo(folder: Path, size: tuple[int, int], number: int) -> None:
    rng = np.random.default_rng(number)
    colors = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    Image.blend(colors, noise, 0.06).save(folder / f"{number}.jpg", quality=90)
