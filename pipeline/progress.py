"""What a person sees while a stage runs: a bar on a terminal, otherwise a plain line every ten seconds."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

from pipeline.passwords import without_passwords

SECONDS_BETWEEN_LINES = 10.0
ERASE = "\r\x1b[K"  # what stands in the terminal's line


def say(text: str) -> None:
    """Prints a line to standard error, where progress goes too, without passwords."""
    text = without_passwords(text)
    print(f"{ERASE}{text}" if _Alive.depth else text, file=sys.stderr, flush=True)


class _Alive:
    depth = 0  # calls of ``alive`` on a terminal that have not ended
    bars = 0  # that are shown


@contextlib.contextmanager
def alive(what: str) -> Iterator[None]:
    """Shows on a terminal ``what`` and its time, where there is no bar: in a line that the next text takes away.

    Meanwhile nothing may be printed but by ``say`` and bars. A log gets nothing.
    """
    if not sys.stderr.isatty() or _Alive.depth:
        yield
        return
    ended, started = threading.Event(), time.monotonic()

    def show() -> None:
        while True:
            if not _Alive.bars:  # the text ends where it began, so that what others print is written over it
                sys.stderr.write(f"{ERASE}{what:<9} … {clock(time.monotonic() - started)}\r")
                sys.stderr.flush()
            if ended.wait(1):
                return

    thread = threading.Thread(target=show, daemon=True)
    _Alive.depth += 1
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _Alive.depth -= 1
        sys.stderr.write(ERASE)
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """3725 to ``1:02:05``, 65 to ``1:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class _Progress:
    """One rich task: ``label`` done/total, free text, time left if ``total`` is known. A context manager."""

    def __init__(self, stage: str, label: str, total: int | None, done: float = 0.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._terminal = sys.stderr.isatty()
        bar = [BarColumn(bar_width=28)] if self._terminal else []
        left = [TimeRemainingColumn(compact=True), TextColumn("left")] if total is not None else []
        self._columns = Progress(
            TextColumn("[bold]{task.description:<9}"), *bar, TextColumn(label),
            MofNCompleteColumn(table_column=Column(no_wrap=True)), TextColumn(" {task.fields[text]} "), *left,
            console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._columns.add_task(stage, total=total, text="")
        self._columns.update(self._task, completed=done)
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._terminal:
            _Alive.bars += 1
            self._columns.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._columns.stop()
            _Alive.bars -= 1

    def _show(self, done: float, text: str, last: bool = False) -> None:
        self._columns.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not self._terminal and (last or now - self._printed >= SECONDS_BETWEEN_LINES):
            self._printed = now
            self._columns.console.print(self._columns.get_renderable())


class TrainingProgress(_Progress):
    """Epochs, mean loss of the last epoch, images/s and time left of one training loop."""

    def __init__(self, stage: str, epochs: int, done: int, steps: int, step: int = 0) -> None:
        super().__init__(stage, "epoch", epochs, done + step / max(steps, 1))
        self._stage, self._epochs, self._epoch, self._steps, self._step = stage, epochs, done, steps, step
        self._images, self._loss = 0, ""

    def step_done(self, images: int) -> None:
        """One optimizer step has used ``images`` views."""
        self._images += images
        self._step += 1
        self._show(self._epoch + self._step / self._steps, self._text())

    def epoch_done(self, number: int, loss: float) -> None:
        """Epoch ``number``, counted from 1, has ended with that mean loss."""
        self._epoch, self._step, self._loss = number, 0, f"loss {loss:.4f}  "
        self._show(number, self._text(), last=number == self._epochs)

    def loop_ended(self) -> None:
        """The loop has ended; says so if it ended before the last epoch."""
        if self._epoch < self._epochs:
            say(f"{self._stage:<9} ended early, after epoch {self._epoch} of {self._epochs}")

    def _text(self) -> str:
        return f"{self._loss}{self._images / max(time.monotonic() - self._started, 1e-9):,.0f} images/s"


class StepProgress(_Progress):
    """Steps of unequal length done, of a known number."""

    def __init__(self, stage: str, what: str, total: int) -> None:
        super().__init__(stage, what, total)
        self._total = total

    def update(self, done: int) -> None:
        """So many are done."""
        self._show(done, "", last=done == self._total)


class CountProgress(_Progress):
    """Files read and skipped, files/s and, if ``total`` is known, time left."""

    def __init__(self, stage: str, total: int | None) -> None:
        super().__init__(stage, "images", total)

    def update(self, taken: int, refused: int) -> None:
        """So far ``taken`` images have been read, and ``refused`` files have not."""
        speed = self._columns.tasks[0].speed or 0.0
        self._show(taken + refused, f"{refused:,} skipped  {speed:,.0f} images/s")
