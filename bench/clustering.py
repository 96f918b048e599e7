"""Groups from stored embeddings: how long each method takes, and all of them on a million images."""

import itertools
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.mining import synthetic_embeddings
from bench.timing import Row
from scan_core.clustering.candidates import propose
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.settings import FrozenCluster
from scan_core.clustering.temi import BATCH, TEACHER_MOMENTUM, TEMPERATURE, temi_loss
from scan_core.clustering.turtle import turtle_clusters

DIMENSIONS = 256  # that embed.dimensions keeps of 1,280
K = 50
METHODS = ("graph", "scan", "temi", "turtle")
PUBLISHED_STEPS = 6000  # of TURTLE
PUBLISHED_EPOCHS, PUBLISHED_HEADS = 100, 50  # of TEMI
LAYERS = 512, 256  # of its heads: the hidden layer, and the one whose output of length 1 meets the clusters' weights


def settings(clusters: int, *methods: str) -> FrozenCluster:
    """Those of the presets of frozen networks."""
    from pipeline.presets import find_preset, read_preset

    cluster = read_preset(find_preset("photos")).cluster
    return FrozenCluster.model_validate({**cluster.model_dump(), "num_clusters": clusters, "methods": methods})


def measure(count: int = 25_000, clusters: int = 50) -> list[Row]:
    """Each method alone, with what it shares with the others: candidates become heads, and one is kept."""
    vectors = synthetic_embeddings(count, DIMENSIONS, clusters)
    near = mine_neighbors(vectors, K, count, 1.0).nearest
    rows = []
    for method in METHODS:
        started = time.perf_counter()
        propose(vectors, near, settings(clusters, method), 0, lambda _: None)
        seconds, most = time.perf_counter() - started, 60 if method == "graph" else 240
        note = f"{seconds:.0f} s (target: at most {most})"
        rows.append(Row(f"{method}, {count:,} x {DIMENSIONS}, {clusters} groups", count / seconds, note=note))
    return rows


def measure_published(count: int = 25_000, clusters: int = 50, steps: int = 200) -> list[Row]:
    """TURTLE as published: all 1,280 dimensions, and 10,000 images in each of 6,000 steps, all of which cost the same.

    Only ``steps`` of them are timed.
    """
    vectors = torch.from_numpy(synthetic_embeddings(count, 1280, clusters))
    started = time.perf_counter()
    turtle_clusters([vectors], clusters, torch.Generator().manual_seed(0), steps=steps, rows=10_000)
    seconds = time.perf_counter() - started
    what = f"turtle as published, {count:,} x 1280, {clusters} groups"
    whole = seconds * PUBLISHED_STEPS / steps
    note = f"{steps} of {PUBLISHED_STEPS:,} steps in {seconds:.0f} s, so {whole / 60:.0f} min for all"
    return [Row(what, count / whole, note=note)]


def measure_published_temi(count: int = 25_000, clusters: int = 50, steps: int = 20) -> list[Row]:
    """TEMI as published: heads with hidden layers on all 1,280 dimensions, of whose equal steps ``steps`` are timed."""
    points = torch.from_numpy(synthetic_embeddings(count, 1280, clusters))
    generator = torch.Generator().manual_seed(0)
    sizes = [1280, *LAYERS, clusters]
    shapes = [(PUBLISHED_HEADS, outputs, inputs) for inputs, outputs in itertools.pairwise(sizes)]
    teacher = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]
    student = [each.clone().requires_grad_() for each in teacher]
    optimizer = torch.optim.AdamW(student, lr=1e-4, weight_decay=1e-4, fused=True)
    mean = torch.full((PUBLISHED_HEADS, clusters), 1 / clusters)
    started = time.perf_counter()
    for _ in range(steps):
        pair = points[torch.randint(count, (2, BATCH), generator=generator)]  # (2,B,D); which ones does not matter here
        with torch.no_grad():
            taught = hidden_head(pair, teacher)
        loss = temi_loss(hidden_head(pair, student), taught, mean).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        optimizer.step()
        for slow, fast in zip(teacher, student, strict=True):
            slow.lerp_(fast.detach(), 1 - TEACHER_MOMENTUM)
    seconds, all_steps = time.perf_counter() - started, PUBLISHED_EPOCHS * (count // BATCH)
    whole = seconds * all_steps / steps
    note = f"{steps} of {all_steps:,} steps in {seconds:.0f} s, so {whole / 3600:.1f} hours for all"
    return [Row(f"temi as published, {count:,} x 1280, {clusters} groups", count / whole, note=note)]


def hidden_head(pair: Tensor, weights: list[Tensor]) -> Tensor:
    """Log-probabilities (2,H,B,C) of images and their partners (2,B,D) under H heads of three layers."""
    hidden = F.gelu(torch.einsum("pbd,hed->phbe", pair, weights[0]))
    points = F.normalize(torch.einsum("phbe,hfe->phbf", hidden, weights[1]), dim=-1)
    return F.log_softmax(torch.einsum("phbf,hcf->phbc", points, F.normalize(weights[2], dim=2)) / TEMPERATURE, dim=-1)


def measure_million(count: int = 1_000_000, dimensions: int = 384, clusters: int = 100) -> list[Row]:
    """All that a run does with stored embeddings before it is evaluated."""
    vectors = synthetic_embeddings(count, dimensions)
    started = time.perf_counter()
    near = mine_neighbors(vectors, K, 200_000, 0.95).nearest
    mined = time.perf_counter()
    propose(vectors, near, settings(clusters, "kmeans", "graph", "scan"), 0, lambda _: None)
    ended = time.perf_counter()
    note = f"neighbors {mined - started:.0f} s, then k-means, graph, SCAN loss and consensus {ended - mined:.0f} s"
    return [Row(f"{count:,} x {dimensions}, {clusters} groups", count / (ended - started), note=note)]
