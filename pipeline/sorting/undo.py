"""``scan sort DIR --undo``: takes back what was made."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.progress import CountProgress
from pipeline.sorting import disk, manifest
from pipeline.sorting.made import FILE, has_original, is_as_made
from pipeline.sorting.units import is_empty
from scan_core.errors import ScanError


@dataclass
class Undone:
    """What has come out."""

    removed: int = 0  # files
    changed: int = 0  # files that a person has changed, moved or removed
    kept: int = 0  # copies whose originals are gone
    strangers: bool = False  # whether the folder has files that the program has not made


def undo_sort(folder: Path) -> Undone:
    """Removes each file that ``scan sort`` has made in ``folder`` and nobody has changed, and its empty folders.

    A copy whose original is gone stays. Raises ``ScanError`` if nothing was made there.
    """
    if not folder.is_dir():
        raise ScanError(f"there is no folder {folder}; give the one that photos were sorted into")
    with disk.writing(folder), disk.alone(folder):
        known = manifest.load(folder)
        if known is None:
            raise ScanError(f"{folder} has nothing that scan sort has made; there is nothing to take back")
        done = Undone()
        # Told to the next call, should this one be killed. On a full disk it cannot be, and room comes first.
        with contextlib.suppress(OSError):
            known.note({"undo": True})
        with CountProgress("undo", len(known.made)) as progress:
            for number, made in enumerate(list(known.made.values()), 1):
                if not is_as_made(folder, made):
                    done.changed += 1
                elif not has_original(made):
                    done.kept += 1
                    continue
                else:
                    os.unlink(folder / made.path)
                    done.removed += 1
                del known.made[made.path]
                if not number % 64 or not known.made:
                    progress.update(number, 0)
        disk.remove_partial(folder)
        for below in sorted(known.folders, reverse=True):
            with contextlib.suppress(OSError):  # it is not empty, or is gone
                os.rmdir(folder / below)
                known.folders.discard(below)
        if done.kept:
            known.rewrite()
        else:
            os.unlink(folder / FILE)
            done.strangers = not is_empty(folder)
    if known.new and not done.kept:
        with contextlib.suppress(OSError):  # a person has put something there
            folder.rmdir()
    known.close()
    return done
