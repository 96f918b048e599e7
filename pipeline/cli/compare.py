"""``scan compare``: what differs between two runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.progress import alive
from pipeline.project import is_project
from scan_core.data.open import expanded
from scan_core.errors import ScanError

if TYPE_CHECKING:
    from pipeline.comparing.words import Row

A = "A git revision of this project, a name of dvc exp list, or the folder of another project."
B = "The same; by default this project as it is now."
PICTURE = "Where to draw what went where; by default .scan/compare.png."
DRAWN = Path(".scan/compare.png")


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=A)],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help=B)] = None,
    picture: Annotated[str | None, typer.Option(metavar="FILE.png", help=PICTURE)] = None,
) -> None:
    """Compare two runs: settings, scores, and what has become of each group. Nothing is run or changed."""
    here = Path.cwd()
    path = picture_path(picture, here)
    with alive("compare"):
        from pipeline.comparing import words
        from pipeline.comparing.difference import compare as compared
        from pipeline.comparing.outcome import read_outcomes
        from pipeline.comparing.places import find_place

        found = compared(*read_outcomes(find_place(a, here), find_place(b, here)))
    print("\n".join(words.heading(found)))
    changed, alone = words.settings(found)
    _print_table("settings", changed)
    for line in alone:
        print(line)
    _print_table(words.scored(found), words.scores(found))
    print("\n".join(["", *words.agreement(found), *words.groups(found)]))
    if path:
        with alive("picture"):
            from pipeline.comparing.picture import draw_picture

            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(found, path)
        print(f"\npicture   {path}")


def picture_path(picture: str | None, here: Path) -> Path | None:
    """Where the picture is written: not at all if none is asked for and ``here`` is no project.

    Raises ``ScanError`` if it cannot be written there.
    """
    if picture is None:
        return DRAWN if is_project(here) else None
    path = expanded(picture)
    if path.suffix.lower() != ".png":
        raise ScanError(f"--picture is {picture}; a .png file is allowed")
    if not path.parent.is_dir():
        raise ScanError(f"--picture is {picture}, but there is no folder {path.parent}; make it, or name another file")
    return path


def _print_table(title: str, rows: "list[Row]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        print(f"\n{title}  the same in both")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (title, "A", "B"):
        table.add_column(column, justify="left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    print()
    Console(highlight=False).print(table)
