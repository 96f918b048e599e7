"""``groups.yaml`` and ``answers.csv``: what a person says of the groups. Both can be edited by hand."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline import artifacts
from pipeline.yaml_file import in_words, read_yaml, where
from scan_core.errors import ScanError
from scan_core.settings import Settings

FILE = Path("groups.yaml")
ANSWERS = Path("answers.csv")  # content,group,source: images that a person has put into a group
COLUMNS = ["content", "group", "source"]
LOCK = Path(".scan/groups.lock")
HEADER = """\
# The groups, by their numbers. scan edit changes this file, and you may: a change counts from the next command on.
"""
ABOUT = {
    "names": "number: name",
    "merge": "number: the group that it is shown as",
    "split": "number: the groups that take its place, each the most similar of its images",
    "ignore": "groups that are left out of what scan sort copies",
    "clusters": "kept by the program: the number of each cluster of the model; the number that comes next, for none is "
    "given twice; and which model it is",
}

Number = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Groups(Settings):
    """The content of ``groups.yaml``."""

    names: dict[Number, Name] = Field(default_factory=dict)
    merge: dict[Number, Number] = Field(default_factory=dict)
    split: dict[Number, tuple[Number, ...]] = Field(default_factory=dict)
    ignore: tuple[Number, ...] = ()
    clusters: tuple[Number, ...] = ()
    next: Number = 1
    model: str = ""

    @field_validator("names")
    @classmethod
    def _one_line(cls, names: dict[int, str]) -> dict[int, str]:
        for number, name in names.items():
            if name != name.strip() or not name.isprintable():
                raise ValueError(
                    f"the name of group {number} is {name!r}; one line without spaces at its ends is allowed"
                )
        return names

    @model_validator(mode="after")
    def _consistent(self) -> "Groups":
        parts = [part for whole in self.split.values() for part in whole]
        known = {*self.clusters, *parts}
        for number in {*self.names, *self.merge, *self.merge.values(), *self.split, *self.ignore} - known:
            raise ValueError(f"there is no group {number}; there are {_listed(sorted(known))}")
        if len(known) != len(self.clusters) + len(parts) or (known and self.next <= max(known)):
            raise ValueError("clusters, split and next give one number to two groups; undo the last change by hand")
        for number in {*self.merge, *self.merge.values()} & {*self.split}:
            raise ValueError(f"group {number} is in merge and in split; one of them is allowed")
        for number in self.merge:
            self.shown_as(number)
        return self

    def shown_as(self, number: int) -> int:
        """The group as which ``number`` is shown, after all merges."""
        seen = [number]
        while (number := self.merge.get(number, number)) != seen[-1]:
            if number in seen:
                raise ValueError(f"merge has a circle: {' to '.join(map(str, [*seen, number]))}")
            seen.append(number)
        return number

    @property
    def shown(self) -> list[int]:
        """The groups that a person sees, in ascending order."""
        parts = [part for whole in self.split.values() for part in whole]
        return sorted({self.shown_as(each) for each in (*self.clusters, *parts) if each not in self.split})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")


def load() -> Groups:
    """``groups.yaml`` as it is; empty if there is none. Raises ``ScanError`` naming what is wrong in it."""
    if not FILE.exists():
        return Groups()
    values = read_yaml(FILE)
    if not isinstance(values, dict):
        raise ScanError(f"{FILE} holds {in_words(values)}; names, merge, split, ignore and clusters are allowed")
    try:
        return Groups.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        what = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] == "value_error" else f"{place} is {json.dumps(first['input'], default=str)[:60]}; "
        if first["type"] == "extra_forbidden":
            shown, what = f"{place} is no part of it; ", f"{', '.join(Groups.model_fields)} are allowed"
        raise ScanError(f"{where(FILE, place)}: {shown}{what[0].lower()}{what[1:]}") from None


def save(groups: Groups) -> None:
    """Writes ``groups.yaml``, all of it or nothing."""
    values = groups.model_dump(mode="json")
    lines = [HEADER]
    for key, about in ABOUT.items():
        value = values[key]
        lines.append(f"# {about}")
        if isinstance(value, dict) and value:
            lines.append(f"{key}:")
            lines += [
                f"  {number}: {json.dumps(value[number], ensure_ascii=False)}" for number in sorted(value, key=int)
            ]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    lines += [f"next: {groups.next}", f"model: {json.dumps(groups.model)}"]
    artifacts.replace_text(FILE, "\n".join(lines) + "\n")


def changed(groups: Groups, **values: Any) -> Groups:
    """A validated copy with some values replaced. Raises ``ScanError``."""
    try:
        return Groups(**{**dict(groups), **values})
    except ValidationError as error:
        raise ScanError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from None


def load_answers() -> dict[str, tuple[int, str]]:
    """Content to group and source. Raises ``ScanError`` naming the line of ``answers.csv`` that is wrong."""
    if not ANSWERS.exists():
        return {}
    found = {}
    with ANSWERS.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"content", "group"} <= set(reader.fieldnames):
            raise ScanError(f"{ANSWERS} has no columns content and group; its first line must name them")
        for row in reader:
            if not (row["group"] or "").isdigit() or not row["content"]:
                raise ScanError(f"{ANSWERS}, line {reader.line_num}: group is {row['group']!r}; a number is allowed")
            found[row["content"]] = (int(row["group"]), row.get("source") or "")
    return found


def save_answers(answers: dict[str, tuple[int, str]]) -> None:
    """Writes ``answers.csv``, all of it or nothing; no file if there are none."""
    if not answers:
        ANSWERS.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((content, group, source) for content, (group, source) in sorted(answers.items()))
    artifacts.replace_text(ANSWERS, text.getvalue())


def lock() -> FileLock:
    """Held while one of the files is read, changed and written."""
    LOCK.parent.mkdir(exist_ok=True)
    return FileLock(LOCK)


def model_digest() -> str:
    """Which model the clusters are of. Raises ``ScanError`` if there is none."""
    path = artifacts.require(artifacts.MODELS / "selflabel.safetensors")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
