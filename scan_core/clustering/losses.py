"""Losses of clustering as pure functions of float32 tensors, each with its equation."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def scan_loss(
    anchors: Tensor,
    neighbors: Tensor,
    entropy_weight: float,
    prior: Tensor | None = None,
    entropy_of: str = "anchors",
) -> tuple[Tensor, Tensor, Tensor]:
    """The SCAN objective (paper, eq. 2): total, consistency and entropy, each (...,).

    ``anchors`` and ``neighbors`` are log-probabilities (...,B,C). Everything is computed in log space, so
    a cluster that no image uses keeps its gradient; clamping its probability would zero it. ``entropy_of`` is
    ``anchors`` or ``both``; see ``imbalance`` for ``prior``.
    """
    consistency = -torch.logsumexp(anchors + neighbors, dim=-1).mean(dim=-1)
    balanced = anchors if entropy_of == "anchors" else torch.cat([anchors, neighbors], dim=-2)
    return consistency + entropy_weight * imbalance(balanced, prior), consistency, mean_entropy(balanced)


def imbalance(log_probabilities: Tensor, prior: Tensor | None) -> Tensor:
    """The term that λ weighs: minus the entropy of the mean prediction, or its KL divergence from ``prior`` (C,).

    (...,B,C) log-probabilities to (...,).
    """
    negative_entropy = -mean_entropy(log_probabilities)
    if prior is None:
        return negative_entropy
    return negative_entropy - (_log_mean(log_probabilities).exp() * prior.log()).sum(dim=-1)


def mean_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats of the mean prediction: (...,B,C) log-probabilities to (...,)."""
    log_mean = _log_mean(log_probabilities)
    return -(log_mean.exp() * log_mean).sum(dim=-1)


def _log_mean(log_probabilities: Tensor) -> Tensor:
    return torch.logsumexp(log_probabilities, dim=-2) - math.log(log_probabilities.shape[-2])


def confident_cross_entropy(strong: Tensor, weak: Tensor, threshold: float, class_weights: bool) -> Tensor:
    """Self-labeling (paper, section 2.3): cross-entropy of strong views against confident pseudo-labels. Scalar.

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
