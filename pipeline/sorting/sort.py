"""``scan sort DIR``: what is wanted in a folder is made, moved or removed, a step at a time."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.environment import data_home
from pipeline.groups.apply import Grouping, read_predictions
from pipeline.params import Params
from pipeline.sorting import disk, manifest
from pipeline.sorting.originals import read_catalog
from pipeline.sorting.places import Places, places_of
from pipeline.sorting.steps import Done, Steps
from pipeline.sorting.units import Existing, is_empty, look_at
from pipeline.sorting.wanted import Plan, plan_files
from scan_core.data.open import resolve
from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.data.types import printable
from scan_core.errors import ScanError


@dataclass
class Sorted:
    """What has come out."""

    folder: Path
    places: Places
    plan: Plan
    existing: Existing
    missing: int  # photos of the run that are no longer in the source
    done: Done


def sort_photos(folder: Path, params: Params, link: bool, xmp: bool) -> Sorted:
    """Makes ``folder`` what the last run says. Raises ``ScanError`` for what is wrong, ``OSError`` for a full disk."""
    data = params.data
    if link and data.name != "folder":
        raise ScanError(f"--link goes with a folder of photos; data.name is {data.name}: leave --link away")
    grouping = Grouping()
    places = places_of(read_predictions(grouping), grouping, data.boxes is not None)
    check_target(folder, data)
    catalog = read_catalog(data, places.of, places.grouped)
    if places.of and not catalog.photos:
        raise ScanError(
            f"none of the {len(places.of):,} photos of the last run is in {data.path or data.name}; if they are "
            "elsewhere now, set data.path to that place, else run scan run again"
        )
    with disk.writing(folder), _made_if_needed(folder) as new, disk.alone(folder):
        there = manifest.load(folder)
        existing = look_at(there) if there else Existing()
        missing = places.of.keys() - catalog.photos.keys()
        for photo in missing - existing.units.keys():  # of the others there is a copy
            del places.of[photo]
        plan = plan_files(places, catalog, existing, link, xmp)
        steps = Steps(folder, plan, catalog.source)
        steps.check()
        done = steps.take(there or manifest.start(folder, source_of(data), new))
    return Sorted(folder, places, plan, existing, len(missing), done)


def source_of(data: Data) -> str:
    """What the photos are from, in words."""
    if data.name not in SOURCES_WITH_PATH:
        return data.name
    return printable(os.path.abspath(resolve(data.path or "", Path.cwd())))


def check_target(folder: Path, data: Data) -> None:
    """Raises ``ScanError`` if photos cannot be sorted into ``folder``."""
    if not folder.parent.is_dir():
        raise ScanError(f"there is no folder {folder.parent}; make it first, or give another place")
    if folder.exists() and not folder.is_dir():
        raise ScanError(f"{folder} is a file; give a folder, which may be a new one")
    path = resolve(data.path or "", Path.cwd()) if data.name in SOURCES_WITH_PATH else data_home(Path.cwd())
    if path.is_dir() and _is_in(folder, path):
        raise ScanError(f"{folder} is inside of {path}, whose photos are only read; give a folder elsewhere")
    if path.exists() and _is_in(path, folder):
        raise ScanError(f"{path}, whose photos are only read, is inside of {folder}; give a folder elsewhere")
    if not folder.exists():
        return
    known = manifest.load(folder)
    if known is None and not is_empty(folder):
        raise ScanError(f"{folder} has files that scan sort has not made; give a new folder, or an empty one")
    if known and known.source != source_of(data):
        raise ScanError(
            f"{folder} has photos from {known.source}, and the last run is of {source_of(data)}; give another folder, "
            "or take it back first with --undo"
        )


def _is_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, also by links. It need not exist."""
    real = Path(os.path.realpath(path))
    return folder.exists() and any(each.exists() and each.samefile(folder) for each in (real, *real.parents))


@contextlib.contextmanager
def _made_if_needed(folder: Path) -> Iterator[bool]:
    """Whether the folder is new. A new one that stays empty is removed."""
    new = not folder.exists()
    if new:
        folder.mkdir()
    try:
        yield new
    finally:
        if new:
            with contextlib.suppress(OSError):  # it has files
                folder.rmdir()
