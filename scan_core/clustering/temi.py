"""TEMI (arXiv 2303.17896) on stored embeddings: a head learns from a slow copy of itself what neighbors share.

The published heads have two hidden layers, whose output of length 1 meets weights of length 1. Here the embeddings,
which have that length, take the place of the hidden layers' output: a step then takes milliseconds on a CPU.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1
BETA = 0.6  # below 1: a cluster that few images use keeps its gradient
TEACHER_MOMENTUM, MEAN_MOMENTUM = 0.996, 0.9  # of the teacher's weights, and of its mean probabilities
WEIGHT_DECAY = 1e-4
BATCH = 512
# Published: 1e-4 for 100 epochs, 20 of which warm up. Heads without hidden layers take a larger rate and fewer steps.
LR, STEPS, WARMUP = 1e-3, 4000, 0.2  # the last as a share of the steps
JUDGED = 0.1  # share of the steps, the last ones, whose mean loss chooses the head


def temi_clusters(
    points: Tensor, neighbors: Tensor, clusters: int, heads: int, generator: torch.Generator, steps: int = STEPS
) -> np.ndarray:
    """(N,) int64 clusters of ``points`` (N,D), rows of length 1: those of the head of the lowest loss, of ``heads``.

    The partner of an image is a random one of its ``neighbors`` (N,K).
    """
    student = F.normalize(torch.randn(heads, clusters, points.shape[1], generator=generator), dim=2)
    teacher, losses = train_heads(points, neighbors, student, generator, steps)
    labels: np.ndarray = (points @ F.normalize(teacher[losses.argmin()], dim=1).T).argmax(dim=1).numpy()
    return labels


def train_heads(
    points: Tensor, neighbors: Tensor, start: Tensor, generator: torch.Generator, steps: int
) -> tuple[Tensor, Tensor]:
    """The teachers (H,C,D) of students that begin as ``start`` (H,C,D), and each head's mean loss (H,) at the end."""
    student, teacher = start.clone().requires_grad_(), start.clone()
    mean, losses = torch.full(start.shape[:2], 1 / start.shape[1]), torch.zeros(len(start))
    optimizer = torch.optim.AdamW([student], lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    warmup, judged = max(round(WARMUP * steps), 1), max(round(JUDGED * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1.0))
    for step in range(steps):
        batch = torch.randint(len(points), (min(BATCH, len(points)),), generator=generator)
        partner = neighbors[batch, torch.randint(neighbors.shape[1], (len(batch),), generator=generator)]
        pair = torch.stack([points[batch], points[partner]])  # (2,B,D)
        taught = log_probabilities(pair, teacher)
        mean.lerp_(taught.exp().mean(dim=(0, 2)), 1 - MEAN_MOMENTUM)
        loss = temi_loss(log_probabilities(pair, student), taught, mean)  # (H,)
        optimizer.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        optimizer.step()
        schedule.step()
        teacher.lerp_(student.detach(), 1 - TEACHER_MOMENTUM)
        if step >= steps - judged:
            losses += loss.detach() / judged
    return teacher, losses


def log_probabilities(pair: Tensor, weight: Tensor) -> Tensor:
    """Images and their partners (2,B,D) under heads (H,C,D) of any length: (2,H,B,C)."""
    cosines = torch.einsum("pbd,hcd->phbc", pair, F.normalize(weight, dim=2))
    return F.log_softmax(cosines / TEMPERATURE, dim=-1)


def temi_loss(student: Tensor, teacher: Tensor, mean: Tensor) -> Tensor:
    """The loss of each head (H,), from log-probabilities (2,H,B,C) of images and their partners.

    ``mean`` (H,C) is the teacher's running mean probability. Of each pair, student and teacher see one image each, both
    ways. A pair on which the teachers of all heads disagree weighs less: it may be of two classes.
    """
    weight = teacher.sum(dim=0).exp().sum(dim=-1).mean(dim=0)  # (B,)
    shared = BETA * (student + teacher.flip(0)) - mean.log()[:, None]
    each = -torch.logsumexp(shared, dim=-1).mean(dim=0)  # (H,B): of both ways
    return (weight * each).mean(dim=-1)
