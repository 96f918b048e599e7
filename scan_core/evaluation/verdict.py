"""How far groups can be trusted, without labels: a word for the whole and for each group.

The whole is compared with the same steps on destroyed features: each dimension is permuted over the images, which keeps
every distribution and leaves no structure. A group is judged by how well it holds together, alone and in new
clusterings of half of the images. Whether an image belongs to its group is told by ``belonging``.
"""

from dataclasses import dataclass

import numpy as np

from scan_core.errors import ScanError

STRONG, WEAK, NONE = "strong", "weak", "none"  # of groups and of the whole

SAMPLE, ROWS_PER_GROUP = 5_000, 20  # images that are looked at: as many, or so many for each group
FEWEST = 10  # images of a group; of fewer nothing can be said
NEIGHBORS = 10
HALVES = 4  # of the images that are clustered anew
DESTROYED, STARTS = 3, 2  # times that features are destroyed, and starts of k-means on each
MIDDLE = 0.25  # an image this near to the boundary lies in the middle: 0 is the boundary, 1 the group's own center
BLOCK = 2_048  # rows at a time

# Two logistic models, fitted on draws from the last 25 classes of Tiny ImageNet and from the animals of CIFAR-10, as
# EfficientNet-lite0 sees them (128 pixels, 256 dimensions kept): 24 draws of 3 to 24 classes, 16 of one class, 8 with
# permuted dimensions. The first tells draws of several classes from all others; its bias is moved to the middle between
# the two kinds. The second expects the share of a group's images that are of its most frequent class; its threshold for
# *strong* is that above which 88 % of the images are, in cross-validation. No other set was looked at.
STRUCTURE_BIAS, STRUCTURE_WEIGHTS = -5.97, {"agreement": 8.08, "margin": 2.26, "density": 14.29}
PURITY_BIAS = -1.54
PURITY_WEIGHTS = {"agreement": 1.89, "stability": 1.59, "halves": -0.98, "likeness": 3.61, "relative_size": -1.39}
STRONG_PURITY, WEAK_PURITY = 0.86, 0.5  # that the second model expects of a group
STRONG_WHOLE = 0.5  # share of the images in strong groups, if the whole is strong


@dataclass(frozen=True)
class GroupVerdict:
    """The word of one group and its reasons."""

    word: str
    size: int  # of all images
    figures: dict[str, float]  # see ``group_figures``, and ``purity``, which the model expects; empty for few images


@dataclass(frozen=True)
class Verdict:
    """The words of the whole and of each of C groups, and their reasons."""

    word: str
    # See ``whole_figures``. ``structure`` is above 0 if there are groups, ``purity`` is expected of all images.
    figures: dict[str, float]
    groups: tuple[GroupVerdict, ...]


def judge_groups(embeddings: np.ndarray, clusters: np.ndarray, num_clusters: int, seed: int) -> Verdict:
    """The verdict on ``clusters`` (N,) of ``embeddings`` (N,D) float32, rows of length 1 in a random order.

    Only the first rows are looked at: time and memory do not grow with N. A group is *none* if it has fewer than
    ``FEWEST`` images there, and every group is if the whole is. Raises ``ScanError`` if clusters are not whole numbers
    in [0, C), one for each row, or if a row is not finite.
    """
    check_groups(embeddings, clusters, num_clusters)
    sizes = np.bincount(clusters, minlength=num_clusters)
    count = max(SAMPLE, ROWS_PER_GROUP * num_clusters)
    rows, members = embeddings[:count], clusters[:count]
    nothing = Verdict(NONE, {}, tuple(GroupVerdict(NONE, int(size), {}) for size in sizes))
    if len(rows) < max(2 * num_clusters, FEWEST) or len(np.unique(members)) < 2:
        return nothing
    whole, groups = whole_figures(rows, members, seed), group_figures(rows, members, num_clusters, seed)
    whole["structure"] = STRUCTURE_BIAS + sum(weight * whole[name] for name, weight in STRUCTURE_WEIGHTS.items())
    purity = 1 / (1 + np.exp(-PURITY_BIAS - sum(weight * groups[name] for name, weight in PURITY_WEIGHTS.items())))
    judged, few = [], np.bincount(members, minlength=num_clusters) < FEWEST
    for group, size in enumerate(sizes):
        figures = {name: float(values[group]) for name, values in groups.items()} | {"purity": float(purity[group])}
        if few[group]:
            judged.append(GroupVerdict(NONE, int(size), {}))
        elif whole["structure"] <= 0 or purity[group] < WEAK_PURITY:
            judged.append(GroupVerdict(NONE, int(size), figures))
        else:
            judged.append(GroupVerdict(STRONG if purity[group] >= STRONG_PURITY else WEAK, int(size), figures))
    words = np.array([each.word for each in judged])
    whole["purity"] = float(purity @ sizes / sizes.sum())
    whole["strong_share"] = float(sizes[words == STRONG].sum() / sizes.sum())
    if (words == NONE).all():
        return Verdict(NONE, whole, tuple(judged))
    return Verdict(STRONG if whole["strong_share"] >= STRONG_WHOLE else WEAK, whole, tuple(judged))


