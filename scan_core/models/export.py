"""A finished model as one ONNX file, which other programs run: from stored pixels to probabilities and an embedding.

Everything that the network does to an image is in the file. What ``prepare`` does, decoding and cutting to the store's
square, is not.
"""

import importlib
import importlib.util
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.device import Compute
from scan_core.errors import ScanError
from scan_core.images.store import ArrayImages
from scan_core.models.files import (
    is_of_frozen,
    load_belonging,
    load_frozen,
    load_frozen_head,
    load_model,
    load_reduction,
)
from scan_core.models.openvino_engine import drop_resampling
from scan_core.models.predictor import ModelFiles, Predictor

NEEDED = ("onnx", "onnxscript")  # packages that write the file
RUNTIME = "onnxruntime"  # the package that runs it
INPUT, OUTPUTS, ABOUT = "images", ("probabilities", "embedding"), "scan"
BATCH = 64  # images
LARGEST = 2**31  # bytes of an ONNX file
FAR = 0.1  # rounding resized pixels changes a probability by less: by 0.003 at most of 1,000 photos


@dataclass(frozen=True)
class Agreement:
    """How far a file's answers are those of the model."""

    images: int
    same: int  # images with the same most probable cluster
    difference: float  # the largest, of a probability


def export_model(files: ModelFiles, stats: dict[str, Any], path: Path, about: dict[str, Any]) -> None:
    """Writes the model to ``path``, a whole file or none. ``stats`` are those of the store whose images it takes.

    The input ``images`` is (B,size,size,channels) uint8, the outputs are ``probabilities`` (B,C) and ``embedding``
    (B,D), rows of length 1, in float32. The file's metadata ``scan`` is ``about`` as JSON. Raises ``ScanError`` if a
    package is missing, or if torch cannot write the network.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ScanError(
            f"an ONNX file is written by the packages {' and '.join(NEEDED)}; "
            f"install what is missing: {sys.executable} -m pip install {' '.join(missing)}"
        )
    size, channels = stats["size"], stats["channels"]
    module = OfFrozen(files, size) if is_of_frozen(files.model) else OfTrained(files, stats)
    module.eval().requires_grad_(False)
    if sum(each.nbytes for each in module.state_dict().values()) >= LARGEST:
        raise ScanError(f"the networks have over {LARGEST >> 30} GiB; a smaller one fits into an ONNX file")
    unfinished, disabled = path.with_name(f".{path.name}.{os.getpid()}"), logging.root.manager.disable
    logging.disable(logging.WARNING)  # of packages that torch could use and does not find
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = _to_onnx(module, torch.zeros(2, size, size, channels, dtype=torch.uint8))
        written.model.metadata_props[ABOUT] = json.dumps(about)
        written.save(unfinished, external_data=False)
        os.replace(unfinished, path)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise ScanError(f"torch cannot write this network as ONNX ({what}); export a model of another one") from None
    finally:
        logging.disable(disabled)
        unfinished.unlink(missing_ok=True)


def _to_onnx(module: nn.Module, example: Tensor) -> Any:
    graph = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    drop_resampling(graph.graph)  # it would become such a resizing, too
    graph.graph_module.recompile()
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": list(OUTPUTS)}
    return torch.onnx.export(graph, (example,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, **names)


def check_export(path: Path, files: ModelFiles, stats: dict[str, Any], pixels: np.ndarray) -> Agreement | None:
    """The answers of ``path`` for ``pixels`` (N,size,size,channels) uint8 against the model's, in float32 on the CPU.

    None if onnxruntime is not installed. Raises ``ScanError`` if they are not the model's.
    """
    if importlib.util.find_spec(RUNTIME) is None:
        return None
    device = torch.device("cpu")
    images = ArrayImages(device, [pixels], stats["mean"], stats["std"], stats["view"])
    wanted = Predictor(files, Compute(device, "fp32"))(images, torch.arange(len(pixels))).prediction
    found = run_export(path, pixels)[0]
    difference = np.abs(np.take_along_axis(found, wanted.clusters, axis=1) - wanted.probabilities).max()
    if not difference < FAR:
        raise ScanError(f"{path} is wrong: a probability differs by {difference:.3f} from the model's; do not use it")
    return Agreement(len(pixels), int((found.argmax(axis=1) == wanted.cluster).sum()), float(difference))


def run_export(path: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N,C) and embeddings (N,D) of ``pixels`` (N,size,size,channels) uint8, by onnxruntime."""
    session = importlib.import_module(RUNTIME).InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(list(OUTPUTS), {INPUT: pixels[at : at + BATCH]}) for at in range(0, len(pixels), BATCH)]
    probabilities, embeddings = (np.concatenate(each) for each in zip(*parts, strict=True))
    return probabilities, embeddings


