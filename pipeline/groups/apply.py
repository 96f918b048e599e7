"""What a model says becomes what a person reads: the one place where numbers, names and corrections are applied."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import PREDICTED
from pipeline.groups import file
from pipeline.groups.file import Groups
from pipeline.groups.learned import Learned, load_learned
from pipeline.groups.numbering import numbered
from scan_core.errors import ScanError
from scan_core.evaluation.verdict import NONE, STRONG, WEAK

if TYPE_CHECKING:
    import pyarrow as pa

PARTS_SEED = 0
WORDS = (NONE, WEAK, STRONG)
COLUMNS = [
    *("source", "split", "content", "x", "y"), *(name for names in PREDICTED for name in names), "state", "embedding",
]  # fmt: skip
Where = Callable[[Path], Path]  # the files of a run that has not finished are not in their places


def in_place(path: Path) -> Path:
    """The ``Where`` of a run that has finished."""
    return path


@dataclass(frozen=True)
class Grouped:
    """The groups of N images as they are shown."""

    group: np.ndarray  # (N,) int64
    probability: np.ndarray  # (N,) float64; 1 if a person has put the image there
    runner_up: np.ndarray  # (N,) int64; 0 if it is not known
    runner_up_probability: np.ndarray  # (N,) float64


class Grouping:
    """The groups of the last run, with what a person has said of them."""

    def __init__(self, groups: Groups | None = None, at: Where = in_place) -> None:
        """A run that is not finished has its ``groups``, and files elsewhere, ``at``; there are no answers to it."""
        self.at, self.is_finished = at, groups is None
        self.groups: Groups = numbered() if groups is None else groups
        self.answers = file.load_answers() if groups is None else {}
        if wrong := sorted({group for group, _ in self.answers.values()} - set(self.known)):
            raise ScanError(
                f"{file.ANSWERS}: there is no group {wrong[0]}; there are {', '.join(map(str, self.known))}"
            )

    @cached_property
    def learned(self) -> Learned | None:
        """What was learned from these answers; None if nothing was, or not yet."""
        return load_learned(self.groups, self.answers)

    @property
    def known(self) -> list[int]:
        """All numbers that are in use, shown or not."""
        parts = [part for whole in self.groups.split.values() for part in whole]
        return sorted({*self.groups.clusters, *parts})

    @property
    def is_edited(self) -> bool:
        """Whether a person has merged or split groups."""
        return bool(self.groups.merge or self.groups.split)

    def name(self, group: int) -> str:
        """The name of a group that is shown; "" if it has none."""
        return self.groups.names.get(group, "")

    def titled(self, group: int) -> str:
        """``3 daisy``, or ``3``."""
        return f"{group} {self.name(group)}".strip()

    def words(self, verdict: dict[str, Any]) -> dict[int, str]:
        """The verdict, the content of reports/verdict.json, on each group that is shown: of merged groups the worst."""
        found: dict[int, list[str]] = {}
        for cluster, number in enumerate(self.groups.clusters):
            for part in self.groups.split.get(number, (number,)):
                found.setdefault(self.groups.shown_as(part), []).append(verdict["groups"][cluster]["word"])
        return {group: min(words, key=WORDS.index) for group, words in found.items()}

    def apply(
        self, clusters: np.ndarray, probabilities: np.ndarray, contents: list[str], embeddings: np.ndarray
    ) -> Grouped:
        """The groups of images of which a model says ``clusters`` (N,K) and ``probabilities`` (N,K), the best first.

        ``contents`` (N,) name the images, ``embeddings`` (N,D) tell which part of a split group an image is in, and
        where an image that came after the run belongs by what was learned from answers.
        """
        number_of = np.array(self.groups.clusters, np.int64)
        raw = number_of[clusters[:, :2]]  # (N,1 or 2): with a single cluster there is no runner-up
        for whole in self.groups.split:
            for row, column in np.argwhere(raw == whole):
                raw[row, column] = self._part(whole, embeddings[row])
        shown_as = {number: self.groups.shown_as(number) for number in self.known}
        shown = np.vectorize(shown_as.__getitem__, otypes=[np.int64])(raw) if raw.size else raw
        best, chance = shown[:, 0], probabilities[:, 0].astype(np.float64)
        other = np.zeros_like(best)
        other_chance = np.zeros(len(best))
        if shown.shape[1] > 1:
            same = shown[:, 1] == best  # merged: their probabilities add up, and the third is not known
            chance = np.where(same, np.minimum(chance + probabilities[:, 1], 1), chance)
            other, other_chance = np.where(same, 0, shown[:, 1]), np.where(same, 0, probabilities[:, 1])
        for row, content in enumerate(contents):
            if content in self.answers:
                said, certain = self.groups.shown_as(self.answers[content][0]), 1.0
            elif self.learned is not None:
                said, certain = self.learned.of(content, embeddings[row]), chance[row]
            else:
                continue
            if said != best[row]:
                other[row], other_chance[row] = best[row], chance[row]
            best[row], chance[row] = said, certain
        return Grouped(best, chance, other, other_chance)

    def _part(self, whole: int, embedding: np.ndarray) -> int:
        centers = self.centers[whole]
        return self.groups.split[whole][int((centers @ embedding).argmax())]

    @cached_property
    def centers(self) -> dict[int, np.ndarray]:
        """For each split group the centers (P,D) of its parts: those of k-means on the images that it has."""
        from scan_core.clustering.spectral import kmeans_clusters

        clusters, embeddings = stored_clusters(self.at(artifacts.PREDICTIONS))
        centers = {}
        for whole, parts in self.groups.split.items():
            members = embeddings[clusters == self._cluster_of(whole)]
            if len(np.unique(members, axis=0)) < len(parts):
                raise ScanError(f"group {whole} has too few images to be split into {len(parts)} groups")
            labels, found = kmeans_clusters(members, len(parts), PARTS_SEED, 10)
            # The part with the most images has the smallest number.
            centers[whole] = found[np.argsort(-np.bincount(labels, minlength=len(parts)), kind="stable")]
        return centers

    def _cluster_of(self, whole: int) -> int:
        if whole not in self.groups.clusters:
            raise ScanError(f"group {whole} is itself a part of a split group; undo that split first")
        return self.groups.clusters.index(whole)


def stored_clusters(predictions: Path) -> tuple[np.ndarray, np.ndarray]:
    """The clusters (N,) and embeddings (N,D) of the images that ``predictions`` has, in its order."""
    import pyarrow.parquet as pq

    table = pq.read_table(artifacts.require(predictions), columns=["id", "cluster"]).drop_null()
    return table["cluster"].to_numpy(), embeddings_of(table["id"].to_numpy())


def embeddings_of(ids: np.ndarray) -> np.ndarray:
    """(N,D) float32 embeddings of rows ``ids`` (N,) of the image store."""
    parts, rows = [], []
    for split in ("train", "val"):
        rows.append(artifacts.load_array(artifacts.IMAGES / f"{split}.npy", "int64", (None,)))
        parts.append(
            artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (len(rows[-1]), None), mmap=True)
        )
    found = np.empty((len(ids), parts[0].shape[1]), np.float32)
    for embeddings, index in zip(parts, rows, strict=True):
        order = np.argsort(index)
        place = np.searchsorted(index[order], ids).clip(max=len(index) - 1)
        there = index[order][place] == ids
        found[there] = embeddings[order[place[there]]]
    return found


def read_predictions(grouping: Grouping | None = None) -> "pa.Table":
    """What the last run and later calls of ``scan run`` say of the images of the source, as a person reads it.

    Columns: source, split, content, x, y, group, name, probability, runner_up, runner_up_probability, state. A file
    without a group has nulls there, and its finding in ``split``; an image that was placed later has ``new`` there, and
    no place on the map, ``x`` and ``y``. A run from before there was a map has no such columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.groups.placed import read_placed

    grouping = grouping or Grouping()
    table = pq.read_table(artifacts.require(grouping.at(artifacts.PREDICTIONS)))
    vectors = pa.nulls(len(table), pa.list_(pa.float32()))
    if grouping.groups.split:
        found = iter(embeddings_of(table["id"].drop_null().to_numpy()))
        there = table["id"].is_valid().to_pylist()
        vectors = pa.array([next(found) if each else None for each in there], pa.list_(pa.float32()))
    table = table.append_column("embedding", vectors)
    parts = [table]
    if grouping.is_finished and len(placed := read_placed()):
        later = set(placed["source"].to_pylist())
        renamed = pa.array([row in later for row in table["source"].to_pylist()])
        parts = [table.filter(pa.compute.invert(renamed)), placed]
    chosen = [part.select([name for name in COLUMNS if name in part.column_names]) for part in parts]
    return grouped(pa.concat_tables(chosen, promote_options="permissive"), grouping)


