"""What a person sees while a stage runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """One line on standard error, where progress goes too."""
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """3725 to ``1:02:05``, 65 to ``1:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class _Bar:
    """A bar on a terminal, nothing elsewhere. A context manager."""

    def __init__(self, stage: str, total: int | None, done: int = 0) -> None:
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description:<9}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(stage, total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


class TrainingProgress(_Bar):
    """Epochs, loss, images/s and time left of one loop. A context manager."""

    def __init__(self, stage: str, epochs: int, done: int, steps: int, step: int = 0) -> None:
        self.stage, self.epochs, self.epoch, self.steps, self.step = stage, epochs, done, steps, step
        self.started, self.first, self.images = time.monotonic(), done + step / max(steps, 1), 0
        self.loss: float | None = None
        self._line = self.started
        super().__init__(stage, epochs * steps, done * steps + step)

    def step_done(self, images: int) -> None:
        """One optimiser step has used ``images`` views."""
        self.images += images
        self.step += 1
        if self._bar:
            self._bar.update(self._task, completed=self.epoch * self.steps + self.step, text=self._text())

    def epoch_done(self, number: int, loss: float) -> None:
        """Epoch ``number``, counted from 1, has ended with that mean loss."""
        self.epoch, self.step, self.loss = number, 0, loss
        if self._bar:
            self._bar.update(self._task, completed=number * self.steps, text=self._text())
        elif time.monotonic() - self._line >= SECONDS_BETWEEN_LINES or number == self.epochs:
            self._line = time.monotonic()
            say(f"{self.stage:<9} {self._text()}")

    def stopped_early(self) -> None:
        """The loop has ended before its last epoch, as it may."""
        if self._bar:
            self._bar.update(self._task, total=self.epoch * self.steps, text=self._text())
        elif self.epoch < self.epochs:
            say(f"{self.stage:<9} {self._text(ended=True)}")

    def _text(self, ended: bool = False) -> str:
        passed = max(time.monotonic() - self.started, 1e-9)
        done = self.epoch - self.first + self.step / max(self.steps, 1)
        left = passed / done * (self.epochs - self.first - done) if done and not ended else 0.0
        loss = "" if self.loss is None else f"loss {self.loss:.4f}  "
        rate = f"{self.images / passed:,.0f} images/s"
        end = f"ended after {clock(passed)}" if ended else f"{clock(left)} left"
        return f"epoch {self.epoch}/{self.epochs}  {loss}{rate}  {end}"


class CountProgress(_Bar):
    """Images taken and refused, images/s and time left where the total is known. A context manager."""

    def __init__(self, stage: str, total: int | None) -> None:
        self.stage, self.total = stage, total
        self.started = self._line = time.monotonic()
        self._first: int | None = None  # what an earlier run has left is no speed of this one
        super().__init__(stage, total)

    def update(self, taken: int, refused: int) -> None:
        """So many images have been taken so far, and so many files have not."""
        done = taken + refused
        self._first = done if self._first is None else self._first
        if self._bar:
            self._bar.update(self._task, completed=done, text=self._text(taken, refused))
        elif time.monotonic() - self._line >= SECONDS_BETWEEN_LINES:
            self._line = time.monotonic()
            say(f"{self.stage:<9} {self._text(taken, refused)}")

    def _text(self, taken: int, refused: int) -> str:
        rate = (taken + refused - (self._first or 0)) / max(time.monotonic() - self.started, 1e-9)
        of = "" if self.total is None else f" of {self.total:,}"
        left = ""
        if self.total is not None and rate:
            left = f"  {clock(max(self.total - taken - refused, 0) / rate)} left"
        return f"{taken:,} images{of}  {refused:,} not taken  {rate:,.0f} images/s{left}"
