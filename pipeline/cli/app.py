"""``scan``: every command that is not a stage. Each error is printed as one line."""

import sys
from typing import Any

import typer

from pipeline.cli.edit import edit
from pipeline.cli.look import look
from pipeline.cli.model import model
from pipeline.cli.predict import predict
from pipeline.cli.run import init, run
from pipeline.cli.runs import send, ui
from pipeline.cli.settings import check, params, use
from pipeline.cli.show import show
from pipeline.cli.sort import sort
from pipeline.cli.weights import weights
from pipeline.progress import say
from pipeline.tracking.spool import without_passwords
from scan_core.errors import ScanError, exhausted


class Commands(typer.core.TyperGroup):
    """Commands whose expected errors end in one line and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Its error is printed without passwords: addresses in it may hold some."""
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


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
for each in (run, look, show, predict, sort, check, use, params, init, send, ui):
    app.command()(each)
app.add_typer(edit, name="edit")
app.add_typer(model, name="model")
app.add_typer(weights, name="weights")
