"""What differs between two runs: their settings, their images, and what has become of each group."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.comparing.outcome import Outcome
from scan_core.errors import ScanError

FATES = KEPT, MERGED, SPLIT, SCATTERED, NEW = "kept", "merged", "split", "scattered", "new"
ORDER = (SPLIT, MERGED, SCATTERED, NEW, KEPT)  # what has changed most first
MOST = 0.5  # a group goes on in another if more of it is there
PART = 0.1  # a split or merged group has parts of at least so much of it: a few strays do not split a group

Pairs = list[tuple[int, int]]  # group and images, the most first


@dataclass(frozen=True)
class Fate:
    """What has become of group ``group`` of A; if ``word`` is new, where group ``group`` of B comes from."""

    word: str
    group: int
    images: int  # that it has, of those in both runs
    parts: Pairs  # the groups in which it goes on; empty if it is scattered or new
    others: Pairs  # where its other images went to, or came from

    @property
    def same(self) -> bool:
        """Whether it has lost no image."""
        return self.word == KEPT and not self.others


@dataclass(frozen=True)
class Difference:
    """Two runs A and B, and what M images that are in both say of them."""

    a: Outcome
    b: Outcome
    rows: np.ndarray  # (M,2) int64: of each image the rows in A and in B
    groups: tuple[list[int], list[int]]  # of A and of B, those that have such images
    counts: np.ndarray  # (groups of A, groups of B) int64 images
    agreement: dict[str, float]  # acc (one to one), ari, ami
    fates: list[Fate]  # in the order of ORDER, large groups first


def compare(a: Outcome, b: Outcome) -> Difference:
    """Compares two runs by the images that both have. Raises ``ScanError`` if there are none."""
    from scan_core.evaluation.metrics import clustering_metrics, contingency

    rows = common_rows(a, b)
    if not len(rows):
        raise ScanError(
            f"{a.title} and {b.title} have no image in common, {len(a.group):,} and {len(b.group):,} images; "
            "give runs on the same images"
        )
    group_a, group_b = a.group[rows[:, 0]], b.group[rows[:, 1]]
    of_b, index = np.unique(group_b, return_inverse=True)
    counts, of_a = contingency(group_a, index, len(of_b))
    found = clustering_metrics(group_a, index, len(of_b))
    groups = of_a.tolist(), of_b.tolist()
    return Difference(
        a, b, rows, groups, counts, {name: found[name] for name in ("acc", "ari", "ami")}, fates(counts, *groups)
    )


def common_rows(a: Outcome, b: Outcome) -> np.ndarray:
    """(M,2) int64 rows in ``a`` and in ``b`` of each image that both have, in the order of ``a``.

    An image is known by the hash of its file; copies are told apart by their names, where these are in both. If a run
    has no hashes, by its name alone.
    """
    if a.content is None or b.content is None:
        place = {name: row for row, name in enumerate(b.source)}
        pairs = [(row, place[name]) for row, name in enumerate(a.source) if name in place]
        return np.array(pairs, np.int64).reshape(-1, 2)
    exact = {key: row for row, key in enumerate(zip(b.content, b.source, strict=True))}
    pairs, left = [], []
    for row, key in enumerate(zip(a.content, a.source, strict=True)):
        if key in exact:
            pairs.append((row, exact.pop(key)))
        else:
            left.append((row, key[0]))
    renamed: dict[str, list[int]] = {}
    for (content, _), row in reversed(exact.items()):
        renamed.setdefault(content, []).append(row)
    pairs += [(row, renamed[content].pop()) for row, content in left if renamed.get(content)]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def only_in(outcome: Outcome, rows: np.ndarray) -> list[str]:
    """The names of the images of ``outcome`` that are not in ``rows`` (M,)."""
    alone = np.ones(len(outcome.source), bool)
    alone[rows] = False
    return [outcome.source[row] for row in np.flatnonzero(alone)]


def fates(counts: np.ndarray, groups_a: list[int], groups_b: list[int]) -> list[Fate]:
    """What has become of each group: ``counts`` (A,B) images are in a group of ``groups_a`` and one of ``groups_b``.

    A group is *split* if at least two groups are mostly made of it, or one, and no group has most of it. It is *merged*
    if most of it is in a group that others went to, too, *kept* if most of it is in a group that is mostly made of it,
    and else *scattered*. A group of B in which none goes on is *new*.
    """
    size_a, size_b = counts.sum(axis=1), counts.sum(axis=0)
    goes = counts > MOST * size_a[:, None]  # (A,B): at most one in a row
    comes = counts > MOST * size_b  # (A,B): at most one in a column
    parts = comes & (counts >= PART * size_a[:, None])
    pieces = (parts.sum(axis=1) > goes.any(axis=1)) | ((counts * comes).sum(axis=1) > MOST * size_a) & ~goes.any(axis=1)
    gathered = (goes & (counts >= PART * size_b)).sum(axis=0) > 1  # (B,)
    found, on = [], np.where(pieces[:, None], comes, goes)
    for row, group in enumerate(groups_a):
        kept = (on[row] & comes[row] & ~gathered).any()
        word = SPLIT if pieces[row] else KEPT if kept else MERGED if on[row].any() else SCATTERED
        found.append(_fate(word, group, counts[row], on[row], groups_b))
    none = np.zeros(len(groups_a), bool)
    found += [_fate(NEW, groups_b[c], counts[:, c], none, groups_a) for c in np.flatnonzero(~on.any(axis=0))]
    return sorted(found, key=_order)


def _order(fate: Fate) -> tuple[int, int, int]:
    """What is merged into one group stands together."""
    return ORDER.index(fate.word), fate.parts[0][0] if fate.word == MERGED else 0, -fate.images


def _fate(word: str, group: int, counts: np.ndarray, parts: np.ndarray, others: list[int]) -> Fate:
    order = [place for place in np.argsort(-counts, kind="stable").tolist() if counts[place]]
    inside, outside = ([(others[c], int(counts[c])) for c in order if bool(parts[c]) is part] for part in (True, False))
    return Fate(word, group, int(counts.sum()), inside, outside)


def changed_settings(a: Outcome, b: Outcome) -> dict[str, tuple[Any, Any]]:
    """Dotted name → both values, of the settings that both runs have and that differ."""
    both = [name for name in a.settings if name in b.settings]
    return {name: (a.settings[name], b.settings[name]) for name in both if a.settings[name] != b.settings[name]}
