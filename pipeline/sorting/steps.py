"""The steps from what a folder has to what is wanted there."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.progress import CountProgress
from pipeline.sorting import disk
from pipeline.sorting.made import ASIDE, PARTIAL, Made, is_as_made, is_inside
from pipeline.sorting.manifest import Manifest
from pipeline.sorting.names import fold
from pipeline.sorting.originals import as_bytes
from pipeline.sorting.wanted import Plan, Wanted
from scan_core.data.chunks import content_of
from scan_core.data.types import Item, Source
from scan_core.errors import ScanError

SECONDS = 0.1  # between updates of the progress bar


@dataclass
class Done:
    """How many files."""

    copied: int = 0
    moved: int = 0
    removed: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # originals that were not copied, and why


class Steps:
    """All steps of a plan."""

    def __init__(self, folder: Path, plan: Plan, source: Source) -> None:
        self.folder, self.source, self.done = folder, source, Done()
        self.moves: list[tuple[Made, str]] = []
        self.makes: list[Wanted] = []
        self.removes = list(plan.obsolete)
        for wanted, have in plan.wanted:
            if have and have.path != wanted.path:
                self.moves.append((have, wanted.path))
            # What has changed is replaced where it is then, so that it is not lost if the original cannot be read.
            if have is None or not wanted.is_up_to_date(have):
                self.makes.append(wanted)

    def check(self) -> None:
        """Raises ``ScanError`` if there is no room, or if something is where a folder should be."""
        for below in sorted({os.path.dirname(path) for path in self._targets()}):
            at = below
            while at:
                path = self.folder / at
                if os.path.lexists(path) and not is_inside(self.folder, at):
                    what = "a link" if path.is_symlink() else "no folder"
                    raise ScanError(f"{path} is {what}, and photos belong in a folder of this name; move it elsewhere")
                at = os.path.dirname(at)
        disk.remove_partial(self.folder)  # it may be what takes the room
        needed = sum(wanted.size for wanted in self.makes) - sum(made.size for made in self.removes)
        copied = [wanted.original.path for wanted in self.makes if wanted.original and wanted.kind == "copy"]
        disk.check_room(self.folder, needed, next(iter(filter(None, copied)), None))

    def _targets(self) -> list[str]:
        return [wanted.path for wanted in self.makes] + [path for _, path in self.moves]

    def take(self, manifest: Manifest) -> Done:
        """Takes them. Raises ``OSError`` if the disk is full, ``ScanError`` if a person changes the folder meanwhile.

        Whatever ends it, what was finished is noted, and the next call goes on from there.
        """
        self.manifest = manifest
        if manifest.undoing:  # by a call that was killed, which did not note what it had removed
            manifest.forget(path for path in list(manifest.made) if not os.path.lexists(self.folder / path))
        self.occupied = Counter(map(fold, manifest.made))
        try:
            with CountProgress("sort", len(self.removes) + len(self.moves) + len(self.makes)) as progress:
                shown = 0.0
                for _ in self._all():
                    if time.monotonic() - shown > SECONDS:
                        shown = time.monotonic()
                        self._show(progress)
                self._show(progress)
            self._remove_empty_folders()
            # On a full disk the manifest stays as it is, which is longer and says the same.
            with contextlib.suppress(OSError):
                manifest.rewrite()
            disk.remove_partial(self.folder)
        finally:
            manifest.close()
        return self.done

    def _show(self, progress: CountProgress) -> None:
        done = self.done
        progress.update(done.copied + done.moved + done.removed, len(done.unreadable))

    def _all(self) -> Iterator[None]:
        for made in self.removes:
            self._remove(made)
            yield
        yield from self._move_all()
        by_name: dict[str, list[Wanted]] = {}
        for wanted in self.makes:
            if wanted.text is not None or (wanted.original and wanted.original.path):
                self._make(wanted, None)
                yield
            else:
                by_name.setdefault(wanted.photo, []).append(wanted)
        if by_name:
            yield from self._make_from_source(by_name)

    def _make_from_source(self, by_name: dict[str, list[Wanted]]) -> Iterator[None]:
        for item in self.source.read():
            if not by_name:
                return
            if item.name not in by_name or not isinstance(item, Item) or isinstance(item.data, str):
                continue
            if content_of(item.data).hex() == by_name[item.name][0].was:
                for wanted in by_name.pop(item.name):
                    self._make(wanted, item.data)
                    yield
        self.done.unreadable += [(name, "it changes just now") for name in by_name]

    def _remove(self, made: Made) -> None:
        path = self.folder / made.path
        if is_as_made(self.folder, made):
            self.manifest.take({"remove": made.path}, lambda: os.unlink(path))
            self._free(made.path)
            self.done.removed += 1

    def _free(self, path: str) -> None:
        key = fold(path)
        self.occupied[key] -= 1
        if not self.occupied[key]:
            del self.occupied[key]

    def _move_all(self) -> Iterator[None]:
        """Moves each file as soon as its place is free. Files that change places go aside first."""
        waiting, aside = {made.path: (made, target) for made, target in self.moves}, 0
        while waiting:
            free = [at for at, (_, to) in waiting.items() if fold(to) not in self.occupied or fold(to) == fold(at)]
            for at in free:
                made, target = waiting.pop(at)
                self._move(made, at, target)
                self.done.moved += 1
                yield
            if not free:
                there = {*map(fold, waiting)}
                circle = [at for at, (_, to) in waiting.items() if fold(to) in there]
                if not circle:
                    raise _Meanwhile(self.folder / next(iter(waiting.values()))[1])
                for at in circle:
                    made, target = waiting.pop(at)
                    while os.path.lexists(self.folder / f"{ASIDE}{aside}"):
                        aside += 1
                    self._move(made, at, f"{ASIDE}{aside}")
                    waiting[f"{ASIDE}{aside}"] = made, target

    def _move(self, made: Made, at: str, target: str) -> None:
        source, path = self.folder / at, self.folder / target
        self._make_folder(os.path.dirname(target))
        if os.path.lexists(path) and not (fold(at) == fold(target) and path.samefile(source)):
            raise _Meanwhile(path)
        self.manifest.take({"move": at, "to": target}, lambda: os.rename(source, path))
        self._free(at)
        self.occupied[fold(target)] += 1

    def _make(self, wanted: Wanted, data: bytes | np.ndarray | None) -> None:
        original, path = wanted.original, self.folder / wanted.path
        try:
            size, mtime_ns = self._write(wanted, data)
            inside = original.inside if original else None
            made = Made(
                wanted.path, wanted.photo, wanted.copy, wanted.file, wanted.kind, size, mtime_ns, inside, wanted.was
            )
            self._make_folder(os.path.dirname(wanted.path))
            have = self.manifest.made.get(wanted.path)
            replaced = have is not None and is_as_made(self.folder, have)
            if os.path.lexists(path) and not replaced:
                raise _Meanwhile(path)
            self.manifest.take({"make": asdict(made)}, lambda: os.rename(self.folder / PARTIAL, path))
            self.occupied[fold(wanted.path)] += not replaced
            self.done.copied += 1
        except disk.Unreadable as error:
            self.done.unreadable.append((wanted.file, str(error)))
        finally:
            disk.remove_partial(self.folder)

    def _write(self, wanted: Wanted, data: bytes | np.ndarray | None) -> tuple[int, int]:
        """Writes the whole file under another name. Returns its size and time."""
        partial, original = self.folder / PARTIAL, wanted.original
        if wanted.text is not None:
            return disk.write_file(wanted.text, partial)
        assert original is not None
        if data is not None:
            return disk.write_file(as_bytes(data), partial)
        assert original.path is not None
        if wanted.kind == "link":
            return disk.link_file(original.path, partial)
        return disk.copy_file(original.path, partial)

    def _make_folder(self, below: str) -> None:
        if not below or is_inside(self.folder, below):
            return
        self._make_folder(os.path.dirname(below))
        path = self.folder / below
        if os.path.lexists(path):
            raise _Meanwhile(path)
        self.manifest.take({"folder": below}, lambda: os.mkdir(path))

    def _remove_empty_folders(self) -> None:
        for below in sorted(self.manifest.folders, reverse=True):
            with contextlib.suppress(OSError):  # it is not empty, or a person has removed it
                os.rmdir(self.folder / below)
            if not (self.folder / below).is_dir():
                self.manifest.folders.discard(below)


class _Meanwhile(ScanError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} has appeared while scan sort was running; run the same again")
