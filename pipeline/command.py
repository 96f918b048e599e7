"""The command that starts a stage, and how it ends."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from pipeline.finished import AlreadyFinished, by_dvc
from pipeline.parent import stoppable, uninterrupted
from pipeline.progress import alive, clock, say
from pipeline.resume import launched
from pipeline.stage import Stage
from scan_core.errors import DamagedFile, ScanError, exhausted

# What takes most of a stage's memory, as settings.
LARGEST = {"prepare": "data.size", "embed": "embed.spaces or their side"}
LARGEST |= {name: f"{name}.batch_size" for name in ("pretext", "cluster", "selflabel")}
SECONDS_AFTER_STOP = 2.0  # for which MLflow is waited for when the stage has been interrupted


def command(name: str, run: Callable[[Stage], None]) -> typer.Typer:
    """The command line of a stage; its help is the docstring of ``run``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=run.__doc__)
    def main(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
        watched = by_dvc() and not launched()[0]
        with contextlib.nullcontext() if launched()[0] else alive(name), stoppable(name, watched):
            _main(name, run, debug)

    return app


def _main(name: str, run: Callable[[Stage], None], debug: bool) -> None:
    """Runs a stage to its end, whatever that is, and says it."""
    started = time.monotonic()
    stage: Stage | None = None
    try:
        stage = Stage(name)
        compute(stage, run)
        kept = stage.keep()
        # What is kept may be stopped at any time. Other outputs are moved and the state is deleted, or neither.
        with contextlib.nullcontext(list[int]()) if kept else uninterrupted() as heard:
            stage.finish()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the end of every stage, however it ends)
        stopped = isinstance(error, KeyboardInterrupt)
        with uninterrupted():
            if stage:
                stage.abandon()
                stage.tracker.close("FAILED", SECONDS_AFTER_STOP if stopped else None)
            if debug:
                say(traceback.format_exc().rstrip())
            rank = launched()[0]
            if not rank or not stopped:  # Ctrl-C reaches all processes
                say(f"{name}{f' in process {rank}' if rank else ''}: error: {one_line(error, debug, name)}")
        sys.exit(130 if stopped else 1)
    # The outputs are in place, so the stage has succeeded, whatever happens to its records.
    interrupted = bool(heard)
    try:
        stage.tracker.metrics({"seconds": time.monotonic() - started})
        stage.tracker.close("FINISHED", SECONDS_AFTER_STOP if interrupted else None)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (no record is worth a finished stage)
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else one_line(error)
        say(f"{name}: warning: its records in MLflow may be incomplete ({reason}); see: scan runs --send")
    say(f"{name:<9} done in {clock(time.monotonic() - started)}")
    if interrupted and kept:  # DVC has not heard it, and would start the next stage
        say(f"{name}: error: interrupted at its end; the next run takes its outputs as they are")
        sys.exit(130)


def compute(stage: Stage, run: Callable[[Stage], None]) -> None:
    """Runs ``stage``, or takes what an earlier run has finished."""
    try:
        if stage.finished and stage.processes == 1:
            raise AlreadyFinished
        run(stage)
    except AlreadyFinished:
        stage.restore()


def run(app: typer.Typer) -> NoReturn:
    """Runs a stage's command line and ends the process at once.

    An interpreter that has imported torch would take a second or two to shut down.
    """
    status: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def one_line(error: BaseException, debug: bool = False, stage: str = "") -> str:
    """What happened, in one line, and what to do; for an unexpected error, how to see more."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the next run resumes from what is saved"
    text = " ".join(str(error).split())
    if isinstance(error, DamagedFile):
        return f"{text}; delete it and run dvc repro"
    if isinstance(error, ScanError):
        return text
    if words := exhausted(error, LARGEST.get(stage, "the number of images")):
        return words
    return f"{type(error).__name__}: {text}" + ("" if debug else " (--debug shows where)")
