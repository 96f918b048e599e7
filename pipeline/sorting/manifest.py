"""``.scan-sort.jsonl``: what ``scan sort`` has made in a folder, one step a line.

A line is written before its step is taken, so only the last line can be of a step that was not taken, and the folder
tells whether it was. Thus a kill at any point leaves no doubt about what the program has made and what a person has.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.sorting.made import FILE, PARTIAL, Made, is_as_made, open_new
from scan_core.errors import ScanError

FORMAT = 1


Step = dict[str, Any]


class Manifest:
    """The manifest of a folder, open for more steps."""

    def __init__(self, folder: Path, header: Step) -> None:
        self.folder, self.header = folder, header
        self.made: dict[str, Made] = {}  # by path
        self.folders: set[str] = set()  # that the program has made
        self.undoing = False
        self._length = 0
        self._file: int | None = None

    @property
    def source(self) -> str:
        """What was sorted, in words."""
        return str(self.header["source"])

    @property
    def new(self) -> bool:
        """Whether the folder itself was made by the program."""
        return bool(self.header["new"])

    def take(self, step: Step, action: Callable[[], None]) -> None:
        """Notes ``step``, then does it by ``action``. If that raises ``OSError``, nothing is noted."""
        start = self._length
        self._append(step)
        try:
            action()
        except OSError:
            self._cut(start)
            raise
        self._apply(step)

    def forget(self, paths: Iterable[str]) -> None:
        """Takes ``paths`` for not made, without a note."""
        for path in paths:
            del self.made[path]

    def note(self, step: Step) -> None:
        """Notes what has no action."""
        self.take(step, lambda: None)

    def close(self) -> None:
        """Ends the last step: from now on, what is missing or different is a person's doing."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # of a full disk: then the folder tells about the last step
            self._append({"end": True})
        os.close(self._file)
        self._file = None

    def rewrite(self) -> None:
        """Replaces the steps by what they come to."""
        steps: list[Step] = [self.header, *({"folder": each} for each in sorted(self.folders))]
        steps += [{"make": asdict(self.made[path])} for path in sorted(self.made)] + [{"end": True}]
        content = "".join(map(_line, steps)).encode()
        partial = self.folder / PARTIAL
        with open(open_new(partial), "wb") as file:
            file.write(content)
        os.rename(partial, self.folder / FILE)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._length = len(content)

    def _append(self, step: Step) -> None:
        if self._file is None:
            self._file = os.open(self.folder / FILE, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._file, self._length)  # what a killed call had begun
        line = _line(step).encode()
        start, written = self._length, 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            self._cut(start)
            raise
        self._length = start + len(line)

    def _cut(self, length: int) -> None:
        assert self._file is not None
        os.ftruncate(self._file, length)
        self._length = length

    def _apply(self, step: Step) -> None:
        if "make" in step:
            made = Made(**step["make"])
            self.made[made.path] = made
        elif "move" in step:
            made = self.made.pop(step["move"])
            self.made[step["to"]] = Made(**{**asdict(made), "path": step["to"]})
        elif "remove" in step:
            del self.made[step["remove"]]
        elif "folder" in step:
            self.folders.add(step["folder"])
        elif "undo" in step:
            self.undoing = True
        elif "end" not in step:
            raise KeyError(*step)

    def _was_taken(self, step: Step) -> bool:
        """Whether the last step of a call that was killed has happened."""
        if "make" in step:
            return is_as_made(self.folder, Made(**step["make"]))
        if "move" in step:
            return not is_as_made(self.folder, self.made[step["move"]])
        if "remove" in step:
            return not is_as_made(self.folder, self.made[step["remove"]])
        if "folder" in step:
            return Path(self.folder, step["folder"]).is_dir()
        return True


def _line(step: Step) -> str:
    return json.dumps(step) + "\n"


def start(folder: Path, source: str, new: bool) -> Manifest:
    """The manifest of an empty folder, which is ``new`` if the program has made it. Raises ``OSError``."""
    manifest = Manifest(folder, {"scan_sort": FORMAT, "source": source, "new": new})
    manifest.rewrite()
    return manifest


def load(folder: Path) -> Manifest | None:
    """The manifest of ``folder``; None if it has none. Raises ``ScanError`` if it cannot be used."""
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    lines = content.split(b"\n")[:-1]  # what follows the last one is a line that was not finished
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            step = json.loads(line)
            if number == 1:
                if step["scan_sort"] != FORMAT:
                    raise ScanError(f"{path} has format {step['scan_sort']}; {FORMAT} is allowed: use the newer scan")
                manifest = Manifest(folder, {key: step[key] for key in ("scan_sort", "source", "new")})
            elif number < len(lines) or manifest._was_taken(step):
                manifest._apply(step)
            else:
                continue
            manifest._length += len(line) + 1
    except (ValueError, KeyError, TypeError):
        raise ScanError(f"{path}, line {number}, is damaged; delete the file, then give another folder") from None
    if not lines:
        raise ScanError(f"{path} is empty; delete it, then give another folder")
    return manifest
