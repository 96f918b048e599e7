"""``scan sort``: the photos of the last run in folders, one for each group."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.progress import alive, say
from scan_core.data.open import expanded
from scan_core.errors import ScanError

if TYPE_CHECKING:
    from pipeline.sorting.sort import Sorted

FOLDER = "A new or empty folder, or one that scan sort has filled before."
LINK = "Make links to the photos instead of copies."
XMP = "Write the group's name as a keyword into sidecars beside the copies."
UNDO = "Take back all that scan sort has made in DIR and nobody has changed."
CSV = "A .csv file for a table of all files and their groups."
JSON = "The same as a .json file."
PARQUET = "The same as a .parquet file, with the map and small pictures, as programs that show embeddings read it."


def sort(
    folder: Annotated[str | None, typer.Argument(metavar="DIR", help=FOLDER)] = None,
    link: Annotated[bool, typer.Option("--link", help=LINK)] = False,
    xmp: Annotated[bool, typer.Option("--xmp", help=XMP)] = False,
    undo: Annotated[bool, typer.Option("--undo", help=UNDO)] = False,
    csv: Annotated[str | None, typer.Option(help=CSV)] = None,
    json: Annotated[str | None, typer.Option(help=JSON)] = None,
    parquet: Annotated[str | None, typer.Option(help=PARQUET)] = None,
) -> None:
    """Copy the photos into folders, one for each group; again after a change; and back."""
    tables = {"csv": csv, "json": json, "parquet": parquet}
    given = [name for name, value in (("--link", link), ("--xmp", xmp)) if value]
    given += [f"--{name}" for name, file in tables.items() if file]
    if undo and (folder is None or given):
        raise ScanError(f"--undo got {' and '.join(given) or 'no folder'}; it goes with a folder alone")
    if folder is None and (link or xmp or not given):
        raise ScanError("scan sort got no folder; give one, such as scan sort ~/sorted, or --csv FILE")
    target = Path(os.path.abspath(expanded(folder))) if folder is not None else None
    try:
        if target and undo:
            _undo(target)
        else:
            _sort(target, link, xmp, tables)
    except KeyboardInterrupt:
        say("scan: interrupted; the same command carries on from here")
        raise typer.Exit(130) from None


def _undo(target: Path) -> None:
    with alive("sort"):
        from pipeline.sorting.undo import undo_sort

        done = undo_sort(target)
    print(f"undone    {counted(done.removed, 'file')} removed that scan sort had made in {target}")
    if done.changed:
        print(f"yours     left alone: {done.changed:,} that you have changed, moved or removed")
    if done.strangers:
        print(f"          {target} stays, with what is yours in it")
    if done.kept:
        print(f"kept      {counted(done.kept, 'file')} whose originals are gone: there may be no other copy")


def _sort(target: Path | None, link: bool, xmp: bool, tables: dict[str, str | None]) -> None:
    with alive("sort"):
        from pipeline.groups.apply import read_predictions
        from pipeline.params import read_params
        from pipeline.sorting.sort import sort_photos
        from pipeline.sorting.table import check_table, with_pictures, write_table

    files = [(option, expanded(file)) for option, file in tables.items() if file]
    for option, file in files:
        check_table(file, option)
    if target:
        with alive("sort"):
            done = sort_photos(target, read_params(), link, xmp)
        print("\n".join(_summary(done)))
    for _, file in files:
        with alive("table"):
            table = read_predictions()
            if file.suffix.lower() == ".parquet":
                table = with_pictures(table, read_params())
            write_table(table, file)
        print(f"table     {counted(len(table), 'row')} in {file}")
    if target:
        print(f"\nundo      scan sort {shlex.quote(str(target))} --undo")


def _summary(done: "Sorted") -> Iterator[str]:
    """What has come out, in a few lines."""
    from pipeline.groups.apply import Grouping
    from pipeline.review.checks import promised
    from scan_core.evaluation.belonging import CHECK, NOWHERE, SURE

    places, plan, existing, steps = done.places, done.plan, done.existing, done.done
    yield f"sorted    {counted(len(places.of), 'photo')} into {counted(places.groups, 'group')}: {done.folder}"
    sure, check, nowhere = (places.count(state) for state in (SURE, CHECK, NOWHERE))
    yield f"          {SURE} {sure:,}   {CHECK} {check:,}   {NOWHERE} {nowhere:,}"
    if proved := promised(Grouping()):
        yield f"checked   {proved}"
    if plan.companions:
        yield f"along     {counted(plan.companions, 'companion')} (raw files, sidecars, videos)"
    if left := [f"{count:,} {what}" for count, what in _left_out(done) if count]:
        yield f"left out  {', '.join(left)}"
    if steps.unreadable:
        name, reason = steps.unreadable[0]
        yield f"failed    {counted(len(steps.unreadable), 'file')} could not be copied, such as {name}: {reason}"
    if plan.no_xmp:
        yield f"keywords  not in {counted(plan.no_xmp, 'sidecar')} that cannot be read as XMP"
    touched = [(existing.changed, "changed"), (existing.gone, "moved or removed"), (existing.added, "added")]
    if alone := [f"{count:,} {what}" for count, what in touched if count]:
        yield f"yours     left alone: {', '.join(alone)} by you"
    if plan.kept:
        yield f"          {counted(plan.kept, 'photo')} kept that no longer belong here: the originals are gone"
    yield f"now       {counted(steps.copied, 'file')} made, {steps.moved:,} moved, {steps.removed:,} removed"


def counted(number: int, what: str) -> str:
    """``1 photo``, ``2,000 photos``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _left_out(done: "Sorted") -> list[tuple[int, str]]:
    places = done.places
    copies = places.findings["duplicate"]
    return [
        (places.ignored, "of ignored groups"),
        (places.findings["rejected"], "unreadable"),
        (copies, "exact copy" if copies == 1 else "exact copies"),
        (done.missing, "no longer in the source"),
    ]
