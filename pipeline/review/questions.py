"""The images whose answer helps most: undecided between two groups, like many others, and unlike those asked before."""

from typing import Any

import numpy as np

ASKED, SHOWN = 60, 3  # questions at a time; images of either group beside each
CROWD = 2_000  # images among which it is measured how many are alike
LIKE = 10  # of them, whose mean cosine is the density
POOL = 500  # images that are most undecided, in typical places
CERTAIN = 0.9
SPREAD = 0.5  # how much being unlike those asked before counts


def questions_of(
    embeddings: np.ndarray, groups: np.ndarray, runner_up: np.ndarray, probabilities: np.ndarray, sure: np.ndarray,
    answered: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """At most ``ASKED`` questions on N images, the most helpful first. No label is seen.

    ``embeddings`` (N,D) have rows of length 1, ``groups`` (N,) and ``runner_up`` (N,; 0: none) are numbers,
    ``probabilities`` (N,) are those of the groups, ``sure`` (N,) and ``answered`` (N,) are true for images that are
    sure and for those that a person has placed. Each question has its image, both groups, and the nearest images of
    either. An image that is sure is asked only if its group is less than ``CERTAIN``.
    """
    open_rows = np.flatnonzero((runner_up > 0) & ~answered & ~(sure & (probabilities >= CERTAIN)))
    if not len(open_rows):
        return []
    undecided = 1 - probabilities[open_rows]
    rows = open_rows[np.argsort(-undecided, kind="stable")[: 4 * POOL]]
    crowd = embeddings[np.random.default_rng(0).permutation(len(embeddings))[:CROWD]]
    alike = np.sort(embeddings[rows] @ crowd.T, axis=1)[:, -min(LIKE, len(crowd)) :].mean(axis=1)
    worth = (1 - probabilities[rows]) * alike.clip(min=0)
    kept = np.argsort(-worth, kind="stable")[:POOL]
    rows, worth = rows[kept], worth[kept]
    vectors, likest = embeddings[rows], np.zeros(len(rows))
    before = embeddings[answered]
    if len(before):
        likest = (vectors @ before.T).max(axis=1).clip(min=0)
    asked: list[int] = []
    for _ in range(min(ASKED, len(rows))):
        value = worth * (1 - SPREAD * likest)
        value[asked] = -1
        best = int(value.argmax())
        asked.append(best)
        likest = np.maximum(likest, (vectors @ vectors[best]).clip(min=0))
    members = {group: np.flatnonzero(groups == group) for group in np.unique(groups).tolist()}

    def nearest(row: int, group: int) -> list[int]:
        others = members.get(group, np.empty(0, np.int64))
        others = others[others != row]
        found: list[int] = others[np.argsort(-(embeddings[others] @ embeddings[row]), kind="stable")[:SHOWN]].tolist()
        return found

    found = []
    for row in rows[asked].tolist():
        own, other = int(groups[row]), int(runner_up[row])
        pictures = {"own": nearest(row, own), "other": nearest(row, other)}
        found.append({"image": row, "group": own, "runner_up": other, **pictures})
    return found
