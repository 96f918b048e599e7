"""Features and cluster probabilities of plain views, in eval mode, batch by batch."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.augment import plain_view
from scan_core.data import Images

BATCH = 512  # in eval mode no result depends on it


@torch.no_grad()
def forward_all(module: nn.Module, images: Images, rows: Tensor, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Features (N,D) and head outputs, (N,P) or (H,N,C), float32 on the device, of ``rows`` (N,) int64.

    Leaves ``module`` in the mode it was in.
    """
    was_training = module.training
    module.eval()
    features, outputs = [], []
    for start in range(0, len(rows), BATCH):
        with fabric.autocast():
            feature, output = module(plain_view(images, rows[start : start + BATCH]))
        features.append(feature)
        outputs.append(output)
    module.train(was_training)
    return torch.cat(features), torch.cat(outputs, dim=-2)


def embed(module: nn.Module, images: Images, rows: Tensor, projected: bool, fabric: Fabric) -> Tensor:
    """(N,D) float32, each row of length 1: the backbone's features or, if ``projected``, the projector's output."""
    features, outputs = forward_all(module, images, rows, fabric)
    return F.normalize(outputs if projected else features, dim=1)


def log_probabilities(module: nn.Module, images: Images, rows: Tensor, fabric: Fabric) -> Tensor:
    """(H,N,C) float32 log-probabilities of the cluster heads."""
    return F.log_softmax(forward_all(module, images, rows, fabric)[1], dim=-1)