class Resize(nn.Module):
    """Squares of ``size`` pixels to squares of ``side``: bicubic, antialiased, rounded like 8 bits after each pass.

    Each pass is a product with a fixed matrix. ONNX's own resizing would round once, which is less near to PIL's, and
    not every program that runs such files has its antialiasing.
    """

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        pulses = torch.eye(size, dtype=torch.float64)[None, None]
        weights = F.interpolate(pulses, size=(size, side), mode="bicubic", antialias=True)[0, 0]  # (size,side)
        self.register_buffer("weights", weights.float())

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,channels,size,size) to (B,channels,side,side), whole numbers in 0..255 as float32."""
        weights = cast(Tensor, self.weights)
        wide = _eight_bits(pixels @ weights)  # (B,channels,size,side)
        return _eight_bits(weights.T @ wide)


def _eight_bits(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


class Space(nn.Module):
    """A frozen network as ``FrozenNetwork`` runs it, from stored images of ``size`` pixels."""

    def __init__(self, path: Path, size: int, side: int, mirror: bool) -> None:
        super().__init__()
        self.network, expected = load_frozen(path)
        self.mirror = mirror
        if getattr(self.network, "dynamic_img_size", False) and getattr(self.network, "pos_embed", None) is not None:
            cast(Any, self.network).set_input_size(img_size=(side, side))
        self.resize = nn.Identity() if side == size else Resize(size, side)
        self.register_buffer("shift", torch.tensor(expected.mean).view(3, 1, 1) * 255)
        self.register_buffer("scale", torch.tensor(expected.std).view(3, 1, 1) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,1 or 3,size,size) float32 in 0..255 to features (B,D)."""
        resized = self.resize(pixels).expand(-1, 3, -1, -1)
        images = (resized - cast(Tensor, self.shift)) / cast(Tensor, self.scale)
        features = cast(Tensor, self.network(images))
        return (features + self.network(images.flip(3))) / 2 if self.mirror else features


class OfFrozen(nn.Module):
    """Stored pixels (B,size,size,channels) uint8 to probabilities (B,C) and embedding (B,D), of frozen networks."""

    def __init__(self, files: ModelFiles, size: int) -> None:
        super().__init__()
        assert files.networks is not None
        reduction, spaces = load_reduction(files.model)
        self.spaces = nn.ModuleList(
            Space(files.networks / f"{each.sha256[:16]}.safetensors", size, each.side, each.mirror) for each in spaces
        )
        self.head = load_frozen_head(files.model)
        for name, value in vars(reduction).items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.permute(0, 3, 1, 2).float()
        features = torch.cat([space(pixels) for space in self.spaces], dim=1)
        mean, scale, basis = (cast(Tensor, getattr(self, name)) for name in ("mean", "scale", "basis"))
        embedding = F.normalize((features - mean) / scale @ basis, dim=1)
        return self.head(embedding)[0].softmax(dim=1), embedding


class OfTrained(nn.Module):
    """Stored pixels (B,size,size,channels) uint8 to probabilities (B,C) and embedding (B,D), of trained networks."""

    def __init__(self, files: ModelFiles, stats: dict[str, Any]) -> None:
        super().__init__()
        assert files.pretext is not None
        self.model, self.pretext = (load_model(path)[0] for path in (files.model, files.pretext))
        self.projected = load_belonging(files.belonging)[2]
        self.side, self.corner = stats["view"], (stats["size"] - stats["view"]) // 2
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(stats[name], dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inside = slice(self.corner, self.corner + self.side)
        views = images[:, inside, inside].permute(0, 3, 1, 2).float() / 255
        views = (views - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        features = self.pretext.backbone(views)
        embedding = F.normalize(self.pretext.head(features) if self.projected else features, dim=1)
        return self.model.head(self.model.backbone(views))[0].softmax(dim=1), embedding
