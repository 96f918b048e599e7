"""Changes of the groups that a person makes, each of which can be undone: ``scan edit`` and ``scan review`` make them.

Nothing is trained again. Each function returns what it has done, in words, and raises ``ScanError`` if it cannot.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pipeline.groups import file
from pipeline.groups.file import Groups
from scan_core.errors import ScanError

UNDO = Path(".scan/undo")  # what groups.yaml and answers.csv were before each change, the oldest first
MOST_PARTS = 20  # of a group that is split


def name(group: int, words: str) -> str:
    """Names a group; an empty name is none."""
    words = words.strip()

    def change(groups: Groups) -> Groups:
        check_shown(groups, group)
        others = {number: said for number, said in groups.names.items() if number != group}
        return file.changed(groups, names=others | ({group: words} if words else {}))

    _edit(change)
    return f"group {group} is {words!r} now" if words else f"group {group} has no name now"


def take_suggested() -> str:
    """Takes the names that are suggested for groups without one."""
    from pipeline.groups.apply import Grouping
    from pipeline.groups.suggestions import suggested_names

    found = suggested_names(Grouping())
    if not found:
        raise ScanError("no name is suggested; scan edit name gives one")
    _edit(lambda groups: file.changed(groups, names=groups.names | found))
    return "\n".join(f"group {group} is {word!r} now" for group, word in sorted(found.items()))


def merge(groups: list[int]) -> str:
    """Shows several groups as the first of them."""
    if len(set(groups)) < 2:
        raise ScanError("merge got one group; give two or more, such as scan edit merge 3 7")
    kept, *others = dict.fromkeys(groups)

    def change(before: Groups) -> Groups:
        for each in groups:
            check_shown(before, each)
        names = {number: said for number, said in before.names.items() if number not in others}
        for each in others:  # a name is not lost if the group that stays has none
            if each in before.names:
                names.setdefault(kept, before.names[each])
        return file.changed(before, merge=before.merge | dict.fromkeys(others, kept), names=names)

    _edit(change)
    return f"groups {', '.join(map(str, others))} are shown as group {kept} now"


def split(group: int, parts: int = 2) -> str:
    """Splits a group into those of its images that are most alike; or takes a merged group apart again."""
    numbers: list[int] = []

    def change(groups: Groups) -> Groups:
        after, found = split_groups(groups, group, parts)
        numbers.extend(found)
        return after

    _edit(change, check=True)
    return f"group {group} is groups {', '.join(map(str, numbers))} now"


def split_groups(groups: Groups, group: int, parts: int) -> tuple[Groups, list[int]]:
    """``groups`` after ``split``, and the numbers of the new groups. Nothing is written."""
    check_shown(groups, group)
    if not 2 <= parts <= MOST_PARTS:
        raise ScanError(f"a group cannot be split into {parts}; 2 to {MOST_PARTS} groups are allowed")
    if merged := [one for one, other in groups.merge.items() if other == group]:
        apart = {one: to for one, to in groups.merge.items() if to != group}
        return file.changed(groups, merge=apart), [group, *merged]
    if group not in groups.clusters:
        raise ScanError(f"group {group} is itself a part of a group that was split; scan edit undo, then --parts 3")
    numbers = list(range(groups.next, groups.next + parts))
    names = {number: said for number, said in groups.names.items() if number != group}
    splits = groups.split | {group: tuple(numbers)}
    return file.changed(groups, split=splits, next=groups.next + parts, names=names), numbers


def ignore(group: int, ignored: bool = True) -> str:
    """Leaves a group out of what ``scan sort`` copies, or no longer."""

    def change(groups: Groups) -> Groups:
        check_shown(groups, group)
        others = tuple(each for each in groups.ignore if each != group)
        return file.changed(groups, ignore=(*others, group) if ignored else others)

    _edit(change)
    return f"group {group} is {'' if ignored else 'no longer '}left out by scan sort"


def move(contents: Mapping[str, str], group: int) -> str:
    """Puts images into a group. ``contents`` are theirs, by their names in the source."""

    def change(groups: Groups) -> Groups:
        check_shown(groups, group)
        answers = file.load_answers()
        answers |= {content: (group, source) for source, content in contents.items()}
        file.save_answers(answers)
        return groups

    _edit(change)
    return f"{len(contents)} image{' is' if len(contents) == 1 else 's are'} in group {group} now"


def undo() -> str:
    """Takes back the last change."""
    with file.lock():
        saved = _saved()
        if not saved:
            raise ScanError("there is no change to take back")
        _restore(saved[-1])
    return "the last change is taken back" + (f"; {len(saved) - 1} more can be" if len(saved) > 1 else "")


def undoable() -> int:
    """How many changes can be taken back."""
    return len(_saved())


def check_shown(groups: Groups, group: int) -> None:
    """Raises ``ScanError`` if ``group`` is not one that a person sees."""
    if group in groups.merge:
        raise ScanError(f"group {group} is shown as group {groups.shown_as(group)}; give that number")
    if group not in groups.shown:
        raise ScanError(f"there is no group {group}; there are {', '.join(map(str, groups.shown))}")


def _edit(change: Callable[[Groups], Groups], check: bool = False) -> None:
    """Changes the groups of the last run, and keeps what they were. With ``check`` the change is tried first."""
    from pipeline.groups.apply import Grouping
    from pipeline.groups.numbering import numbered

    numbered()
    with file.lock():
        before = file.load()
        saved = UNDO / f"{max((int(path.name) for path in _saved()), default=0) + 1:06d}"
        unfinished = saved.with_name(f".{saved.name}")  # killed here, it is no change that could be taken back
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for path in (file.FILE, file.ANSWERS):
            if path.exists():
                shutil.copy(path, unfinished)
        unfinished.rename(saved)
        try:
            file.save(change(before))
            if check:
                _ = Grouping().centers
        except BaseException:
            _restore(saved)
            raise


def _saved() -> list[Path]:
    return sorted(UNDO.glob("[0-9]*"))


def _restore(saved: Path) -> None:
    """Both files as they were; each appears whole or not at all."""
    for path in (file.FILE, file.ANSWERS):
        if (saved / path.name).exists():
            shutil.copy(saved / path.name, partial := path.with_name(f".{path.name}.partial"))
            partial.replace(path)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(saved)


def image_contents(images: Iterable[str]) -> dict[str, str]:
    """Names in the source → contents, of what a person calls ``images``. Raises ``ScanError`` naming one unknown."""
    from pipeline.groups.apply import read_predictions

    table = read_predictions().select(["source", "content"]).drop_null().to_pylist()
    contents = {row["source"]: row["content"] for row in table}
    return {source: contents[source] for source in (_source(each, contents) for each in images)}


def _source(image: str, contents: dict[str, str]) -> str:
    """The name in the source of what a person calls ``image``: that name, its end, or a path; or its content.

    Raises ``ScanError``.
    """
    if image in contents:
        return image
    for source, content in contents.items():
        if content == image:  # a report without names of files says so
            return source
    whole = image.replace("\\", "/")
    ends = [source for source in contents if whole.endswith("/" + source)]
    ends = ends or [source for source in contents if source.endswith("/" + image)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ScanError(f"{image} may be {' or '.join(sorted(ends)[:3])}; give more of its path")
    raise ScanError(f"{image} is no image of the last run; scan show says where predictions.parquet lists them")
