"""A label-free alarm: it ends a pretext task whose embeddings have collapsed to one point or one line."""

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.errors import ScanError

# Both limits come from the last batch of each of the first epochs. Trainings that live: digits with the project's
# settings, at least 0.04 and 12 with every method; ResNet-18 on noise at SGD 0.4 without a warm-up, 2e-4 (MoCo) and
# 1.8; a tiny network, 3e-5 and, with batches of 8 in two groups, 1.3. Trainings that are dead: 4e-6 and below, in
# bfloat16 an epoch later. A false alarm ends a training that would have worked, so both limits are nearer to the dead.
DEAD_VARIANCE = 1e-5  # of 1 for vectors all over the sphere
DEAD_RANK = 1.1  # dimensions; 1 is a line, or two points


def embedding_spread(embeddings: Tensor) -> dict[str, float]:
    """``embedding_variance`` and ``effective_rank`` of normalized rows (B,D); NaN if a value is not finite.

    The variance is that of all dimensions together, 1 - |mean|², in [0,1]. The effective rank (Roy and Vetterli 2007)
    is the exponential of the entropy of the singular values of the centered batch: 1 on a line, at most D.
    """
    unit = F.normalize(embeddings.detach().float(), dim=1)
    if not bool(unit.isfinite().all()):
        return {"embedding_variance": float("nan"), "effective_rank": float("nan")}
    centered = unit - unit.mean(dim=0)
    share = torch.linalg.svdvals(centered.cpu())  # many small kernels, which are slower on a GPU
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    rank = torch.exp(-torch.xlogy(share, share).sum())
    return {"embedding_variance": float(centered.square().sum(dim=1).mean()), "effective_rank": float(rank)}


def check_spread(embeddings: Tensor, epoch: int) -> dict[str, float]:
    """The ``embedding_spread`` of the last batch (B,D) of an epoch. Raises ``ScanError`` if it has collapsed."""
    spread = embedding_spread(embeddings)
    possible = min(len(embeddings) - 1, embeddings.shape[1])  # two images are always on a line
    if spread["embedding_variance"] < DEAD_VARIANCE or (spread["effective_rank"] < DEAD_RANK and possible > 2):
        raise ScanError(
            f"the pretext task has collapsed in epoch {epoch}: all images embed alike (variance "
            f"{spread['embedding_variance']:.1e}, effective rank {spread['effective_rank']:.1f}); lower "
            "pretext.optimizer.lr, raise warmup_epochs, or take another pretext.method"
        )
    return spread
