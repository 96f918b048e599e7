"""Which file belongs where: each photo in its places, under a name of its own, with all that travels with it."""

import hashlib
import os
from dataclasses import dataclass, field
from typing import Literal

from pipeline.sorting.made import Made, has_original
from pipeline.sorting.names import Taken, clean_rest, fold, split
from pipeline.sorting.originals import RAW, Catalog, Companion, Original, companions_of, readings
from pipeline.sorting.places import Place, Places
from pipeline.sorting.units import Existing, Unit
from pipeline.sorting.xmp import EMPTY, with_keywords

XMP = ".xmp"


@dataclass(frozen=True)
class Wanted:
    """A file that should be below the folder."""

    path: str
    photo: str
    copy: int
    file: str  # as ``Made.file``
    kind: Literal["copy", "link", "text"]
    original: Original | None  # None: it has none, or that is gone, and what is there stays what it is
    text: bytes | None = None

    @property
    def was(self) -> str:
        """See ``Made.was``."""
        if self.text is not None:
            return hashlib.sha256(self.text).hexdigest()[:32]
        return self.original.was if self.original else ""

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        if self.text is not None:
            return len(self.text)
        return self.original.size if self.original and self.kind == "copy" else 0

    def is_up_to_date(self, made: Made) -> bool:
        """Whether ``made`` is this file, wherever it is."""
        if self.original is None and self.text is None:
            return True
        if self.kind == "link":
            return made.kind == "link" and self.original is not None and made.inside == self.original.path
        return (made.kind, made.was) == (self.kind, self.was)


@dataclass
class Placed:
    """A photo in one of its places."""

    photo: str
    place: Place
    copy: int
    unit: Unit | None  # what there is of it already
    stem: str
    rest: str  # what follows the stem of the photo itself
    companions: list[Companion] = field(default_factory=list)

    @property
    def rests(self) -> list[str]:
        """What follows the stem of each file."""
        return [self.rest, *(clean_rest(each.rest) for each in self.companions)]


@dataclass
class Plan:
    """All that is wanted, what there is of it, and what is not wanted any more."""

    wanted: list[tuple[Wanted, Made | None]] = field(default_factory=list)
    obsolete: list[Made] = field(default_factory=list)
    kept: int = 0  # photos that are not wanted any more, but whose originals are gone
    companions: int = 0
    no_xmp: int = 0  # sidecars that no keyword can be added to


def plan_files(places: Places, catalog: Catalog, existing: Existing, link: bool, xmp: bool) -> Plan:
    """Where each file belongs. What a person has touched is neither wanted nor obsolete."""
    plan = Plan()
    placed, fixed = _match(places, catalog, existing, plan)
    taken: dict[str, list[str]] = {folder: list(names) for folder, names in existing.strangers.items()}
    for unit in fixed:
        for made in unit.files.values():
            folder, name = os.path.split(made.path)
            taken.setdefault(folder, []).append(name)
    by_folder: dict[str, list[Placed]] = {}
    for each in placed:
        by_folder.setdefault(each.place.folder, []).append(each)
    for folder, members in sorted(by_folder.items()):
        named = _named(members, Taken(taken.get(folder, ())))
        files = [_files(each, f"{folder}/{stem}", catalog, link) for each, stem in named]
        own = {fold(file.path) for of_photo in files for file in of_photo}
        for (each, stem), of_photo in zip(named, files, strict=True):
            if xmp:
                of_photo = _with_sidecars(of_photo, each, f"{folder}/{stem}", own, plan)
            _add(plan, of_photo, each.unit)
    return plan


def _match(places: Places, catalog: Catalog, existing: Existing, plan: Plan) -> tuple[list[Placed], list[Unit]]:
    """Photos in their places, with what there is of each; and the units that stay as they are."""
    companions = companions_of(sorted(places.of), catalog.others)
    placed, fixed = [], []
    for photo in sorted({*places.of, *existing.units}):
        units, open_places = list(existing.units.get(photo, [])), list(places.of.get(photo, []))
        pairs: list[tuple[Place, Unit | None]] = []
        # First what is where it belongs, then what a person has touched, which takes a place although it stays.
        for unit in sorted(
            units, key=lambda unit: (all(unit.folder != p.folder for p in open_places), not unit.touched)
        ):
            here = next((p for p in open_places if p.folder == unit.folder), None) or next(iter(open_places), None)
            if here:
                open_places.remove(here)
            if unit.touched:
                fixed.append(unit)
            elif here:
                pairs.append((here, unit))
            elif unit.removable:
                plan.obsolete += unit.files.values()
            else:
                fixed.append(unit)
                plan.kept += 1
        pairs += [(place, None) for place in open_places]
        numbers = iter(sorted({*range(len(pairs) + len(units))} - {unit.copy for unit in units}))
        for place, known in pairs:
            if known or photo in catalog.photos:
                copy = known.copy if known else next(numbers)
                placed.append(_placed(photo, place, copy, known, companions.get(photo, []), catalog))
    return placed, fixed


