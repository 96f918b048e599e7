"""What a person's answers say of images that were not asked about: the kind moves, not the image alone.

A few moves say that images of one kind, which are in one group, belong to another: those that are like the moved ones
follow. Answers of all groups say what the groups are: a linear classifier learns them from embeddings that are averaged
with their neighbors' (SGC, Wu et al., arXiv 1902.07153).
"""

import numpy as np

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.spectral import GRAPH_NEIGHBORS, shared_neighbors

KIND = 5  # moves from one group to another that make a kind
LIKE, OWN = 5, 10  # moved images, and images of the group, to which the likeness of an image is a mean
STRICT = 0.35  # share of the moved images that would not follow the others: of that likeness an image follows
OF_EACH = 3  # answers for each group, on average, that say what the groups are
SMOOTHING = 2.0  # weight of the neighbors' mean, beside an image's own embedding
INVERSE_DECAY = 10.0  # sklearn's C
UNASKED, UNASKED_WEIGHT = 1_500, 10.0  # images that hold the classifier where no answer is, and their weight in answers
BLOCK = 4_096
MINING = (50_000, 0.95, "cpu")  # rows of an exact search at most, else the recall


def learn_answers(
    embeddings: np.ndarray, groups: np.ndarray, probabilities: np.ndarray, rows: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """The groups (N,) int64 of all images, if ``rows`` (M,) of them belong to the groups ``answers`` (M,).

    ``embeddings`` (N,D) float32 have length 1; ``groups`` (N,) and ``probabilities`` (N,) are those of the model.
    Images that were asked about have their answers.
    """
    if not len(rows):
        return groups.copy()
    known = np.unique(groups)
    enough = len(rows) >= OF_EACH * len(known) and np.isin(known, answers).all()
    found = (
        by_classifier(embeddings, groups, probabilities, rows, answers)
        if enough else by_kind(embeddings, groups, rows, answers)
    )  # fmt: skip
    found[rows] = answers
    return found


def by_kind(embeddings: np.ndarray, groups: np.ndarray, rows: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The groups (N,) after images have followed those that were moved, each kind out of one group into another.

    An image follows if it is more like the moved images than like its group, by as much as most of them are. An image
    that is more like one that was left where it is stays.
    """
    found, moved = groups.copy(), answers != groups[rows]
    for here, there in sorted({*zip(groups[rows][moved].tolist(), answers[moved].tolist(), strict=True)}):
        kind = rows[moved & (groups[rows] == here) & (answers == there)]
        if len(kind) < KIND:
            continue
        stay = rows[~moved & (groups[rows] == here)]
        others = np.setdiff1d(np.flatnonzero(groups == here), rows)
        own = np.concatenate([others, stay])
        if not len(others):
            continue
        limit = np.quantile(_likeness(embeddings, kind, kind, LIKE) - _likeness(embeddings, kind, own, OWN), STRICT)
        like = _likeness(embeddings, others, kind, LIKE)
        follows = like - _likeness(embeddings, others, own, OWN) >= limit
        if len(stay):
            follows &= like > _likeness(embeddings, others, stay, LIKE)
        found[others[follows]] = there
    return found


def by_classifier(
    embeddings: np.ndarray, groups: np.ndarray, probabilities: np.ndarray, rows: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """The groups (N,) by a logistic regression on answers, and on what the model says of some other images."""
    from sklearn.linear_model import LogisticRegression

    smooth = smoothed(embeddings)
    others = np.setdiff1d(np.arange(len(groups)), rows)
    others = np.random.default_rng(0).permutation(others)[:UNASKED]
    weights = probabilities[others] / probabilities[others].sum().clip(min=1e-9) * UNASKED_WEIGHT
    model = LogisticRegression(C=INVERSE_DECAY, max_iter=400)
    model.fit(
        np.concatenate([smooth[rows], smooth[others]]),
        np.concatenate([answers, groups[others]]),
        np.concatenate([np.ones(len(rows)), weights]),
    )
    predicted: np.ndarray = model.predict(smooth)
    return predicted.astype(np.int64)


def smoothed(embeddings: np.ndarray) -> np.ndarray:
    """(N,D) float32 rows of length 1: each is averaged with its neighbors, weighted by how many they share with it."""
    from scipy.sparse import diags

    near = mine_neighbors(embeddings, min(GRAPH_NEIGHBORS, len(embeddings) - 1), *MINING).nearest
    graph = shared_neighbors(near)
    degrees = diags(np.asarray(graph.sum(axis=1)).ravel().clip(min=1e-9) ** -0.5)
    mixed = embeddings + SMOOTHING * (degrees @ graph @ degrees @ embeddings)
    found: np.ndarray = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True).clip(min=1e-9)).astype(np.float32)
    return found


def _likeness(embeddings: np.ndarray, rows: np.ndarray, to: np.ndarray, count: int) -> np.ndarray:
    """For each of ``rows`` (n,) the mean cosine (n,) with the ``count`` nearest of ``to`` (m,), itself left out."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        cosine = embeddings[block] @ embeddings[to].T
        cosine[block[:, None] == to[None]] = -1
        kept = min(count, max(len(to) - 1, 1))
        found[start : start + BLOCK] = np.partition(cosine, -kept, axis=1)[:, -kept:].mean(axis=1)
    return found
