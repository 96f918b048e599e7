"""Linear heads on stored embeddings: trained on proposed clusters, or by the SCAN loss."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.clustering.losses import scan_loss

BATCH, BLOCK = 512, 16_384  # images at a time, in training and beyond it
SHARPNESS = 10.0  # logits per unit of a linear map: rows of length 1 give small ones
CLASSIFIER_STEPS, CLASSIFIER_LR = 800, 1e-2  # of the classifier that learns proposed clusters

Heads = tuple[Tensor, Tensor]  # weight (H,C,D), bias (H,C)


def new_heads(count: int, clusters: int, dimensions: int, generator: torch.Generator) -> Heads:
    """Random heads, as torch.nn.Linear has them, without a bias."""
    bound = dimensions**-0.5
    weight = (2 * torch.rand(count, clusters, dimensions, generator=generator) - 1) * bound
    return weight, torch.zeros(count, clusters)


def log_probabilities(points: Tensor, heads: Heads) -> Tensor:
    """(B,D) to (H,B,C)."""
    weight, bias = heads
    return F.log_softmax(SHARPNESS * (torch.einsum("bd,hcd->hbc", points, weight) + bias[:, None]), dim=-1)


def assign(points: Tensor, heads: Heads) -> Tensor:
    """(N,D) to (H,N) int64: the most probable cluster under each head."""
    found = torch.empty(len(heads[0]), len(points), dtype=torch.long)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        for row, weight, bias in zip(found, *heads, strict=True):
            row[start : start + BLOCK] = (block @ weight.T + bias).argmax(dim=1)
    return found


def classify(points: Tensor, labels: Tensor, clusters: int, generator: torch.Generator) -> Heads:
    """A linear head that learns ``labels`` (N,) of ``points`` (N,D) by cross-entropy."""
    heads = new_heads(1, clusters, points.shape[1], generator)

    def loss(batch: Tensor, heads: Heads) -> Tensor:
        return F.nll_loss(log_probabilities(points[batch], heads)[0], labels[batch])

    return _train(heads, loss, len(points), BATCH, CLASSIFIER_STEPS, CLASSIFIER_LR, generator)


def scan_heads(
    points: Tensor,
    neighbors: Tensor,
    heads: Heads,
    entropy_weight: float,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> Heads:
    """``heads`` after the SCAN loss (paper, eq. 2) on pairs of ``points`` (N,D) and their ``neighbors`` (N,K)."""

    def loss(batch: Tensor, heads: Heads) -> Tensor:
        partner = neighbors[batch, torch.randint(neighbors.shape[1], (len(batch),), generator=generator)]
        total, _, _ = scan_loss(
            log_probabilities(points[batch], heads), log_probabilities(points[partner], heads), entropy_weight
        )
        return total.sum()

    return _train(heads, loss, len(points), batch_size, steps, lr, generator)


def _train(
    heads: Heads,
    loss: Callable[[Tensor, Heads], Tensor],
    count: int,
    batch_size: int,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Heads:
    """Adam under a half cosine over whole batches of positions (B,), at most half of them at a time."""
    weight, bias = (each.clone().requires_grad_() for each in heads)
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    size, order = max(min(batch_size, count // 2), 1), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        batch, order = order[:size], order[size:]
        optimizer.zero_grad()
        loss(batch, (weight, bias)).backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()
