"""``--groups``: the number of groups, given, estimated or compared with others."""

from pipeline.params import read_params
from pipeline.suggest import Number
from scan_core.errors import ScanError

GROUPS = (
    "A number; auto: estimate it; several such as 5,10,20: compare them. By default as many as classes, or else auto."
)


def numbers_of(groups: str | None) -> tuple[Number, ...]:
    """What ``--groups`` says: () if it is left out. Raises ``ScanError``."""
    if groups in (None, "auto"):
        return ("auto",) if groups else ()
    assert groups is not None
    parts = [part.strip() for part in groups.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 1 for part in parts):
        raise ScanError(f"--groups is {groups!r}; auto, a number from 2, or several such as 5,10,20 are allowed")
    return tuple(dict.fromkeys(int(part) for part in parts))


def one_number(groups: str | None) -> Number | None:
    """``numbers_of`` if it is one, or None. Raises ``ScanError`` if it is several."""
    numbers = numbers_of(groups)
    if len(numbers) > 1:
        raise ScanError(f"--groups is {groups}; scan run compares several numbers once it has run; give one here")
    return numbers[0] if numbers else None


def compare_numbers(photos: str, numbers: list[int]) -> None:
    """Prints how the images of the last run on ``photos`` fall into each of ``numbers`` of groups; changes nothing.

    Raises ``ScanError`` if there are no embeddings of them, or more groups than the images allow.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from pipeline import artifacts
    from pipeline.environment import use_threads
    from scan_core.clustering.number import SAMPLE, divide

    current = read_params()
    if current.data.path != photos or not (artifacts.EMBEDDINGS / "train.npy").exists():
        raise ScanError(f"{photos} has no embeddings here; scan run {photos} makes them: run that first")
    train = artifacts.load_array(artifacts.EMBEDDINGS / "train.npy", "float32", (None, None))
    points = train[np.unique(artifacts.load_first("train", len(train)))][:SAMPLE]
    if max(numbers) >= len(points):
        raise ScanError(f"--groups has {max(numbers)}, but there are {len(points)} images; fewer than that are allowed")
    use_threads()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("groups", "largest", "smallest", "apart", "found twice"):
        table.add_column(column, justify="right")
    for each in divide(points, sorted(numbers), current.seed, lambda _: None):
        shares = [f"{share:.0%}" for share in (each.largest, each.smallest)]
        table.add_row(str(each.groups), *shares, f"{each.silhouette:.3f}", f"{each.agreement:.2f}")
    Console().print(table)
    print(
        "\napart: silhouette in the embeddings, higher is better; found twice: how far two methods agree, 1 is the same"
        f"\n\nnext      scan run {photos} --groups {numbers[0]}"
    )
