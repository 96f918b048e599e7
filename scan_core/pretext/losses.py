"""Losses of the pretext tasks as pure functions of float32 tensors, each with its equation."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalized temperature-scaled cross-entropy (SimCLR, eq. 1), both views as anchors.

    ``first`` and ``second`` are (B,D) float32, row b of each is a view of image b; both are normalized here. Scalar.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)  # (2B,D)
    similarity = views @ views.T / temperature  # (2B,2B)
    similarity.fill_diagonal_(float("-inf"))
    batch = len(first)
    partner = torch.arange(2 * batch, device=views.device).roll(batch)  # b -> b + B, b + B -> b
    return F.cross_entropy(similarity, partner)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Contrastive loss against a queue (MoCo, arXiv 1911.05722, eq. 1). Scalar.

    ``queries`` and ``keys`` are (B,D), row b of each is a view of image b; ``queue`` (Q,D) are the negatives. All are
    float32 with unit rows. Keys and queue have no gradient.
    """
    positive = (queries * keys.detach()).sum(dim=1, keepdim=True)  # (B,1)
    logits = torch.cat([positive, queries @ queue.detach().T], dim=1) / temperature  # (B,1+Q)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def memory_bank_nce(positive: Tensor, noise: Tensor, log_z: Tensor, count: int) -> Tensor:
    """Noise-contrastive estimation against a memory bank (Wu et al., arXiv 1805.01978, eqs. 4-7). Scalar.

    ``positive`` (B,) and ``noise`` (B,m) are similarities over temperature of each image with its own entry and with m
    entries drawn uniformly from all ``count``; ``log_z`` is the log of the constant Z. With P(i|v) = exp(similarity)/Z
    and uniform noise, h = P / (P + m/count) is the probability that an entry is the image's own.
    """
    log_noise = math.log(noise.shape[1] / count)
    own = F.logsigmoid(positive - log_z - log_noise)  # log h
    other = F.logsigmoid(log_noise + log_z - noise).sum(dim=1)  # log (1 - h), each of the m
    return -(own + other).mean()


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """2 - 2 cos of (B,D) predictions and the target's projections, which get no gradient (BYOL, eq. 2). Scalar."""
    return 2 - 2 * F.cosine_similarity(predictions, targets.detach(), dim=1).mean()
