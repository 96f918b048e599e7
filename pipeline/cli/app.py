"""``scan``: every command that is not a stage. Each error is printed as one line."""

import difflib
import sys
from typing import Any

import typer

from pipeline.cli.compare import compare
from pipeline.cli.edit import edit
from pipeline.cli.look import look
from pipeline.cli.model import model
from pipeline.cli.predict import predict
from pipeline.cli.review import review
from pipeline.cli.run import init, run
from pipeline.cli.runs import runs
from pipeline.cli.settings import settings
from pipeline.cli.show import show
from pipeline.cli.sort import sort
from pipeline.cli.status import status
from pipeline.cli.weights import weights
from pipeline.mend import damaged_objects
from pipeline.passwords import show_error
from pipeline.progress import say
from scan_core.errors import ScanError, exhausted

# What commands were called before.
RENAMED = {
    "check": "settings check", "use": "settings use", "params": "settings show", "ui": "runs", "send": "runs --send",
    "data": "look",
}  # fmt: skip


VERIFY = "Read DVC's whole cache, and say which of its objects are damaged."


class Commands(typer.core.TyperGroup):
    """Commands whose expected errors end in one line and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        sys.excepthook = show_error
        for stream in (sys.stdout, sys.stderr):  # names may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # of scan show | head: typer ends quietly
            raise
        except Exception as error:
            words = exhausted(error)
            if not words and not isinstance(error, ScanError | OSError):
                raise
            say(f"scan: error: {' '.join((words or str(error)).split())}")
            sys.exit(1)

    def get_command(self, ctx: Any, name: str) -> Any:
        """The command called ``name``. Raises ``ScanError`` with what may be meant if there is none."""
        found = super().get_command(ctx, name)
        if found is None and name in RENAMED:
            raise ScanError(f"scan {name} is scan {RENAMED[name]} now")
        if found is None:
            names = self.list_commands(ctx)
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ScanError(f"{name} is no command; {hint}there are: {', '.join(names)}")
        return found


app = typer.Typer(
    cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Group photos without labels. Without a command: where the project stands, and the next step.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def main(ctx: typer.Context, verify: bool = typer.Option(False, "--verify", help=VERIFY)) -> None:
    """Group photos without labels."""
    if verify:
        verify_cache()
    elif ctx.invoked_subcommand is None:
        status()


def verify_cache() -> None:
    """Reads DVC's whole cache. Raises ``ScanError`` if an object in it is damaged, after a line for each."""
    damaged = damaged_objects()
    for file, outputs in damaged.items():
        print(f"damaged   {file}" + (f", which is {', '.join(outputs)}" if outputs else ""))
    if damaged:
        raise ScanError(
            f"{len(damaged)} objects of DVC's cache are damaged; delete these files, then run dvc commit, which takes "
            "them from the folder again, or dvc pull"
        )
    say("verified  every object of DVC's cache has the bytes that it should have")


START, USE, PREPARE, TEAM = "Start", "Use", "Prepare", "Team"
for command, panel in (
    (run, START), (show, START), (review, START), (sort, START), (compare, USE), (predict, USE), (look, PREPARE),
    (init, PREPARE), (runs, TEAM),
):  # fmt: skip
    app.command(rich_help_panel=panel)(command)
app.add_typer(edit, name="edit", rich_help_panel=USE)
app.add_typer(settings, name="settings", rich_help_panel=PREPARE)
app.add_typer(weights, name="weights", rich_help_panel=PREPARE)
app.add_typer(model, name="model", rich_help_panel=TEAM)
