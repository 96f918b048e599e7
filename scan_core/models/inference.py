"""Features and cluster probabilities of plain views, in eval mode, batch by batch."""

from contextlib import AbstractContextManager
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.device import to_device
from scan_core.compute.distributed import all_gather, broadcast_buffers, local_shard, world_size
from scan_core.images.store import Images
from scan_core.models.reduction import ROWS, padded

# Images per batch, on a GPU more if they are small. In eval mode no result depends on the batch.
BATCH, PIXELS = 512, 2**21
SMALL = 16  # pixels per side


class Autocast(Protocol):
    """``Compute`` or Fabric: what sets the precision. Importing Fabric takes seconds, which embed and evaluate save."""

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs."""


@torch.no_grad()
def forward_all(
    module: nn.Module, images: Images, rows: Tensor, compute: Autocast, keep_features: bool = True
) -> tuple[Tensor, Tensor]:
    """Features (N,D) and head outputs, (N,P) or (H,N,C), float32 on the device, of ``rows`` (N,) int64.

    Features that are not kept are (0,D): for a million images they take gigabytes. The processes share the work.
    ``module`` is left in the mode that it was in.
    """
    was_training = module.training
    module.eval()
    broadcast_buffers(module)
    features, outputs, batch = [], [], batch_size(images)
    padded = torch.cat([rows, rows[-1:].expand(-len(rows) % world_size())])  # to equal shards
    shard = local_shard(padded)
    for start in range(0, len(shard), batch):
        with compute.autocast():
            feature, output = module(images.plain_view(shard[start : start + batch]))
        features.append(feature if keep_features else feature.new_empty(0, feature.shape[1]))
        outputs.append(output)
    module.train(was_training)
    all_features, all_outputs = all_gather(torch.cat(features)), all_gather(torch.cat(outputs, dim=-2), dim=-2)
    return all_features[: len(rows)], all_outputs[..., : len(rows), :]


def batch_size(images: Images) -> int:
    """Images per batch."""
    return max(BATCH, PIXELS // images.side**2) if images.device.type == "cuda" else BATCH


def embed(module: nn.Module, images: Images, rows: Tensor, projected: bool, compute: Autocast) -> Tensor:
    """(N,D) float32 rows of length 1: the backbone's features or, if ``projected``, the projector's output."""
    features, outputs = forward_all(module, images, rows, compute)
    return F.normalize(outputs if projected else features, dim=1)


def log_probabilities(module: nn.Module, images: Images, rows: Tensor, compute: Autocast) -> Tensor:
    """(H,N,C) float32 log-probabilities of the cluster heads for ``rows`` (N,) int64."""
    return F.log_softmax(forward_all(module, images, rows, compute, keep_features=False)[1], dim=-1)


@torch.no_grad()
def probabilities_of(head: nn.Module, embeddings: np.ndarray) -> np.ndarray:
    """(N,C) float32 of the one head of a model of stored embeddings (N,D)."""
    blocks = []
    for start in range(0, len(embeddings), ROWS):
        rows = embeddings[start : start + ROWS]
        blocks.append(head(torch.from_numpy(padded(rows)))[0].softmax(dim=1).numpy()[: len(rows)])
    return np.concatenate(blocks)


class FeatureTable(nn.Module):
    """A frozen backbone whose features (N,D) are known: it takes positions (B,) int64 in place of images."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features  # no buffer: the features are neither saved nor exchanged

    def forward(self, positions: Tensor) -> Tensor:
        """(B,) int64 to (B,D) float32."""
        return self.features.index_select(0, positions)


class _Positions:
    """Stands for images in front of a ``FeatureTable``: the plain view of an image is its position."""

    side = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def plain_view(self, rows: Tensor) -> Tensor:
        return to_device(rows, self.device)


def cache_features(
    module: nn.Module, images: Images, splits: list[Tensor], compute: Autocast
) -> tuple[FeatureTable, Images, list[Tensor]]:
    """A frozen backbone's features of plain views, computed once for all epochs.

    Returns what takes the place of the backbone, of ``images`` and of each of the ``splits`` (N,) int64: networks and
    loops then run as they do on images. Of the images, only plain views can be had.
    """
    features = [forward_all(module, images, rows, compute)[0] for rows in splits]
    ends = torch.tensor([len(rows) for rows in splits]).cumsum(0).tolist()
    positions = [torch.arange(end - len(rows), end) for end, rows in zip(ends, splits, strict=True)]
    return FeatureTable(torch.cat(features)), cast(Images, _Positions(images.device)), positions


def small_pixels(images: Images, rows: Tensor) -> Tensor:
    """(N,D) float32 in [0,1] on the host: each image's pixels, averaged to at most 16 x 16, for a baseline."""
    parts = []
    for start in range(0, len(rows), BATCH):
        pixels = images.crops(rows[start : start + BATCH]).float() / 255
        if images.side > SMALL:
            pixels = F.adaptive_avg_pool2d(pixels, SMALL)
        parts.append(pixels.flatten(1).cpu())
    return torch.cat(parts)