def check_groups(embeddings: np.ndarray, clusters: np.ndarray, num_clusters: int) -> None:
    """Raises ``ScanError`` if ``clusters`` (N,) are not those of ``embeddings`` (N,D), or if a row is not finite."""
    if len(embeddings) != len(clusters):
        raise ScanError(f"there are {len(embeddings)} embeddings and {len(clusters)} clusters; one for each is allowed")
    if clusters.size and (clusters.min() < 0 or clusters.max() >= num_clusters):
        raise ScanError(f"clusters are {clusters.min()} to {clusters.max()}; 0 to {num_clusters - 1} is allowed")
    if not np.isfinite(embeddings).all():
        raise ScanError("embeddings are not finite: the network has died or diverged")


def whole_figures(rows: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, float]:
    """How much more structure the groups of ``rows`` (N,D) have than groups of destroyed features.

    ``agreement`` is the excess of pairs of neighbors in one group, as a share of what is possible. ``margin`` is the
    share by which the images in the middle between two groups are fewer. ``density`` is the excess of the cosine with
    the neighbors.
    """
    rng = np.random.default_rng(seed)
    _, members = np.unique(clusters, return_inverse=True)
    real, by_chance = _structure(rows, members, rng), []
    for _ in range(DESTROYED):
        permuted = unit_rows(rng.permuted(rows, axis=0))
        by_chance.append(_structure(permuted, _kmeans(permuted, int(members.max()) + 1, rng, STARTS)[0], rng))
    # The most that chance reached: with few groups, k-means finds more in one try than in another.
    together, middles, cosines = zip(*by_chance, strict=True)
    chance, middle, cosine = max(together), min(middles), min(cosines)
    least = 1e-6  # what can be gained where nothing can
    return {
        "agreement": (real[0] - chance) / max(1 - chance, least),
        "margin": 1 - real[1] / max(middle, least),
        "density": (real[2] - cosine) / max(1 - cosine, least),
    }


