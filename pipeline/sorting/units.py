"""What a folder has: the photos that were sorted into it, and what a person has done there since."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sorting.made import ASIDE, FILE, PARTIAL, Made, has_original, is_as_made
from pipeline.sorting.manifest import Manifest
from pipeline.sorting.names import fold, split

SYSTEM = {".ds_store", "thumbs.db", "desktop.ini", "lost+found", "system volume information", ".trashes",
          ".spotlight-v100", ".fseventsd", "$recycle.bin"}  # fmt: skip


@dataclass
class Unit:
    """One copy of a photo, and all that travels with it."""

    photo: str  # its name in the source
    copy: int
    files: dict[str, Made] = field(default_factory=dict)  # by their own names, ``Made.file``
    touched: bool = False  # a person has changed, moved or added something: all of it stays where it is

    @property
    def folder(self) -> str:
        """Where it is; of a photo whose files are on their way, where most of it was."""
        made = self.files.get(self.photo) or next(iter(self.files.values()))
        return os.path.dirname(made.path)

    @property
    def removable(self) -> bool:
        """Whether nothing is lost if it goes."""
        return not self.touched and all(map(has_original, self.files.values()))


@dataclass
class Existing:
    """All that a folder has."""

    units: dict[str, list[Unit]] = field(default_factory=dict)  # by photo
    strangers: dict[str, list[str]] = field(default_factory=dict)  # folder → names that the program has not made
    changed: int = 0  # files that are not as they were made
    gone: int = 0  # files that are not where they were made
    added: int = 0  # files of a person

    @property
    def all(self) -> list[Unit]:
        """Every unit."""
        return [unit for units in self.units.values() for unit in units]


def look_at(manifest: Manifest) -> Existing:
    """Compares the folder of ``manifest`` with what it says. Changes nothing."""
    found = Existing()
    found.strangers, found.added = _strangers(manifest)
    starts = {folder: _starts(names) for folder, names in found.strangers.items()}
    units: dict[tuple[str, int], Unit] = {}
    for made in manifest.made.values():
        as_made = is_as_made(manifest.folder, made)
        there = as_made or os.path.lexists(manifest.folder / made.path)
        if manifest.undoing and not there:
            continue  # it is the program that has removed it
        unit = units.setdefault((made.photo, made.copy), Unit(made.photo, made.copy))
        unit.files[made.file] = made
        folder, name = os.path.split(made.path)
        beside = made.file == made.photo and fold(split(name)[0]) in starts.get(folder, ())
        unit.touched |= not as_made or beside
        found.changed += there and not as_made
        found.gone += not there
    for (photo, _), unit in sorted(units.items()):
        found.units.setdefault(photo, []).append(unit)
    return found


def _strangers(manifest: Manifest) -> tuple[dict[str, list[str]], int]:
    found: dict[str, list[str]] = {}
    known, count = {fold(path) for path in manifest.made}, 0
    for root, folders, files in os.walk(manifest.folder):
        below = os.path.relpath(root, manifest.folder)
        below = "" if below == "." else below.replace(os.sep, "/")
        for name in (*files, *folders):
            path = f"{below}/{name}" if below else name
            own = not below and (name in (FILE, PARTIAL) or name.startswith(ASIDE))
            if own or fold(path) in known or path in manifest.folders:
                continue
            found.setdefault(below, []).append(name)
            is_file = name not in folders or os.path.islink(os.path.join(root, name))
            count += is_file and name.lower() not in SYSTEM
    return found, count


def _starts(names: list[str]) -> set[str]:
    """What stands before a dot in one of ``names``: ``IMG.JPG.xmp`` belongs to ``IMG`` and to ``IMG.JPG``."""
    return {fold(name[:at]) for name in names for at, each in enumerate(name) if each == "."}


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing but what an operating system puts there."""
    with os.scandir(folder) as entries:
        return all(entry.name.lower() in SYSTEM or entry.name == PARTIAL for entry in entries)
