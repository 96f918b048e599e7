"""Which number each cluster has. A group keeps its number over new runs, and no number is given twice."""

from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.groups import file
from pipeline.groups.file import Groups
from scan_core.errors import ScanError

MEMBERS = Path(".scan/members.parquet")  # content, group: of the run that groups.yaml is of
SAME = 0.5  # a cluster is an old group if it has so much of it, or is made of it by so much


def numbered() -> Groups:
    """``groups.yaml`` with a number for each cluster of the last run. Written if the model is new.

    On the first run the largest group is number 1. Raises ``ScanError`` if there is no run.
    """
    digest = file.model_digest()
    groups = file.load()
    if groups.model == digest:
        return groups
    with file.lock():
        groups = file.load()
        if groups.model == digest:
            return groups
        contents, clusters, count = members_of(artifacts.require(artifacts.PREDICTIONS))
        groups = _of_new_model(groups, contents, clusters, count)
        file.save(groups)
        _save_members(contents, np.array(groups.clusters)[clusters])
        return groups


def groups_of_run(predictions: Path, groups: Groups | None = None) -> Groups:
    """What ``numbered`` will give for a run that has written ``predictions`` and is not finished; nothing is written.

    ``groups`` None are those of ``groups.yaml``. Raises ``ScanError`` if that is damaged.
    """
    groups = file.load() if groups is None else groups
    return groups if groups.model == file.model_digest() else _of_new_model(groups, *members_of(predictions))


def numbers_of_run(predictions: Path) -> tuple[int, ...]:
    """The number of each cluster of that run; if ``groups.yaml`` is damaged, those of a first run."""
    try:
        return groups_of_run(predictions).clusters
    except ScanError:
        return groups_of_run(predictions, Groups()).clusters


def _of_new_model(groups: Groups, contents: list[str], clusters: np.ndarray, count: int) -> Groups:
    numbers, following = renumber(groups, contents, clusters, count)
    kept = {*numbers}
    split = {whole: parts for whole, parts in groups.split.items() if whole in kept}
    known = kept | {part for parts in split.values() for part in parts}
    return file.changed(
        groups,
        clusters=numbers,
        next=following,
        model=file.model_digest(),
        split=split,
        names={number: name for number, name in groups.names.items() if number in known},
        merge={one: other for one, other in groups.merge.items() if one in known and other in known},
        ignore=tuple(number for number in groups.ignore if number in known),
    )


def renumber(groups: Groups, contents: list[str], clusters: np.ndarray, count: int) -> tuple[tuple[int, ...], int]:
    """The number of each of ``count`` clusters, and the number that comes next.

    ``contents`` (N,) and ``clusters`` (N,) are those of the run's images. Clusters and old groups are matched one to
    one by the images that they have in common.
    """
    from scipy.optimize import linear_sum_assignment

    before = _load_members() if groups.model else {}
    old = sorted({*before.values(), *groups.clusters})
    numbers = [0] * count
    sizes = np.bincount(clusters, minlength=count)
    if before and old:
        place = {number: column for column, number in enumerate(old)}
        common, total = np.zeros((count, len(old)), np.int64), np.zeros(len(old), np.int64)
        for content, cluster in zip(contents, clusters.tolist(), strict=True):
            if content in before:
                common[cluster, place[before[content]]] += 1
        total = common.sum(axis=0)
        share = np.maximum(common / total.clip(min=1), common / sizes[:, None].clip(min=1))
        for row, column in zip(*linear_sum_assignment(-common), strict=True):
            if common[row, column] and share[row, column] >= SAME:
                numbers[row] = old[column]
    following = groups.next
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        if not numbers[cluster]:
            numbers[cluster], following = following, following + 1
    return tuple(numbers), following


def members_of(predictions: Path) -> tuple[list[str], np.ndarray, int]:
    """Content (N,) and cluster (N,) of each image in ``predictions``, those of a run, and the number of clusters."""
    import pyarrow.parquet as pq

    table = pq.read_table(predictions, columns=["content", "cluster"]).drop_null()
    return table["content"].to_pylist(), table["cluster"].to_numpy(), artifacts.load_number()


def _load_members() -> dict[str, int]:
    import pyarrow.parquet as pq

    if not MEMBERS.exists():
        return {}
    table = pq.read_table(MEMBERS)
    return dict(zip(table["content"].to_pylist(), table["group"].to_pylist(), strict=True))


def _save_members(contents: list[str], groups: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = MEMBERS.with_suffix(".partial")
    pq.write_table(pa.table({"content": contents, "group": pa.array(groups)}), partial)
    partial.replace(MEMBERS)
