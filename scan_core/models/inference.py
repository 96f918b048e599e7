"""Features and cluster probabilities of plain views, in eval mode, batch by batch."""

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.compute.distributed import all_gather, broadcast_buffers, local_shard, world_size
from scan_core.images.store import Images
from scan_core.views.random_view import plain_view


class Autocast(Protocol):
    """``Compute`` or Fabric: what sets the precision."""

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs."""


BATCH, PIXELS = 512, 2**21  # images at a time, on a GPU more where they are small: in eval mode no result depends on it
SMALL = 16  # pixels a side


@torch.no_grad()
def forward_all(
    module: nn.Module, images: Images, rows: Tensor, compute: Autocast, keep_features: bool = True
) -> tuple[Tensor, Tensor]:
    """Features (N,D) and head outputs, (N,P) or (H,N,C), float32 on the device, of ``rows`` (N,) int64.

    Features that are not kept, gigabytes of a million images, are (0,D). The work is shared out among the processes.
    Leaves ``module`` in the mode it was in.
    """
    was_training = module.training
    module.eval()
    broadcast_buffers(module)
    features, outputs, batch = [], [], batch_of(images)
    part = local_shard(
        torch.cat([rows, rows[-1:].expand(-len(rows) % world_size())])
    )  # the last one again where parts differ
    for start in range(0, len(part), batch):
        with compute.autocast():
            feature, output = module(plain_view(images, part[start : start + batch]))
        features.append(feature if keep_features else feature.new_empty(0, feature.shape[1]))
        outputs.append(output)
    module.train(was_training)
    all_features, all_outputs = all_gather(torch.cat(features)), all_gather(torch.cat(outputs, dim=-2), dim=-2)
    return all_features[: len(rows)], all_outputs[..., : len(rows), :]


def batch_of(images: Images) -> int:
    """Images at a time."""
    return max(BATCH, PIXELS // images.side**2) if images.device.type == "cuda" else BATCH


def embed(module: nn.Module, images: Images, rows: Tensor, projected: bool, compute: Autocast) -> Tensor:
    """(N,D) float32, each row of length 1: the backbone's features or, if ``projected``, the projector's output."""
    features, outputs = forward_all(module, images, rows, compute)
    return F.normalize(outputs if projected else features, dim=1)


def log_probabilities(
    module: nn.Module, images: Images, rows: Tensor, compute: Autocast, features: Tensor | None = None
) -> Tensor:
    """(H,N,C) float32 log-probabilities of the cluster heads; from the ``features`` (N,D) of ``rows`` where known."""
    if features is None:
        return F.log_softmax(forward_all(module, images, rows, compute, keep_features=False)[1], dim=-1)
    with torch.no_grad():
        return F.log_softmax(module(features, embedded=True)[1], dim=-1)


def small_pixels(images: Images, rows: Tensor) -> Tensor:
    """(N,D) float32 in [0,1] on the host: each image's pixels, averaged to at most 16 x 16, for a baseline."""
    parts = []
    for start in range(0, len(rows), BATCH):
        pixels = images.windows(rows[start : start + BATCH]).float() / 255
        if images.side > SMALL:
            pixels = F.adaptive_avg_pool2d(pixels, SMALL)
        parts.append(pixels.flatten(1).cpu())
    return torch.cat(parts)
