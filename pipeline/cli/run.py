"""``scan run``: from a folder of photos to groups, without a file being edited."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import typer

from pipeline.artifacts import PREDICTIONS, load_json, replace_text
from pipeline.cli.look import ADAPT, AS, LABELS, PHOTOS, SCRATCH, SPLIT, TRAIN, Meant, Proposal, propose, whole_path
from pipeline.cli.numbers import GROUPS, compare_numbers, numbers_of
from pipeline.cli.show import show
from pipeline.environment import data_home
from pipeline.mend import mend
from pipeline.params import Params, read_params
from pipeline.presets import add_missing, change_params, flat
from pipeline.progress import CountProgress, alive, say
from pipeline.project import command_name, make_project, project_for
from pipeline.suggest import Number
from scan_core.data.open import expanded, open_source
from scan_core.errors import ScanError
from scan_core.pretext.settings import AdaptedPretext

RETRAIN = "Learn anew from all photos, instead of only placing the new ones."
PICTURES = "Whether the report, and what goes to MLflow, hold pictures of the photos and names of their files."
RUN = SCRATCH / "run.json"  # what the last scan run was asked, and the settings that it wrote
LOG = SCRATCH / "run.log"  # what DVC said


def run(
    photos: str = typer.Argument(help=PHOTOS),
    groups: str | None = typer.Option(None, help=GROUPS),
    labels: str = typer.Option("none", help=LABELS),
    kind: str | None = typer.Option(None, "--as", help=AS),
    split: str = typer.Option("source", help=SPLIT),
    adapt: bool = typer.Option(False, "--adapt", help=ADAPT),
    train: bool = typer.Option(False, "--train", help=TRAIN),
    retrain: bool = typer.Option(False, "--retrain", help=RETRAIN),
    pictures: bool | None = typer.Option(None, "--pictures/--no-pictures", help=PICTURES),
) -> None:
    """Group the images of a source: look at it, plan, set params.yaml, run the pipeline, show the groups.

    Later, the same command puts new photos into the groups.
    """
    numbers, here = numbers_of(groups), Path.cwd()
    given = whole_path(labels)
    photos = enter_project(photos)
    meant = Meant(labels if Path.cwd() == here else given, kind, split)
    if len(numbers) > 1:
        compare_numbers(photos, [number for number in numbers if number != "auto"])
        return
    run_source(photos, numbers[0] if numbers else None, meant, adapt, train, retrain, pictures)
    with alive("show"):
        learn_answers()
    show()
    if Path.cwd() != here:  # the shell is still there
        print(f"\nfirst        cd {shlex.quote(Path.cwd().name)}")


def enter_project(photos: str) -> str:
    """Goes to the project in which ``photos`` are grouped, which is made if it is missing. Returns where they are."""
    here = Path.cwd()
    folder = project_for(photos, here)
    if folder == here:
        return photos
    found = expanded(photos).absolute()
    if ".." in found.parts:
        found = found.resolve()
    if not found.exists():
        raise ScanError(f"there is nothing at {photos}")
    make_project(folder)
    os.chdir(folder)
    say(f"project   ./{folder.name}; your photos are only read")
    return str(found)


def init(folder: str = typer.Argument(help="The folder of the new project.")) -> None:
    """Make an empty project, as scan run does."""
    path = expanded(folder).absolute()
    make_project(path)
    print(f"project   {folder}\n\nnext      cd {shlex.quote(folder)}, then {command_name()} run PHOTOS")


def run_source(
    photos: str,
    groups: Number | None,
    meant: Meant,
    adapt: bool,
    train: bool,
    retrain: bool = False,
    pictures: bool | None = None,
) -> None:
    """Sets params.yaml for a source, unless an earlier call has, and runs the pipeline. Raises ``ScanError``.

    If the run is finished and the settings are those of it, only new photos are placed, unless ``retrain`` is set. None
    leaves a setting as it is.
    """
    asked = {"photos": photos, "labels": meant.labels, "adapt": adapt, "train": train}
    asked |= ({"as": meant.kind} if meant.kind else {}) | ({"split": meant.split} if meant.split != "source" else {})
    earlier = load_json(RUN) if RUN.exists() else {}
    if added := add_missing():
        say(f"settings  new in this program, and now in params.yaml: {', '.join(added)}")
    current = read_params()
    if earlier.get("asked") == asked and current.data.path == photos:
        say_kept(flat(earlier["settings"]), flat(current.model_dump(mode="json")))
        changes: dict[str, dict[str, Any]] = {}
        if groups not in (None, current.cluster.num_clusters):
            changes["cluster"] = {"num_clusters": groups}
            if isinstance(current.pretext, AdaptedPretext):
                learned = current.pretext.groups.model_dump(mode="json")
                changes["pretext"] = {"groups": learned | {"num_clusters": groups}}
        if pictures not in (None, current.evaluate.pictures):
            changes["evaluate"] = {"pictures": pictures}
        if changes:
            asked_again = [f"--groups {groups}"] * ("cluster" in changes)
            asked_again += ["--pictures" if pictures else "--no-pictures"] * ("evaluate" in changes)
            change_params(changes, f"{photos}: scan run {' '.join(asked_again)}")
        elif not retrain and is_finished(earlier, current):
            place_new(current)
            return
    else:
        proposal = propose_alone(photos, groups, meant, adapt, train)
        say("\n".join(proposal.lines))
        reported = {} if pictures is None else {"evaluate": {"pictures": pictures}}
        if kept := change_params(proposal.suggested | reported, f"{photos}: as scan run suggests"):
            say(f"settings  the old params.yaml is {kept}")
        earlier = {"asked": asked, "settings": read_params().model_dump(mode="json")}
    replace_text(RUN, json.dumps(earlier | {"finished": None}, indent=1))
    reproduce()
    with alive("show"):
        note_finished(earlier)


def learn_answers() -> None:
    """Takes the kinds of the images along that a person has moved, and says how many images that are."""
    from pipeline.groups.learned import learn

    if (moved := learn()) is not None:
        many = "1 image like them has" if moved == 1 else f"{moved:,} images like them have"
        say(f"answers   learned; {many} moved, too (scan edit undo takes an answer back, and what follows from it)")


def is_finished(earlier: dict[str, Any], current: Params) -> bool:
    """Whether the model that is there is that of the last ``scan run``, with these settings."""
    from pipeline.groups.file import model_digest

    finished = earlier.get("finished") or {}
    noted, now = finished.get("settings"), flat(current.model_dump(mode="json"))
    # An older program has noted fewer settings; those that are new have the values that it took for granted.
    if not noted or not PREDICTIONS.exists():
        return False
    if any(now.get(name) != value for name, value in flat(noted).items() if not isinstance(value, dict)):
        return False
    return bool(finished.get("model") == model_digest())


def note_finished(earlier: dict[str, Any]) -> None:
    """Notes that all stages are done, and which files they have seen."""
    from pipeline.groups.file import model_digest
    from pipeline.groups.placed import known_contents, note_seen, stamps_of

    params = read_params()
    seen, known = stamps_of(open_source(params.data, Path.cwd(), data_home(Path.cwd()))), known_contents()
    note_seen({name: stamp for name, stamp in seen.items() if name in known})  # others came while it ran
    finished = {"model": model_digest(), "settings": params.model_dump(mode="json")}
    replace_text(RUN, json.dumps(earlier | {"finished": finished}, indent=1))


def place_new(params: Params) -> None:
    """Puts photos that have come or changed since the run into its groups, and says how many."""
    from pipeline.groups.placed import add_placed, changes_of, note_seen, source_of_items
    from pipeline.predict import Predictions

    source = open_source(params.data, Path.cwd(), data_home(Path.cwd()))
    found = changes_of(source)
    items, gone = found.new, found.gone
    if gone:
        say(f"gone      {len(gone):,} files of the run, such as {gone[0]}; --retrain learns without them")
    if not items:
        say("new       no photo; --retrain learns anew")
        return
    folder = SCRATCH / "placing"
    folder.mkdir(parents=True, exist_ok=True)
    tables, done = [], 0
    with CountProgress("new", len(items)) as progress:
        for table in Predictions(source_of_items(items), params).raw_tables(folder):
            tables.append(table)
            done += len(table)
            progress.update(done, 0)
    add_placed(tables)
    note_seen(found.stamps)
    shutil.rmtree(folder)
    states = [state for table in tables for state in table["state"].to_pylist()]
    nowhere, unreadable = states.count("fits nowhere"), states.count(None)
    said = f"{len(states):,} new: {len(states) - nowhere - unreadable:,} placed, {nowhere:,} fit nowhere"
    say(f"new       {said}" + (f", {unreadable:,} cannot be read" if unreadable else ""))


def say_kept(written: dict[str, Any], current: dict[str, Any]) -> None:
    """Says which settings differ from those that an earlier call wrote: they are the person's."""
    differ = {name: value for name, value in current.items() if name in written and written[name] != value}
    changed = [f"{name} {json.dumps(value)}" for name, value in differ.items()]
    inside = [each for each in changed if "{" not in each]
    say("settings  as they are in params.yaml" + (f"; your own: {', '.join(inside)}" if inside else ""))


def reproduce() -> None:
    """Runs ``dvc repro``. What the stages say is shown, what DVC says is in ``LOG``. Raises ``ScanError``."""
    program = Path(sys.executable).parent
    variables = {**os.environ, "PATH": f"{program}{os.pathsep}{os.environ.get('PATH', '')}"}
    SCRATCH.mkdir(exist_ok=True)
    killed = killed_for_memory()
    mend()
    with LOG.open("w") as log:
        running = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], stdout=log, env=variables)
        try:
            with alive("start"):  # until DVC has started the first stage, which has its own signs of life
                while not LOG.stat().st_size and running.poll() is None:
                    time.sleep(0.1)
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


def propose_alone(photos: str, groups: Number | None, meant: Meant, adapt: bool, train: bool) -> Proposal:
    """``propose`` in a process of its own, whose networks are out of memory before the pipeline starts."""
    method = "fork" if sys.platform == "linux" else "spawn"
    ends_silently = (signal.SIGINT, signal.SIG_DFL)  # after Ctrl-C
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context, signal.signal, ends_silently) as pool:
        return pool.submit(_propose, photos, groups, meant, adapt, train).result()


def _propose(*asked: Any) -> Proposal:
    with alive("look"):
        return propose(*asked)
