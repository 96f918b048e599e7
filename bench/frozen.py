"""Frozen networks on the CPU: the embed stage's loop, its engine alone, torch, and the usual way with a data loader.

And whole runs of ``scan run`` on three folders, against the time that its plan states.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.machine import MemorySampler
from bench.prepare import make_imagenet
from bench.timing import Row, alternate, compare
from scan_core.images.store import JpegImages
from tests.project import ROOT, environment, make_dvc_project, run_stages, set_params

NAME, SIDE, BATCH, IMAGES = "efficientnet_lite0", 224, 64, 512
MEGAPIXELS = (4000, 3000)  # pixels of a telephone's photo


def measure(seconds: float, rounds: int) -> list[Row]:
    """Images per second of 500x375 JPEGs through one network at 224 pixels, the candidates in turns."""
    from pipeline.weights import sign_weights, weights_file
    from scan_core.models.files import load_frozen
    from scan_core.models.frozen import FrozenNetwork, embed_frozen

    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_imagenet(folder / "photos", IMAGES)
        images = _store(folder)
        sign_weights("", NAME, folder)
        file = weights_file(NAME, folder)
        network, (module, _) = FrozenNetwork(file, cpu, SIDE), load_frozen(file)
        rows, constant = torch.arange(BATCH), images.squares(torch.arange(BATCH), SIDE)
        as_seen = (constant.float() - 127) / 128
        channels_last = load_frozen(file)[0].to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def bf16() -> int:
            with torch.autocast("cpu", torch.bfloat16):
                channels_last(as_seen.contiguous(memory_format=torch.channels_last))
            return BATCH

        loader = torch.utils.data.DataLoader(Photos(folder / "photos"), BATCH, num_workers=os.cpu_count() or 1)
        batches = iter(loader)

        @torch.inference_mode()
        def usual() -> int:
            nonlocal batches
            try:
                batch = next(batches)
            except StopIteration:
                batches = iter(loader)
                batch = next(batches)
            module(batch)
            return len(batch)

        works = {
            "loop": lambda: sum(map(len, embed_frozen(network, images, rows))),
            "engine": lambda: len(network(constant)),
            "bf16": bf16,
            "usual": usual,
        }
        rates = alternate(works, seconds, rounds)
        with torch.inference_mode():
            wanted = module(as_seen)
        cosine = torch.cosine_similarity(torch.from_numpy(network(constant)), wanted).min()
    what = f"{NAME} at {SIDE} pixels, from the JPEG store"
    rows_of = [
        compare(what, rates, "loop", "engine", target="≥ 0.85"),
        compare(what, rates, "loop", "bf16", target="≥ 1.5"),
        compare(what, rates, "loop", "usual", target="≥ 3"),
    ]
    rows_of[0].peer = "its engine on one constant batch"
    rows_of[0].note = f"least cosine to torch's float32 features {cosine:.6f} (target: ≥ 0.999)"
    rows_of[1].peer = "torch in bfloat16, channels_last, on one constant batch"
    rows_of[2].peer = "torchvision's decoding in a DataLoader, torch in float32"
    return rows_of


def _store(folder: Path) -> JpegImages:
    """The photos as prepare stores them."""
    project = make_dvc_project(folder / "project")
    data = {"name": "folder", "path": str(folder / "photos"), "labels": "none", "size": SIDE, "protocol": "all"}
    set_params(project, {"data": data})
    run_stages(project, "source", "prepare")
    store = project / "data" / "images"
    table = np.load(store / "jpeg-00000.npy")
    return JpegImages(torch.device("cpu"), [store / "jpeg-00000.bin"], [table], [0.5] * 3, [0.5] * 3, SIDE)


class Photos(torch.utils.data.Dataset[torch.Tensor]):
    """JPEG files as torchvision decodes them. At the module's top, because worker processes load it by its name."""

    def __init__(self, folder: Path) -> None:
        from torchvision.transforms import v2

        self.files = sorted(folder.rglob("*.jpg"))
        self.normalize = v2.Compose([
            v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        pixels: torch.Tensor = self.normalize(decode_jpeg(read_file(str(self.files[row])), ImageReadMode.RGB))
        return pixels


def measure_runs(counts: tuple[int, int, int] = (1000, 1000, 5000)) -> list[Row]:
    """``scan run``, cold, on photos of 12 megapixels, on JPEGs of 500x375 and on thumbnails: real and stated time."""
    sizes = (MEGAPIXELS, None, (64, 64))
    names = ("photos of 12 megapixels", "JPEGs of 500x375", "thumbnails of 64x64")
    rows = []
    for count, size, what in zip(counts, sizes, names, strict=True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_imagenet(folder / "photos", count)
            for file in (folder / "photos").rglob("*.jpg") if size else ():
                with Image.open(file) as image:
                    image.resize(size).save(file, quality=90)
            rows.append(_run(folder, count, what))
    return rows


def _run(folder: Path, count: int, what: str) -> Row:
    project = make_dvc_project(folder / "project")
    shutil.copytree(ROOT / "presets", project / "presets")
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "photos")]
    variables = {name: value for name, value in environment().items() if name != "SCAN_THREADS"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=project, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    sampler = MemorySampler(process.pid)
    said, planned = "", started
    for line in process.stderr or ():
        said += line
        if line.startswith("settings"):
            planned = time.monotonic()
    if process.wait():
        raise SystemExit(said)
    ended, peak = time.monotonic(), max(size for _, size in sampler.stop()) / 2**20
    parts = [float(each) for each in re.findall(r"about ([\d:]+), ", said)[0].split(":")]
    stated = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    real, networks = ended - planned, " and ".join(re.findall(r"efficientnet_lite\d at \d+", said))
    note = f"{ended - started:.0f} s, {planned - started:.0f} of them for the plan; stated {stated:.0f} s; {networks}"
    return Row(
        f"scan run on {count:,} {what}", count / real, "the time stated", [stated / real], "0.67 to 2", None, peak, note
    )
