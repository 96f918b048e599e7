"""``scan edit``: names and corrections of groups. Nothing is trained again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.groups import file
from pipeline.groups.file import Groups
from scan_core.errors import ScanError

edit = typer.Typer(no_args_is_help=True, help="Name groups, merge and split them, move images; undo.")

UNDO = Path(".scan/undo")  # what groups.yaml and answers.csv were before each change, the oldest first
GROUP = "A group's number."


@edit.command()
def name(
    group: Annotated[int, typer.Argument(help=GROUP)],
    words: Annotated[str, typer.Argument(help="Its name; an empty one takes the name away.")],
) -> None:
    """Name a group."""

    def change(groups: Groups) -> Groups:
        _shown(groups, group)
        others = {number: said for number, said in groups.names.items() if number != group}
        return file.changed(groups, names=others | ({group: words.strip()} if words.strip() else {}))

    _edit(change)
    print(f"group {group} is {words.strip()!r} now" if words.strip() else f"group {group} has no name now")


@edit.command()
def suggested() -> None:
    """Take the suggested names, which scan show has with a question mark, for the groups that have none."""
    from pipeline.groups.apply import Grouping
    from pipeline.groups.suggestions import suggested_names

    found = suggested_names(Grouping())
    if not found:
        raise ScanError("no name is suggested; scan edit name gives one")
    _edit(lambda groups: file.changed(groups, names=groups.names | found))
    print("\n".join(f"group {group} is {word!r} now" for group, word in sorted(found.items())))


@edit.command()
def merge(groups: Annotated[list[int], typer.Argument(help="Two groups or more; the first one stays.")]) -> None:
    """Show several groups as one."""
    if len(set(groups)) < 2:
        raise ScanError("scan edit merge got one group; give two or more, such as scan edit merge 3 7")
    kept, *others = dict.fromkeys(groups)

    def change(before: Groups) -> Groups:
        for each in groups:
            _shown(before, each)
        names = {number: said for number, said in before.names.items() if number not in others}
        for each in others:  # a name is not lost if the group that stays has none
            if each in before.names:
                names.setdefault(kept, before.names[each])
        return file.changed(before, merge=before.merge | dict.fromkeys(others, kept), names=names)

    _edit(change)
    print(f"groups {', '.join(map(str, others))} are shown as group {kept} now")


@edit.command()
def split(
    group: Annotated[int, typer.Argument(help=GROUP)],
    parts: Annotated[int, typer.Option(help="How many groups it becomes.", min=2, max=20)] = 2,
) -> None:
    """Split a group into those of its images that are most alike; or take a merged group apart again."""
    numbers: list[int] = []

    def change(groups: Groups) -> Groups:
        _shown(groups, group)
        if merged := [one for one, other in groups.merge.items() if other == group]:
            numbers.extend([group, *merged])
            return file.changed(groups, merge={one: to for one, to in groups.merge.items() if to != group})
        if group not in groups.clusters:
            raise ScanError(f"group {group} is itself a part of a group that was split; scan edit undo, then --parts 3")
        numbers.extend(range(groups.next, groups.next + parts))
        names = {number: said for number, said in groups.names.items() if number != group}
        splits = groups.split | {group: tuple(numbers)}
        return file.changed(groups, split=splits, next=groups.next + parts, names=names)

    _edit(change, check=True)
    print(f"group {group} is groups {', '.join(map(str, numbers))} now")


@edit.command()
def ignore(
    group: Annotated[int, typer.Argument(help=GROUP)],
    no: Annotated[bool, typer.Option("--no", help="Take it back.")] = False,
) -> None:
    """Leave a group out of what scan sort copies."""

    def change(groups: Groups) -> Groups:
        _shown(groups, group)
        others = tuple(each for each in groups.ignore if each != group)
        return file.changed(groups, ignore=others if no else (*others, group))

    _edit(change)
    print(f"group {group} is {'no longer ' if no else ''}left out by scan sort")


@edit.command()
def move(
    group: Annotated[int, typer.Argument(help="The group that the images belong to.")],
    images: Annotated[list[str], typer.Argument(help="Images, as predictions.parquet or their paths name them.")],
) -> None:
    """Put images into a group."""
    from pipeline.groups.apply import read_predictions

    table = read_predictions().select(["source", "content"]).drop_null().to_pylist()
    contents = {row["source"]: row["content"] for row in table}
    found = {each: _source(each, contents) for each in images}

    def change(groups: Groups) -> Groups:
        _shown(groups, group)
        answers = file.load_answers()
        for source in found.values():
            answers[contents[source]] = (group, source)
        file.save_answers(answers)
        return groups

    _edit(change)
    print(f"{len(found)} image{'s are' if len(found) > 1 else ' is'} in group {group} now")


@edit.command()
def undo() -> None:
    """Take back the last change."""
    with file.lock():
        saved = sorted(UNDO.glob("*"))
        if not saved:
            raise ScanError("there is no change to take back")
        for path in (file.FILE, file.ANSWERS):
            if (saved[-1] / path.name).exists():
                (saved[-1] / path.name).replace(path)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(saved[-1])
    print("the last change is taken back" + (f"; {len(saved) - 1} more can be" if len(saved) > 1 else ""))


def _edit(change: Callable[[Groups], Groups], check: bool = False) -> None:
    """Changes the groups of the last run, and keeps what they were. With ``check`` the change is tried first."""
    from pipeline.groups.apply import Grouping
    from pipeline.groups.numbering import numbered

    numbered()
    with file.lock():
        before = file.load()
        saved = UNDO / f"{max((int(path.name) for path in UNDO.glob('[0-9]*')), default=0) + 1:06d}"
        saved.mkdir(parents=True)
        for path in (file.FILE, file.ANSWERS):
            if path.exists():
                shutil.copy(path, saved)
        try:
            file.save(change(before))
            if check:
                _ = Grouping().centers
        except BaseException:
            file.save(before)
            shutil.rmtree(saved)
            raise


def _shown(groups: Groups, group: int) -> None:
    """Raises ``ScanError`` if ``group`` is not one that a person sees."""
    if group in groups.merge:
        raise ScanError(f"group {group} is shown as group {groups.shown_as(group)}; give that number")
    if group not in groups.shown:
        raise ScanError(f"there is no group {group}; there are {', '.join(map(str, groups.shown))}")


def _source(image: str, contents: dict[str, str]) -> str:
    """The name in the source of what a person calls ``image``: that name, its end, or a path. Raises ``ScanError``."""
    if image in contents:
        return image
    ends = [source for source in contents if re.search(rf"(^|/){re.escape(source)}$", image.replace("\\", "/"))]
    ends = ends or [source for source in contents if source.endswith("/" + image)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ScanError(f"{image} may be {' or '.join(sorted(ends)[:3])}; give more of its path")
    raise ScanError(f"{image} is no image of the last run; scan show says where predictions.parquet lists them")
