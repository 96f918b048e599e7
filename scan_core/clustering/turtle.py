"""TURTLE (arXiv 2406.07236): the labels that linear classifiers learn fastest in every space of features.

A labeling is good if classifiers that start anew and take a few steps already predict it. It is changed for that, while
the classifiers are held fixed; the entropy of its mean keeps it from putting all images into one cluster.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scan_core.clustering.losses import mean_entropy

GAMMA = 10.0  # weight of the entropy
INNER_STEPS = 10  # of a classifier
LR = 1e-3  # Adam's, of classifiers and labeling
# Published: 10,000 images in each step, which takes about four times as long as 2,000.
STEPS, ROWS = 6000, 2000

Linear = tuple[Tensor, Tensor]  # weight (C,D), bias (C,)
Labeling = list[tuple[Tensor, ...]]  # of each space: direction (C,D) and length (C,) of the weight, bias (C,)


def turtle_clusters(
    spaces: list[Tensor], clusters: int, generator: torch.Generator, steps: int = STEPS, rows: int = ROWS
) -> np.ndarray:
    """(N,) int64 clusters of images whose features are ``spaces``, one or several, each (N,D) of its own D.

    Each space is scaled to rows whose squared length is D on average, as standardized features have it: in rows of
    length 1 a classifier learns next to nothing in its few steps.
    """
    spaces = [each * math.sqrt(each.shape[1] / float(each.square().sum(dim=1).mean())) for each in spaces]
    start = [new_linear(clusters, each.shape[1], generator) for each in spaces]
    labeling = train_labeling(spaces, [(each, each.norm(dim=1), bias) for each, bias in start], generator, steps, rows)
    labels: np.ndarray = label(spaces, labeling).exp().mean(dim=0).argmax(dim=1).numpy()
    return labels


def train_labeling(
    spaces: list[Tensor], start: Labeling, generator: torch.Generator, steps: int, rows: int
) -> Labeling:
    """The labeling of ``spaces``, each (N,D), after ``steps`` on ``rows`` images each, or on all if there are fewer."""
    labeling: Labeling = [tuple(part.clone().requires_grad_() for part in each) for each in start]
    optimizer = torch.optim.Adam([part for each in labeling for part in each], lr=LR, fused=True)
    for _ in range(steps):
        batch = torch.randperm(len(spaces[0]), generator=generator)[:rows]
        points = [space[batch] for space in spaces]
        given = label(points, labeling)  # (K,B,C)
        targets = given.detach().exp().mean(dim=0)
        learned = torch.stack([classified(each, targets, generator) for each in points])
        optimizer.zero_grad()
        turtle_loss(given, learned).backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        optimizer.step()
    return [tuple(part.detach() for part in each) for each in labeling]


def new_linear(clusters: int, dimensions: int, generator: torch.Generator) -> Linear:
    """A random map, as torch.nn.Linear has it, without a bias."""
    weight = (2 * torch.rand(clusters, dimensions, generator=generator) - 1) * dimensions**-0.5
    return weight, torch.zeros(clusters)


def label(points: list[Tensor], labeling: Labeling) -> Tensor:
    """Log-probabilities (K,B,C) that each space's weight-normalized map gives to its points (B,D)."""
    maps = [(length[:, None] * F.normalize(direction, dim=1), bias) for direction, length, bias in labeling]
    return torch.stack([F.linear(each, *map_).log_softmax(dim=1) for each, map_ in zip(points, maps, strict=True)])


def classified(points: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Log-probabilities (B,C) of ``points`` (B,D) under a new classifier after its steps of Adam towards ``targets``.

    The targets (B,C) are probabilities. The gradient of cross-entropy is written out; none is recorded.
    """
    weight, bias = new_linear(targets.shape[1], points.shape[1], generator)
    optimizer = torch.optim.Adam([weight, bias], lr=LR, fused=True)
    for _ in range(INNER_STEPS):
        error = (F.linear(points, weight, bias).softmax(dim=1) - targets) / len(points)
        weight.grad, bias.grad = error.T @ points, error.sum(dim=0)
        optimizer.step()
    return F.linear(points, weight, bias).log_softmax(dim=1)


def turtle_loss(given: Tensor, learned: Tensor) -> Tensor:
    """The labeling's loss, a scalar, from log-probabilities (K,B,C) of each space's labels and of its classifier.

    The classifiers' cross-entropy against the mean label of all spaces, minus γ times the entropy of each space's mean
    label over the batch. Both are sums over spaces.
    """
    cross_entropy = -(given.exp().mean(dim=0) * learned).sum(dim=-1).mean(dim=1)  # (K,)
    return (cross_entropy - GAMMA * mean_entropy(given)).sum()
