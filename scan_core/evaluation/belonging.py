"""Whether each image belongs to its group, without labels: sure, to check, or fits nowhere.

An image fits nowhere if its nearest neighbors among the images that were grouped are further away than those of nearly
all images of its group (Sun et al., arXiv 2204.06507). Distances are taken between the networks' own features, of unit
length but not reduced: a reduction keeps the dimensions in which the grouped images differ, and images of another kind
differ from them in others.
"""

from dataclasses import dataclass

import numpy as np

from scan_core.evaluation.verdict import NONE, Verdict, unit_rows

SURE, CHECK, NOWHERE = "sure", "to check", "fits nowhere"

BANK = 4_000  # images that are kept: 10 MB of 1,280 dimensions
COPY = 1e-5  # images whose cosine is this near to 1 are one: an image of the bank is not its own neighbor
BLOCK = 2_048  # rows at a time

# Fitted on the same draws as the constants of ``verdict``.
NEIGHBORS = 5  # the distance is that of the last of them
VOTERS = 10  # neighbors whose groups count
ODD = 0.04  # of a group's own images lie beyond its limit


@dataclass(frozen=True)
class Belonging:
    """What ``judge_images`` needs of the images that were grouped, beside the bank."""

    members: np.ndarray  # (M,) int64: the groups of the bank's images
    limits: np.ndarray  # (C,) float32: the cosine with the last neighbor that few of a group's images fall below
    trusted: np.ndarray  # (C,) bool: groups that are strong or weak


def bank_of(features: list[np.ndarray]) -> np.ndarray:
    """The first ``BANK`` of N images, (M,F) float16 rows of length 1; see ``joined``. Their order is random."""
    return joined([space[:BANK] for space in features]).astype(np.float16)


def joined(features: list[np.ndarray]) -> np.ndarray:
    """One matrix (N,F) float32 from features (N,F_k) of each network: each row of length 1, and so is the whole."""
    return unit_rows(np.concatenate([unit_rows(space) for space in features], axis=1))


def nearest_in_bank(features: list[np.ndarray], bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (N,K) float32 and positions (N,K) int64 in ``bank`` (M,F) of the rows nearest to each image.

    ``features`` (N,F_k) are those of each network. The nearest come first; there are ``VOTERS`` or, in a small bank,
    fewer. An image that is in the bank is not its own neighbor.
    """
    # Of unit length anew, because half precision rounds: an image's cosine with itself must be 1.
    count, k, known = len(features[0]), min(VOTERS, len(bank) - 1), unit_rows(bank.astype(np.float32))
    cosine, nearest = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    for start in range(0, count, BLOCK):
        rows = joined([space[start : start + BLOCK] for space in features]).astype(np.float16)
        products = unit_rows(rows.astype(np.float32)) @ known.T
        order = np.argpartition(-products, k, axis=1)[:, : k + 1]
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(products, order, 1), axis=1), 1)
        found = np.take_along_axis(products, order, 1)
        itself = found[:, :1] > 1 - COPY
        cosine[start : start + BLOCK] = np.where(itself, found[:, 1:], found[:, :-1])
        nearest[start : start + BLOCK] = np.where(itself, order[:, 1:], order[:, :-1])
    return cosine, nearest


def fit_belonging(cosine: np.ndarray, members: np.ndarray, verdict: Verdict) -> Belonging:
    """The limits of the groups ``members`` (M,) of the bank's own images, whose neighbors have ``cosine`` (M,K).

    Each was compared with all others but itself, as a new image would be, so that a share of ``ODD`` of new images of
    the same kind lies beyond the limits.
    """
    least = cosine[:, :NEIGHBORS][:, -1]
    limits = np.full(len(verdict.groups), _limit(least), np.float32)
    for group, size in enumerate(np.bincount(members, minlength=len(limits))):
        if size * ODD >= 1:  # the quantile of fewer is the furthest image
            limits[group] = _limit(least[members == group])
    return Belonging(members, limits, np.array([each.word != NONE for each in verdict.groups]))


def judge_images(fitted: Belonging, cosine: np.ndarray, nearest: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(N,) the word of each image that a model put into ``clusters`` (N,); the rest is from ``nearest_in_bank``.

    *Fits nowhere*: further from the bank than nearly all images of its group. *Sure*: in a trusted group, as all of its
    ``VOTERS`` nearest are. *To check*: all others.
    """
    nowhere = cosine[:, :NEIGHBORS][:, -1] < fitted.limits[clusters] - COPY  # an image's own, but for rounding
    unanimous = (fitted.members[nearest] == clusters[:, None]).all(axis=1)
    return np.where(nowhere, NOWHERE, np.where(fitted.trusted[clusters] & unanimous, SURE, CHECK))


def _limit(cosines: np.ndarray) -> float:
    """What a share of ``ODD`` of new values falls below: a quantile (n,) that allows for few values."""
    place = int(np.floor((len(cosines) + 1) * ODD)) - 1
    return float(np.sort(cosines)[max(place, 0)])
