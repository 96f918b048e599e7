"""Losses as pure functions of float32 tensors, each with the equation it is."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, eq. 1), both views as anchors.

    ``first`` and ``second`` are (B,D) float32, row b of each a view of image b; they are normalised here. Scalar.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)  # (2B,D)
    similarity = views @ views.T / temperature  # (2B,2B)
    similarity.fill_diagonal_(float("-inf"))
    batch = len(first)
    partner = torch.arange(2 * batch, device=views.device).roll(batch)  # b -> b + B, b + B -> b
    return F.cross_entropy(similarity, partner)


def scan_loss(anchors: Tensor, neighbors: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The SCAN objective (paper, eq. 2): total, consistency and entropy, each (...,).

    ``anchors`` and ``neighbors`` are log-probabilities (...,B,C). All in log space: a cluster that no image uses keeps
    its gradient, where clamping its probability would end it.
    """
    consistency = -torch.logsumexp(anchors + neighbors, dim=-1).mean(dim=-1)
    entropy = mean_entropy(anchors)
    return consistency - entropy_weight * entropy, consistency, entropy


def mean_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats of the mean prediction: (...,B,C) log-probabilities to (...,)."""
    log_mean = torch.logsumexp(log_probabilities, dim=-2) - math.log(log_probabilities.shape[-2])
    return -(log_mean.exp() * log_mean).sum(dim=-1)


def confident_cross_entropy(strong: Tensor, weak: Tensor, threshold: float, class_weights: bool) -> Tensor:
    """Self-labelling (paper, section 2.3): cross-entropy of strong views against confident pseudo-labels. Scalar.

    ``strong`` are logits (B,C) of the strong views; ``weak`` log-probabilities (B,C) of the plain ones, no gradient.
    Only rows whose largest probability exceeds ``threshold`` count; ``class_weights`` weighs them inversely to how
    often their pseudo-label occurs among them. Without a confident row the loss is 0 and has no gradient.
    """
    confidence, label = weak.detach().exp().max(dim=1)  # (B,)
    confident = confidence > threshold
    weight = confident.to(strong.dtype)
    if class_weights:
        frequency = torch.zeros(strong.shape[1], dtype=strong.dtype, device=strong.device).scatter_add_(
            0, label, weight
        )
        weight = weight / frequency.clamp(min=1)[label]
    each = F.cross_entropy(strong, label, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=torch.finfo(strong.dtype).tiny)
