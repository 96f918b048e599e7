"""How many groups there are.

The graph of neighbors is divided into each of a range of numbers of groups. A number is good if the groups are apart in
the embeddings: too few groups hold what is unlike, too many cut what is alike. Modularity and the agreement with the
groups of k-means were tried beside that on the sets of the fit, and made it no better.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.spectral import GRAPH_NEIGHBORS, eigenvectors, kmeans_clusters, unit_rows
from scan_core.evaluation.quality import silhouettes

SAMPLE = 6_000  # images at most that are looked at
MOST = 100  # groups that are tried
FEWEST = 8  # images of a group, on average
STEP = 1.12  # from one number to the next, beyond ten
STARTS, KMEANS_STARTS = 4, 2  # of k-means, for the graph and for the embeddings
# Weight of the mean over groups, beside the mean over images, both as shares of their maximum. Fitted on the last 25
# classes of Tiny-ImageNet, 3 to 25 of them, equal and with tails, and on CIFAR-10's animals.
BY_GROUP = 0.5
WIDTH = 2.0  # the interval's upper end, in units of its lower one


@dataclass(frozen=True)
class Division:
    """A number of groups, and how well the images fall into so many."""

    groups: int
    score: float  # from the two silhouettes: at most 1
    silhouette: float  # of the graph's groups, in the embeddings: the mean over images
    silhouette_by_group: float  # the mean over groups of their means
    agreement: float  # adjusted Rand index between the graph's groups and those of k-means, for the reader alone
    largest: float  # share of the images in the largest of the graph's groups
    smallest: float


@dataclass(frozen=True)
class Estimate:
    """The number of groups, the interval in which it may be, and all numbers that were tried."""

    number: int
    low: int
    high: int
    tried: list[Division]

    def as_json(self) -> dict[str, object]:
        """What ``data/groups.json`` holds."""
        return {"given": False, **asdict(self)}


def estimate_number(
    embeddings: np.ndarray, numbers: Sequence[int], seed: int, report: Callable[[int], None]
) -> Estimate:
    """Which of ``numbers`` is the number of groups of ``embeddings`` (N,D) float32, rows of length 1.

    Their order is random: the first ``SAMPLE`` are looked at. ``report`` is called with how many numbers were tried.
    """
    tried = divide(embeddings[:SAMPLE], numbers, seed, report)
    scores = [each.score for each in tried]
    number = tried[int(np.argmax(scores))].groups
    low, high = interval(tried, number)
    return Estimate(number, low, high, tried)


def numbers_to_try(count: int) -> list[int]:
    """2, 3, … 10, and then a geometric series, up to ``MOST`` or what ``count`` images allow. Two is the least."""
    numbers = [*range(2, 11)]
    while numbers[-1] < MOST:
        numbers.append(max(numbers[-1] + 1, round(numbers[-1] * STEP)))
    most = max(min(MOST, min(count, SAMPLE) // FEWEST), 2)
    return [number for number in numbers if number <= most]


def divide(points: np.ndarray, numbers: Sequence[int], seed: int, report: Callable[[int], None]) -> list[Division]:
    """``points`` (N,D) divided into each of ``numbers``, which are less than N."""
    from sklearn.metrics import adjusted_rand_score

    neighbors = mine_neighbors(points, min(GRAPH_NEIGHBORS, len(points) - 1), len(points), 1.0, "cpu").nearest
    vectors = eigenvectors(neighbors, max(numbers), seed)[1]
    measured = []
    for number in numbers:
        of_graph, _ = kmeans_clusters(unit_rows(vectors[:, :number]), number, seed, STARTS)
        of_points, _ = kmeans_clusters(points, number, seed, KMEANS_STARTS)
        measured.append((*apart(points, of_graph), adjusted_rand_score(of_graph, of_points), *extremes(of_graph)))
        report(len(measured))
    best = np.max(measured, axis=0).clip(min=1e-9)
    scores = (np.array(measured) / best)[:, :2] @ [1, BY_GROUP] / (1 + BY_GROUP)
    return [
        Division(number, float(score), *map(float, each))
        for number, score, each in zip(numbers, scores, measured, strict=True)
    ]


def apart(points: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The silhouette as a mean over ``points`` (N,D), and as a mean over the ``clusters`` (N,) that are used."""
    values = silhouettes(points, clusters)
    if values is None:
        return 0.0, 0.0
    sizes = np.bincount(clusters)
    return float(values.mean()), float((np.bincount(clusters, values) / sizes.clip(min=1))[sizes > 0].mean())


def extremes(clusters: np.ndarray) -> tuple[float, float]:
    """The shares of ``clusters`` (N,) that the largest and the smallest of them have."""
    sizes = np.bincount(clusters)
    return float(sizes.max() / len(clusters)), float(sizes[sizes > 0].min() / len(clusters))


def interval(tried: list[Division], number: int) -> tuple[int, int]:
    """The range around ``number``, its ends at most ``WIDTH`` apart, in which the mean score is highest.

    The mean is over the logarithm of the number: ten to twenty groups count as much as twenty to forty.
    """
    numbers, scores = np.array([each.groups for each in tried]), np.array([each.score for each in tried])
    best, found = -np.inf, (number, number)
    for low in numbers[(numbers <= number) & (numbers * WIDTH >= number)].tolist():
        grid = np.geomspace(low, min(low * WIDTH, numbers[-1]), 50)
        mean = float(np.interp(np.log(grid), np.log(numbers), scores).mean())
        if mean > best:
            best, found = mean, (low, max(int(min(low * WIDTH, numbers[-1])), number))
    return found
