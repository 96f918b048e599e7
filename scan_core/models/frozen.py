"""Frozen networks, through which each image goes once: by OpenVINO on a CPU, by torch on a GPU.

On a CPU OpenVINO runs them faster than torch does, in float32, with the features of torch's float32. In bfloat16 it
would be faster still, but then features of photos differ by enough to change their neighbors.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.images.store import Images
from scan_core.models.files import FrozenSpace, load_frozen

BATCH = 64  # images: more are no faster on a CPU


class FrozenNetwork:
    """A frozen network of a file that ``scan weights`` wrote, ready to run on ``device``.

    ``side`` are the pixels of an image, by default those that the weights were trained on. With ``mirror`` an image's
    features are the mean of its own and those of its mirror image. Raises ``ScanError`` if the file is no such file, or
    if the network takes no images of this size.
    """

    def __init__(self, path: Path, device: torch.device, side: int | None = None, mirror: bool = False) -> None:
        module, expected = load_frozen(path)
        self.device, self.mirror, self.side = device, mirror, side or expected.side
        self._shift = torch.tensor(expected.mean, device=device).view(3, 1, 1) * 255
        self._scale = torch.tensor(expected.std, device=device).view(3, 1, 1) * 255
        try:
            if getattr(module, "dynamic_img_size", False) and getattr(module, "pos_embed", None) is not None:
                # Positions are resampled to the images' size here, once, and not in each forward pass.
                cast(Any, module).set_input_size(img_size=(self.side, self.side))
            self._run = _on_gpu(module, device) if device.type == "cuda" else _on_cpu(module, self.side)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:200]
            raise ScanError(f"{path} takes no images of {self.side} x {self.side} pixels ({what})") from None

    def described(self, sha256: str) -> FrozenSpace:
        """The network as a model file names it; ``sha256`` is that of its weights' file."""
        return FrozenSpace(sha256, self.side, self.mirror)

    def __call__(self, pixels: Tensor) -> np.ndarray:
        """(B,1 or 3,side,side) uint8 on the device to (B,D) float32."""
        images = (pixels.expand(-1, 3, -1, -1).float() - self._shift) / self._scale
        features = self._run(images)
        if self.mirror:
            features = (features + self._run(images.flip(3))) / 2
        return features


def _on_gpu(module: nn.Module, device: torch.device) -> Callable[[Tensor], np.ndarray]:
    module = module.to(device)

    @torch.inference_mode()
    def run(images: Tensor) -> np.ndarray:
        features: np.ndarray = module(images).float().cpu().numpy()
        return features

    return run


def _on_cpu(module: nn.Module, side: int) -> Callable[[Tensor], np.ndarray]:
    # OpenVINO reports each first import to its makers over the network, unless the package that does so is missing.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    example = torch.zeros(2, 3, side, side)
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    _drop_resampling(exported.graph)
    # Not openvino.convert_model, which reports its use to its makers over the network.
    frontend = FrontEndManager().load_by_framework("pytorch")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # OpenVINO warns, with a traceback, of operations that this torch has not
    try:
        decoder = TorchFXPythonDecoder.from_exported_program(exported)  # must outlive the conversion
    finally:
        logging.disable(disabled)
    model = frontend.convert(frontend.load(decoder))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def run(images: Tensor) -> np.ndarray:
        features: np.ndarray = compiled(images.contiguous().numpy())[0]
        return features

    return run


def _drop_resampling(graph: torch.fx.Graph) -> None:
    """Removes each resampling of positions to the size that they have, which OpenVINO could not run.

    timm leaves it out itself, but not when a network is exported.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._upsample_bicubic2d_aa.vec):
        given = node.args[0]
        if given.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(given)
            graph.erase_node(node)


def embed_frozen(network: FrozenNetwork, images: Images, rows: Tensor) -> Iterator[np.ndarray]:
    """Features (B,D) float32 of ``rows`` (N,) int64, batch by batch, from each image's largest centered square."""
    for start in range(0, len(rows), BATCH):
        yield network(images.squares(rows[start : start + BATCH], network.side))