def grouped(table: "pa.Table", grouping: Grouping) -> "pa.Table":
    """``table`` with group, name and runner-up in place of the model's clusters, and without embeddings."""
    import pyarrow as pa

    there = table["cluster"].is_valid().to_numpy(zero_copy_only=False)
    images = table.filter(pa.array(there))
    ranks = [names for names in PREDICTED if not images[names[0]].null_count]
    clusters, probabilities = (
        np.stack([images[names[kind]].to_numpy() for names in ranks], axis=1) if ranks else np.empty((0, 1))
        for kind in (0, 1)
    )
    vectors = np.empty((len(images), 0))
    if (grouping.groups.split or grouping.learned is not None) and len(images):
        given = images["embedding"].to_pylist()
        missing = np.zeros(max(len(each or ()) for each in given), np.float32)  # not needed, for images of the run
        vectors = np.stack([missing if each is None else np.asarray(each, np.float32) for each in given])
    found = grouping.apply(clusters.astype(np.int64), probabilities, images["content"].to_pylist(), vectors)

    def column(values: np.ndarray, kind: pa.DataType, empty: np.ndarray | None = None) -> pa.Array:
        every = np.zeros(len(table), values.dtype)
        every[there] = values
        missing = ~there
        if empty is not None:
            missing[there] = empty
        return pa.array(every, kind, mask=missing)

    none, groups = found.runner_up == 0, column(found.group, pa.int64())
    names = pa.array([grouping.name(group) if group is not None else None for group in groups.to_pylist()], pa.string())
    new = {
        "group": groups, "name": names, "probability": column(found.probability, pa.float64()),
        "runner_up": column(found.runner_up, pa.int64(), none),
        "runner_up_probability": column(found.runner_up_probability, pa.float64(), none),
    }  # fmt: skip
    kept = [name for name in table.column_names if name not in (*new, "cluster", "embedding", "state")]
    return pa.table({**{name: table[name] for name in kept}, **new, "state": table["state"]})