def _placed(
    photo: str, place: Place, copy: int, unit: Unit | None, companions: list[Companion], catalog: Catalog
) -> Placed:
    found, files = list(companions), unit.files if unit else {}
    known = {photo, *(each.name for each in found)}
    for file, made in files.items():
        # A companion whose original is gone is the only one there is, and goes on travelling with its photo.
        if file not in known and not file.startswith("/") and not has_original(made):
            found.append(Companion(file, next(iter(readings(file.rpartition("/")[2])))[1]))
    name = photo.rpartition("/")[2]
    stem, rest = split(name)
    if photo in catalog.photos:
        added = catalog.photos[photo].suffix
    else:  # what was made of it tells which suffix it was given
        made_rest = split(files[photo].path)[1] if photo in files else rest
        added = "" if made_rest == clean_rest(rest) else made_rest
    if added:
        stem, rest = name, added
    return Placed(photo, place, copy, unit, stem, clean_rest(rest), found)


def _named(members: list[Placed], taken: Taken) -> list[tuple[Placed, str]]:
    """The stem of each of the photos in one folder. Photos of one stem and source folder share it."""
    families: dict[tuple[str, str, int], list[Placed]] = {}
    for each in members:
        source, number = each.photo.rpartition("/")[0], 0
        folded = {fold(rest) for rest in each.rests}
        while any(folded & {*map(fold, other.rests)} for other in families.get((source, each.stem, number), [])):
            number += 1
        families.setdefault((source, each.stem, number), []).append(each)
    named = []
    for (source, stem, _), family in families.items():
        rests = [rest for each in family for rest in each.rests]
        companions = any(each.companions for each in family)
        found = taken.give(stem, [part for part in source.split("/") if part], rests, companions)
        named += [(each, found) for each in family]
    return named


def _files(each: Placed, start: str, catalog: Catalog, link: bool) -> list[Wanted]:
    """The photo and its companions, each as it is."""
    kind: Literal["copy", "link"] = "link" if link else "copy"
    photo = catalog.photos.get(each.photo)
    files = []
    if photo or (each.unit and each.photo in each.unit.files):
        files.append(Wanted(start + each.rest, each.photo, each.copy, each.photo, kind, photo))
    for companion in each.companions:
        original = catalog.others.get(companion.name)
        path = start + clean_rest(companion.rest)
        files.append(Wanted(path, each.photo, each.copy, companion.name, kind, original))
    return files


def _with_sidecars(files: list[Wanted], each: Placed, start: str, own: set[str], plan: Plan) -> list[Wanted]:
    """``files`` with the group's keyword in each sidecar, and a new sidecar for a photo or raw file without one.

    digiKam and darktable read ``IMG.JPG.xmp``. Lightroom reads sidecars of raw files alone, as ``IMG.xmp``, and
    darktable reads these, too. ``own`` are the folded paths that are taken.
    """
    keywords, found = each.place.keywords, []
    for file in files:
        if not file.path.lower().endswith(XMP) or file.file == each.photo or file.original is None:
            found.append(file)
            continue
        text = _changed(file.original, keywords)
        plan.no_xmp += text is None
        found.append(file if text is None else _text(each, file.path, file.file, text, file.original))
    rests = {fold(rest) for rest in each.rests}
    new = with_keywords(EMPTY, keywords) or EMPTY
    for rest in each.rests if XMP not in rests else ():
        is_raw = rest.lower() in RAW
        added = XMP if is_raw else rest + XMP
        if (is_raw or rest == each.rest) and fold(rest + XMP) not in rests and fold(start + added) not in own:
            own.add(fold(start + added))
            found.append(_text(each, start + added, "/" + added, new))
    return found


def _changed(original: Original, keywords: tuple[str, ...]) -> bytes | None:
    try:
        with open(original.path or "", "rb") as file:
            return with_keywords(file.read(), keywords)
    except OSError:
        return None


def _text(each: Placed, path: str, file: str, text: bytes, original: Original | None = None) -> Wanted:
    return Wanted(path, each.photo, each.copy, file, "text", original, text)


def _add(plan: Plan, files: list[Wanted], unit: Unit | None) -> None:
    known = dict(unit.files) if unit else {}
    for file in files:
        plan.wanted.append((file, known.pop(file.file, None)))
        plan.companions += file.file != file.photo and not file.file.startswith("/")
    plan.obsolete += known.values()
