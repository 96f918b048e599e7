"""Frozen networks, through which each image goes once: by OpenVINO on a CPU, by torch on a GPU.

On a CPU OpenVINO runs them faster than torch does, in float32, with the features of torch's float32. In bfloat16 it
would be faster still, but then features of photos differ by enough to change their neighbors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.images.store import Images
from scan_core.models.files import FrozenSpace, load_frozen, load_preprocessing
from scan_core.models.openvino_engine import engine, key_of

BATCH = 64  # images: more are no faster on a CPU


class FrozenNetwork:
    """A frozen network of a file that ``scan weights`` wrote, ready to run on ``device``.

    ``side`` are the pixels of an image, by default those that the weights were trained on. With ``mirror`` an image's
    features are the mean of its own and those of its mirror image. ``kept`` is a folder for what takes seconds to make
    and is the same the next time. With ``part`` only what it takes of the network runs, and nothing is kept. Raises
    ``ScanError`` if the file is no such file, or if the network takes no images of this size.
    """

    def __init__(
        self, path: Path, device: torch.device, side: int | None = None, mirror: bool = False, kept: Path | None = None,
        part: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        expected = load_preprocessing(path)
        self.device, self.mirror, self.side = device, mirror, side or expected.side
        self._shift = torch.tensor(expected.mean, device=device).view(3, 1, 1) * 255
        self._scale = torch.tensor(expected.std, device=device).view(3, 1, 1) * 255

        def module() -> nn.Module:
            network = load_frozen(path)[0]
            if getattr(network, "dynamic_img_size", False) and getattr(network, "pos_embed", None) is not None:
                # Positions are resampled to the images' size here, once, and not in each forward pass.
                cast(Any, network).set_input_size(img_size=(self.side, self.side))
            return part(network) if part else network

        try:
            if device.type == "cuda":
                self._run = _on_gpu(module(), device)
            else:
                self._run = engine(module, self.side, kept / key_of(path, self.side) if kept and not part else None)
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


def embed_frozen(network: FrozenNetwork, images: Images, rows: Tensor) -> Iterator[np.ndarray]:
    """Features (B,D) float32 of ``rows`` (N,) int64, batch by batch, from each image's largest centered square."""
    for start in range(0, len(rows), BATCH):
        yield network(images.squares(rows[start : start + BATCH], network.side))
