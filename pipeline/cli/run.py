"""``scan run``: from a folder of photos to groups, without a file being edited."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import typer

from pipeline.artifacts import load_json, replace_text
from pipeline.cli.look import LABELS, PHOTOS, SCRATCH, TRAIN, Proposal, propose
from pipeline.cli.numbers import GROUPS, compare_numbers, numbers_of
from pipeline.cli.show import show
from pipeline.params import read_params
from pipeline.presets import change_params, flat
from pipeline.progress import say
from pipeline.suggest import Number
from scan_core.errors import ScanError

RUN = SCRATCH / "run.json"  # what the last scan run was asked, and the settings that it wrote
LOG = SCRATCH / "run.log"  # what DVC said


def run(
    photos: str = typer.Argument(help=PHOTOS),
    groups: str | None = typer.Option(None, help=GROUPS),
    labels: str = typer.Option("none", help=LABELS),
    train: bool = typer.Option(False, "--train", help=TRAIN),
) -> None:
    """Group the images of a source: look at it, plan, set params.yaml, run the pipeline, show the groups."""
    numbers = numbers_of(groups)
    if len(numbers) > 1:
        compare_numbers(photos, [number for number in numbers if number != "auto"])
        return
    run_source(photos, numbers[0] if numbers else None, labels, train)
    show()


def run_source(photos: str, groups: Number | None, labels: str, train: bool) -> None:
    """Sets params.yaml for a source, unless an earlier call has, and runs the pipeline. Raises ``ScanError``."""
    asked = {"photos": photos, "labels": labels, "train": train}
    earlier = load_json(RUN) if RUN.exists() else {}
    current = read_params()
    if earlier.get("asked") == asked and current.data.path == photos:
        say_kept(flat(earlier["settings"]), flat(current.model_dump(mode="json")))
        if groups not in (None, current.cluster.num_clusters):
            change_params({"cluster": {"num_clusters": groups}}, f"{photos}: scan run --groups {groups}")
    else:
        proposal = propose_alone(photos, groups, labels, train)
        say("\n".join(proposal.lines))
        if kept := change_params(proposal.suggested, f"{photos}: as scan run suggests"):
            say(f"settings  the old params.yaml is {kept}")
        replace_text(RUN, json.dumps({"asked": asked, "settings": read_params().model_dump(mode="json")}, indent=1))
    reproduce()


def say_kept(written: dict[str, Any], current: dict[str, Any]) -> None:
    """Says which settings differ from those that an earlier call wrote: they are the person's."""
    changed = [f"{name} {json.dumps(value)}" for name, value in current.items() if written.get(name) != value]
    inside = [each for each in changed if "{" not in each]
    say("settings  as they are in params.yaml" + (f"; your own: {', '.join(inside)}" if inside else ""))


def reproduce() -> None:
    """Runs ``dvc repro``. What the stages say is shown, what DVC says is in ``LOG``. Raises ``ScanError``."""
    program = Path(sys.executable).parent
    variables = {**os.environ, "PATH": f"{program}{os.pathsep}{os.environ.get('PATH', '')}"}
    SCRATCH.mkdir(exist_ok=True)
    killed = killed_for_memory()
    with LOG.open("w") as log:
        running = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], stdout=log, env=variables)
        try:
            status = running.wait()
        except KeyboardInterrupt:  # the stage has heard it too, saves what it has and ends
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            running.wait()
            signal.signal(signal.SIGINT, before)
            say("scan: interrupted; the same command carries on from here")
            raise typer.Exit(130) from None
    if status and killed_for_memory() > killed:
        raise ScanError(
            "the machine ran out of memory and ended the stage; close other programs, or give fewer images, "
            "then run this again"
        )
    if status:
        raise ScanError(f"the pipeline did not end well; the line above says why, {LOG} has more; then run this again")


def killed_for_memory() -> int:
    """How many processes this machine has ended since its start because memory ran out. 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def propose_alone(photos: str, groups: Number | None, labels: str, train: bool) -> Proposal:
    """``propose`` in a process of its own, whose networks are out of memory before the pipeline starts."""
    method = "fork" if sys.platform == "linux" else "spawn"
    ends_silently = (signal.SIGINT, signal.SIG_DFL)  # after Ctrl-C
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context, signal.signal, ends_silently) as pool:
        return pool.submit(propose, photos, groups, labels, train).result()
