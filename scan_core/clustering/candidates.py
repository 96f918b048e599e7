"""Groups from stored embeddings: several methods propose clusters, and one proposal is kept without a label.

Each proposal becomes a linear head on the embeddings, so that it groups images that it has not seen, too. Kept is the
head that agrees most with the others: methods err differently, and where they agree they are right more often. Unless
groups differ much in size, see ``choose``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scan_core.clustering.consensus import agreement, consensus
from scan_core.clustering.heads import SHARPNESS, Heads, assign, classify, new_heads, scan_heads
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.settings import FrozenCluster, known_number
from scan_core.clustering.spectral import (
    GRAPH_NEIGHBORS,
    kmeans_clusters,
    modularity,
    shared_neighbors,
    spectral_clusters,
)
from scan_core.clustering.temi import temi_clusters
from scan_core.clustering.turtle import turtle_clusters
from scan_core.errors import ScanError
from scan_core.models.networks import ClusterHeads

LANDMARKS = 200_000  # images at most that are clustered as a whole; all others are seen in batches
KMEANS_STARTS = 5
GRAPH_VOTES = 0.5  # in the consensus, for each head's vote: a whole one makes the consensus a copy of the graph
UNEQUAL = "graph, merged"  # the candidate that does not prefer clusters of equal size
# How many times the modularity must be that of the head that would be kept. Chosen on the last 25 classes of
# Tiny-ImageNet, equal and with tails of 20:1 and 50:1, and on CIFAR-10's animals: python -m experiments.number.
BETTER = 1.05
MINING = (50_000, 0.95, "cpu")  # neighbors among landmarks: rows of an exact search at most, else the recall
# The SCAN loss that starts from proposed clusters.
FROM_CLUSTERS_STEPS, FROM_CLUSTERS_LR = 400, 1e-3
FROM_CLUSTERS_ENTROPY = 2.0  # a large entropy weight would make the clusters equal in size


@dataclass
class Candidates:
    """The proposals as heads, and the one that is kept."""

    names: list[str] = field(default_factory=list)  # of each head
    heads: list[Heads] = field(default_factory=list)  # of one head each
    agreement: list[float] = field(default_factory=list)  # of each head with the methods, see ``agreement``
    kept: int = 0

    def add(self, name: str, heads: Heads) -> None:
        """Adds heads (H,...) under one name."""
        for weight, bias in zip(*heads, strict=True):
            self.names.append(name)
            self.heads.append((weight[None], bias[None]))

    def joined(self) -> Heads:
        """All heads as one."""
        weights, biases = zip(*self.heads, strict=True)
        return torch.cat(weights), torch.cat(biases)


def propose(
    embeddings: np.ndarray, neighbors: np.ndarray, settings: FrozenCluster, seed: int, report: Callable[[str], None]
) -> Candidates:
    """All candidates of ``settings.methods`` for ``embeddings`` (N,D) float32, rows of length 1, and which is kept.

    ``neighbors`` (N,K) are positions, nearest first. ``report`` is called with the name of each method when it starts.
    The methods run in the order below, whatever theirs in the settings. K-means, the graph and the consensus divide the
    first ``LANDMARKS`` images, which are a random part of all if their order is; a head learns to divide the others
    likewise. Raises ``ScanError`` if there are fewer images
    than clusters, as many and only the graph is to divide them, or fewer neighbors than the settings ask for.
    """
    count, clusters, methods = len(embeddings), known_number(settings), settings.methods
    _check_counts(count, neighbors.shape[1], settings)
    points, near = torch.from_numpy(embeddings), torch.from_numpy(neighbors[:, : settings.neighbors])
    generator = torch.Generator().manual_seed(seed)
    found = Candidates()

    landmarks, graph_labels, mined = embeddings[:LANDMARKS], None, None

    def learned(labels: np.ndarray) -> Heads:
        return classify(points[: len(labels)], torch.from_numpy(labels), clusters, generator)

    def refined(heads: Heads) -> Heads:
        plan = (FROM_CLUSTERS_ENTROPY, FROM_CLUSTERS_STEPS, settings.batch_size, FROM_CLUSTERS_LR)
        return scan_heads(points, near, heads, *plan, generator)

    if "kmeans" in methods:
        report("k-means")
        labels, _ = kmeans_clusters(landmarks, clusters, seed, KMEANS_STARTS)
        found.add("k-means", learned(labels))
    if "graph" in methods and clusters < count:  # eigsh finds fewer vectors than rows
        report("graph")
        mined = neighbors if len(landmarks) == count else mine_neighbors(landmarks, GRAPH_NEIGHBORS, *MINING).nearest
        graph_labels, unequal = spectral_clusters(mined, clusters, seed)
        graph = learned(graph_labels)
        found.add("graph", graph)
        found.add("graph, SCAN loss", refined(graph))
        found.add(UNEQUAL, learned(unequal))
    if "scan" in methods:
        report("SCAN loss")
        start = new_heads(settings.heads, clusters, points.shape[1], generator)
        plan = (settings.entropy_weight, settings.steps, settings.batch_size, settings.lr)
        heads = scan_heads(points, near, start, *plan, generator)
        found.add("SCAN loss", heads)
        report("consensus")
        proposals, votes = assign(points[:LANDMARKS], heads).numpy(), [1.0] * settings.heads
        if graph_labels is not None:
            proposals = np.concatenate([proposals, graph_labels[None]])
            votes.append(GRAPH_VOTES * settings.heads)
        together = learned(consensus(proposals, votes, clusters, seed))
        found.add("consensus", together)
        found.add("consensus, SCAN loss", refined(together))
    if "temi" in methods:
        report("TEMI")
        found.add("TEMI", learned(temi_clusters(points, near, clusters, settings.heads, generator)))
    if "turtle" in methods:
        report("TURTLE")
        found.add("TURTLE", learned(turtle_clusters([points], clusters, generator)))
    assigned = assign(points, found.joined()).numpy()
    found.agreement = agreement(assigned, found.names, clusters, UNEQUAL)
    found.kept = choose(found, assigned[:, : len(landmarks)], mined)
    return found


def choose(found: Candidates, assigned: np.ndarray, mined: np.ndarray | None) -> int:
    """The head that agrees most with the others; or the one without a preference for equal sizes, if it divides better.

    The other methods prefer clusters of equal size, so they agree where sizes differ, too, and cut the large ones. The
    modularity of the graph of ``mined`` neighbors (N,K) tells: it rises if a large group is not cut. ``assigned`` (H,N)
    are the clusters under each head; without a graph ``mined`` is None.
    """
    shares = [0.0 if name == UNEQUAL else share for name, share in zip(found.names, found.agreement, strict=True)]
    best = int(np.argmax(shares))
    if mined is None:
        return best
    graph, unequal = shared_neighbors(mined[:, :GRAPH_NEIGHBORS]), found.names.index(UNEQUAL)
    values = {head: modularity(graph, assigned[head]) for head in (best, unequal)}
    return unequal if values[unequal] > BETTER * values[best] else best


def _check_counts(count: int, mined: int, settings: FrozenCluster) -> None:
    """Raises ``ScanError`` if the settings do not fit ``count`` images, each with ``mined`` neighbors."""
    clusters = known_number(settings)
    if clusters > count:
        raise ScanError(f"cluster.num_clusters is {clusters}, but there are {count} images; at most {count} is allowed")
    if clusters == count and settings.methods == ("graph",):
        raise ScanError(
            f"cluster.num_clusters is {clusters}, but cluster.methods is graph alone and there are {count} images; "
            f"at most {count - 1} is allowed"
        )
    if settings.neighbors > mined:
        raise ScanError(
            f"cluster.neighbors is {settings.neighbors}, but {mined} neighbors were mined; lower it or "
            "raise neighbors.k"
        )


def kept_head(candidates: Candidates, points: Tensor) -> ClusterHeads:
    """The head that is kept, as a layer that gives logits, calibrated on ``points`` (N,D).

    Trained until it knows its clusters by heart, it would be sure of every image. Its logits are divided by a
    temperature (Guo et al. 2017), such that its mean confidence is its agreement with the other methods: without
    labels, that is what is known of how often it is right. No image changes its cluster.
    """
    weight, bias = (SHARPNESS * each[0] for each in candidates.heads[candidates.kept])
    logits, wanted = points[:LANDMARKS] @ weight.T + bias, candidates.agreement[candidates.kept]
    low, high = 1e-2, 1e2
    for _ in range(40):  # the mean confidence falls as the temperature rises
        middle = (low * high) ** 0.5
        if (logits / middle).softmax(dim=1).amax(dim=1).mean() > wanted:
            low = middle
        else:
            high = middle
    head = ClusterHeads(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        head.linear.weight.copy_(weight / high)
        head.linear.bias.copy_(bias / high)
    return head
