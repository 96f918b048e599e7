"""The images whose answer helps most: like many others that are not certain, and unlike those asked before."""

from typing import Any

import numpy as np

ASKED, SHOWN = 60, 3  # questions at a time; images of either group beside each
CANDIDATES, CROWD = 2_000, 2_000  # images at most that may be asked, and that an answer may say something about
# An answer says something about an image by the square of their cosine, and that counts by how uncertain the image is.
# Undecided images alone, and a sharper likeness, were worse: python -m experiments.answers, on seeds 0 and 1.
SHARPNESS, CERTAIN = 2, 0.5  # the power of the cosine; what an image counts that is certain, beside 1 for any doubt


def questions_of(
    embeddings: np.ndarray, groups: np.ndarray, runner_up: np.ndarray, probabilities: np.ndarray, answered: np.ndarray
) -> list[dict[str, Any]]:
    """At most ``ASKED`` questions on N images, the most helpful first. No label is seen.

    ``embeddings`` (N,D) have rows of length 1, ``groups`` (N,) and ``runner_up`` (N,; 0: none) are numbers,
    ``probabilities`` (N,) are those of the groups, ``answered`` (N,) is true for images that a person has placed. Each
    question has its image, both groups, and the nearest images of either.
    """
    rng, open_rows = np.random.default_rng(0), np.flatnonzero((runner_up > 0) & ~answered)
    if not len(open_rows):
        return []
    rows = rng.permutation(open_rows)[:CANDIDATES]
    crowd = rng.permutation(len(embeddings))[:CROWD]
    like = (embeddings[rows] @ embeddings[crowd].T).clip(min=0) ** SHARPNESS  # (n,m)
    known = np.zeros(len(crowd), np.float32)
    if answered.any():
        known = ((embeddings[crowd] @ embeddings[answered].T).clip(min=0) ** SHARPNESS).max(axis=1)
    counts = (1 - probabilities[crowd] + CERTAIN).astype(np.float32)
    asked: list[int] = []
    for _ in range(min(ASKED, len(rows))):
        gain = np.maximum(like - known, 0) @ counts
        gain[asked] = -1
        asked.append(int(gain.argmax()))
        known = np.maximum(known, like[asked[-1]])
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
