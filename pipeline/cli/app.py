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
from pipeline.progress import say
from pipeline.tracking.spool import without_passwords
from scan_core.errors import ScanError, exhausted

# What commands were called before.
RENAMED = {
    "check": "settings check", "use": "settings use", "params": "settings show", "ui": "runs", "send": "runs --send",
    "data": "look",
}  # fmt: skip


class Commands(typer.core.TyperGroup):
    """Commands whose expected errors end in one line and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Its error is printed without passwords: addresses in it may hold some."""
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
            say(f"scan: error: {without_passwords(' '.join((words or str(error)).split()))}")
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
def main(ctx: typer.Context) -> None:
    """Group photos without labels."""
    if ctx.invoked_subcommand is None:
        status()


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
