"""What decoding processes share: the memory that they may hold at once, and what each of them is decoding.

A process without these, as in the served model, decodes without a bound.
"""

import contextlib
import os
import time
from multiprocessing.context import BaseContext
from pathlib import Path

UNIT = 32 * 2**20  # bytes
LEAST_MEMORY = 2**30
SMALL = 8_000_000  # pixels; smaller images are not counted, and wait for nobody
# Bytes per pixel at the peak, measured: for these, decoders hold layers and copies besides the image.
BYTES_PER_PIXEL = {"WEBP": 17, "JPEG2000": 20, "AVIF": 10, "HEIF": 10, "JPEG": 5, "MPO": 5}
OTHERS = 14
SECONDS_PER_IMAGE = 60.0
IDLE = -1.0


class Shared:
    """Made in the parent for a pool of ``workers`` processes."""

    def __init__(self, context: BaseContext, workers: int) -> None:
        self.units = max(memory_for_images() // UNIT, 1)
        self._free, self._one_takes = context.Semaphore(self.units), context.Lock()
        self._joined = context.Value("i", 0)
        self._now = context.Array("d", [IDLE, 0.0, 0.0] * workers, lock=False)  # piece, position in it, since when

    def join(self) -> None:
        """Called once in each worker."""
        with self._joined:
            self._slot = 3 * (self._joined.value % (len(self._now) // 3))
            self._joined.value += 1
        self._held = 0

    def begin(self, piece: int, position: int) -> None:
        """The worker begins with an image, or with a part of one."""
        self._now[self._slot : self._slot + 3] = [float(piece), float(position), time.monotonic()]

    def end(self) -> None:
        """The worker has nothing to do."""
        self.give_back()
        self._now[self._slot] = IDLE

    def take(self, size: int) -> None:
        """Waits until other workers hold so little that ``size`` bytes, or all that there may be, fit beside."""
        wanted = min(-(-size // UNIT), self.units)
        self._now[self._slot + 2] = float("inf")  # this time is not the decoder's
        with self._one_takes:  # two that each have a part would wait for each other
            for _ in range(wanted):
                self._free.acquire()
                self._held += 1
        self._now[self._slot + 2] = time.monotonic()

    def give_back(self) -> None:
        """Gives back what ``take`` has taken."""
        for _ in range(self._held):
            self._free.release()
        self._held = 0

    def stuck(self, piece: int) -> int | None:
        """The position of the image in ``piece`` that has been decoded for longer than it may, if there is one."""
        for slot in range(0, len(self._now), 3):
            number, position, since = self._now[slot : slot + 3]
            if number == piece and time.monotonic() - since > SECONDS_PER_IMAGE:
                return int(position)
        return None


_mine: Shared | None = None


def join(shared: Shared) -> None:
    """Makes this process a worker."""
    global _mine
    _mine = shared
    shared.join()


def begin(piece: int, position: int) -> None:
    """See ``Shared.begin``."""
    if _mine:
        _mine.begin(piece, position)


def give_back() -> None:
    """See ``Shared.give_back``."""
    if _mine:
        _mine.give_back()


def end() -> None:
    """See ``Shared.end``."""
    if _mine:
        _mine.end()


def take(pixels: int, kind: str | None) -> None:
    """Takes the memory that an image of ``pixels`` in a file of PIL's ``kind`` needs; see ``Shared.take``."""
    if _mine and pixels > SMALL:
        _mine.take(pixels * BYTES_PER_PIXEL.get(kind or "", OTHERS))


def memory_for_images() -> int:
    """Half of the memory that this process may use, in bytes; the least if the system does not say."""
    found = []
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(min(found, default=0) // 2, LEAST_MEMORY)
