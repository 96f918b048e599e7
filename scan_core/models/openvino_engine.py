"""OpenVINO, which runs frozen networks on a CPU, and its form of them on disk, because to make it takes seconds."""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

Engine = Callable[[Tensor], np.ndarray]  # (B,3,side,side) float32 to (B,D) float32
FILES = ("network.xml", "network.bin")
SUMS = "sha256"
FORM = 1  # raised if ``convert`` changes


def key_of(path: Path, side: int) -> str:
    """What the network of a weights' file at ``side`` pixels is called in the folder that ``engine`` keeps."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    with path.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    made_by = f"{FORM} {openvino.__version__} {torch.__version__}"
    return f"{weights[:16]}-{side}-{hashlib.sha256(made_by.encode()).hexdigest()[:8]}"


def engine(module: Callable[[], nn.Module], side: int, kept: Path | None) -> Engine:
    """The network that ``module`` makes, ready to run on images of ``side`` pixels, on as many threads as torch has.

    ``kept`` is a folder of its own, in which an earlier call may have left the network; None keeps nothing.
    """
    # OpenVINO reports each first import to its makers over the network, unless the package that does so is missing.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    core, model = openvino.Core(), None
    if kept and _sums(kept) == _noted(kept):
        model = core.read_model(kept / FILES[0])
    if model is None:
        model = convert(module(), side)
        if kept:
            _keep(model, kept)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", options)

    def run(images: Tensor) -> np.ndarray:
        features: np.ndarray = compiled(images.contiguous().numpy())[0]
        return features

    return run


def convert(module: nn.Module, side: int) -> Any:
    """The network in OpenVINO's form, for any number of images. Raises ``RuntimeError`` if it takes no such images."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    example = torch.zeros(2, 3, side, side)
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    drop_resampling(exported.graph)
    # Not openvino.convert_model, which reports its use to its makers over the network.
    frontend = FrontEndManager().load_by_framework("pytorch")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # OpenVINO warns, with a traceback, of operations that this torch has not
    try:
        decoder = TorchFXPythonDecoder.from_exported_program(exported)  # must outlive the conversion
    finally:
        logging.disable(disabled)
    return frontend.convert(frontend.load(decoder))


def drop_resampling(graph: torch.fx.Graph) -> None:
    """Removes each resampling of positions to the size that they have, which OpenVINO could not run.

    timm leaves it out itself, but not when a network is exported.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._upsample_bicubic2d_aa.vec):
        given = node.args[0]
        if given.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(given)
            graph.erase_node(node)


def _keep(model: Any, kept: Path) -> None:
    """Writes the whole network or nothing. Another process may do the same. A full disk costs no run."""
    import openvino

    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(mkdtemp(dir=kept.parent, prefix=f".{kept.name}."))
        try:
            openvino.save_model(model, unfinished / FILES[0], compress_to_fp16=False)
            (unfinished / SUMS).write_text(_sums(unfinished) or "")
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(unfinished, kept)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except (OSError, RuntimeError):
        return


def _sums(folder: Path) -> str | None:
    """Hashes of the files in ``folder``, or None if one is missing."""
    found = []
    for name in FILES:
        try:
            with (folder / name).open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:
            return None
    return " ".join(found)


def _noted(folder: Path) -> str:
    """The hashes that were noted when the files were written; "" if there are none."""
    try:
        return (folder / SUMS).read_text()
    except (OSError, UnicodeDecodeError):
        return ""