def _structure(rows: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """The share of neighbors in the own group, the share of images in the middle, and the cosine with neighbors."""
    nearest, cosine = nearest_rows(rows, NEIGHBORS)
    agreement = float((members[nearest] == members[:, None]).mean())
    return agreement, float((_crossed_margins(rows, members, rng) < MIDDLE).mean()), float(cosine.mean())


def _crossed_margins(rows: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) how far each image lies from the boundary with the nearest other group: 0 on it, 1 at its own center.

    The centers are those of the other half of the images: an image is always near to a center that it is a part of.
    """
    half, margins = rng.permutation(len(rows)) % 2, np.zeros(len(rows))
    for part in (0, 1):
        here = np.flatnonzero(half == part)
        centers, sizes = _centers(rows[half != part], members[half != part], int(members.max()) + 1)
        squared = _squared(rows[here], centers, sizes)
        place, own = np.arange(len(here)), members[here]
        to_own = squared[place, own]
        squared[place, own] = np.inf
        rival = squared.argmin(axis=1)
        gap = ((centers[own] - centers[rival]) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore"):  # a group that the other half lacks
            margins[here] = (squared[place, rival] - to_own) / np.maximum(gap, 1e-12)
    return np.nan_to_num(margins, nan=0.0, neginf=-1e6, posinf=1e6)


def group_figures(rows: np.ndarray, clusters: np.ndarray, num_clusters: int, seed: int) -> dict[str, np.ndarray]:
    """(C,) figures of each group of ``rows`` (N,D), which are images in a random order.

    ``agreement`` is the share of its images' neighbors in it. ``stability`` is the Jaccard coefficient with the most
    similar cluster of k-means on half of the images, a mean over halves (Hennig 2007). ``halves`` is how well two parts
    of it can be told apart by neighbors, above chance: a group of two classes has such parts. ``likeness`` is the mean
    cosine of two of its images. ``relative_size`` is the logarithm of its size in units of the mean.
    """
    rng = np.random.default_rng(seed)
    nearest, _ = nearest_rows(rows, NEIGHBORS)
    sizes = np.bincount(clusters, minlength=num_clusters)
    same = (clusters[nearest] == clusters[:, None]).mean(axis=1)
    centers, _ = _centers(rows, clusters, num_clusters)
    length = (centers**2).sum(axis=1)
    return {
        "agreement": np.bincount(clusters, same, minlength=num_clusters) / np.maximum(sizes, 1),
        "stability": _stability(rows, clusters, num_clusters, rng),
        "halves": np.array([_halves(rows[clusters == group], rng) for group in range(num_clusters)]),
        "likeness": (sizes * length - 1) / np.maximum(sizes - 1, 1),
        "relative_size": np.log(np.maximum(sizes, 1) * num_clusters / len(rows)),
    }


def _stability(rows: np.ndarray, clusters: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """(C,) see ``group_figures``."""
    found = np.zeros(num_clusters)
    sizes = np.bincount(clusters, minlength=num_clusters)
    for _ in range(HALVES):
        _, centers = _kmeans(rows[rng.permutation(len(rows))[: len(rows) // 2]], num_clusters, rng)
        again = _squared(rows, centers, np.ones(num_clusters)).argmin(axis=1)
        both = np.zeros((num_clusters, num_clusters))
        np.add.at(both, (clusters, again), 1)
        either = sizes[:, None] + both.sum(axis=0) - both
        found += (both / np.maximum(either, 1)).max(axis=1) / HALVES
    return found


def _halves(rows: np.ndarray, rng: np.random.Generator) -> float:
    """The agreement of neighbors among ``rows`` (n,D) on two clusters of them: 0 as chance has it, 1 all of it."""
    rows = rows[: SAMPLE // 5]
    if len(rows) < 2 * FEWEST:
        return 0.0
    parts, _ = _kmeans(rows, 2, rng)
    nearest, _ = nearest_rows(rows, min(NEIGHBORS, len(rows) // 3))
    share = float(parts.mean())
    chance = share**2 + (1 - share) ** 2
    return float(((parts[nearest] == parts[:, None]).mean() - chance) / (1 - chance)) if chance < 1 else 0.0


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """``rows`` (N,D) as float32 of length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled


def _centers(rows: np.ndarray, clusters: np.ndarray, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (C,D) float64 and sizes (C,) of groups."""
    sizes, sums = np.bincount(clusters, minlength=num_clusters), np.zeros((num_clusters, rows.shape[1]))
    np.add.at(sums, clusters, rows)
    return sums / np.maximum(sizes, 1)[:, None], sizes


def _squared(rows: np.ndarray, centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,C) float64 squared distances; infinite from the center of an empty group."""
    squared = (rows**2).sum(axis=1, dtype=np.float64)[:, None] + (centers**2).sum(axis=1) - 2 * (rows @ centers.T)
    return np.where(np.asarray(sizes) > 0, np.maximum(squared, 0), np.inf)


def nearest_rows(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cosines (N,k) of the rows most similar to each row, itself excluded, in any order."""
    k = min(k, len(rows) - 1)
    nearest, cosine = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    for start in range(0, len(rows), BLOCK):
        products = rows[start : start + BLOCK] @ rows.T  # (B,N)
        products[np.arange(len(products)), start + np.arange(len(products))] = -np.inf
        found = np.argpartition(-products, k - 1, axis=1)[:, :k]
        nearest[start : start + BLOCK], cosine[start : start + BLOCK] = found, np.take_along_axis(products, found, 1)
    return nearest, cosine


def _kmeans(
    rows: np.ndarray, num_clusters: int, rng: np.random.Generator, starts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters (N,) and centers (C,D) by k-means, the best of ``starts``."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):  # its sums depend on the number of threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters
        fitted = KMeans(num_clusters, n_init=starts, max_iter=50, random_state=int(rng.integers(2**31))).fit(rows)
    return fitted.labels_.astype(np.int64), fitted.cluster_centers_
