"""Groups from stored embeddings: how long each method takes, and all of them on a million images."""

import time

import torch

from bench.mining import synthetic_embeddings
from bench.timing import Row
from scan_core.clustering.candidates import propose
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.settings import FrozenCluster
from scan_core.clustering.turtle import turtle_clusters

DIMENSIONS = 256  # that embed.dimensions keeps of 1,280
K = 50
METHODS = ("graph", "scan", "temi", "turtle")
PUBLISHED_STEPS = 6000  # of TURTLE


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
