"""``scan edit``: names and corrections of groups. Nothing is trained again."""

from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.groups import edits
from pipeline.progress import alive

edit = typer.Typer(no_args_is_help=True, help="Name groups, merge and split them, move images; undo.")

GROUP = "A group's number."


@edit.command()
def name(
    group: Annotated[int, typer.Argument(help=GROUP)],
    words: Annotated[str, typer.Argument(help="Its name; an empty one takes the name away.")],
) -> None:
    """Name a group."""
    _say(lambda: edits.name(group, words))


@edit.command()
def suggested() -> None:
    """Take the suggested names, which scan show has with a question mark, for the groups that have none."""
    _say(edits.take_suggested)


@edit.command()
def merge(groups: Annotated[list[int], typer.Argument(help="Two groups or more; the first one stays.")]) -> None:
    """Show several groups as one."""
    _say(lambda: edits.merge(groups))


@edit.command()
def split(
    group: Annotated[int, typer.Argument(help=GROUP)],
    parts: Annotated[int, typer.Option(help="How many groups it becomes.", min=2, max=edits.MOST_PARTS)] = 2,
) -> None:
    """Split a group into those of its images that are most alike; or take a merged group apart again."""
    _say(lambda: edits.split(group, parts))


@edit.command()
def ignore(
    group: Annotated[int, typer.Argument(help=GROUP)],
    no: Annotated[bool, typer.Option("--no", help="Take it back.")] = False,
) -> None:
    """Leave a group out of what scan sort copies."""
    _say(lambda: edits.ignore(group, not no))


@edit.command()
def move(
    group: Annotated[int, typer.Argument(help="The group that the images belong to.")],
    images: Annotated[list[str], typer.Argument(help="Images, as predictions.parquet or their paths name them.")],
) -> None:
    """Put images into a group."""
    _say(lambda: edits.move(edits.image_contents(images), group))


@edit.command()
def undo() -> None:
    """Take back the last change."""
    _say(edits.undo)


def _say(change: Callable[[], str]) -> None:
    """Makes a change and prints what it was."""
    from pipeline.tracking.checked import tell_mlflow

    with alive("edit"):
        said = change()
        tell_mlflow()
    print(said)
