"""``scan look`` and ``scan run``: from a folder of photos to groups, without a file being edited."""

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from pipeline.artifacts import PREDICTIONS, load_json, replace_text, require
from pipeline.environment import worker_count
from pipeline.inspect_source import Inspection, inspect_source, write_contact_sheet
from pipeline.params import read_params, validate
from pipeline.presets import as_yaml, change_params, changed_params, flat
from pipeline.progress import clock, say
from pipeline.suggest import Number
from scan_core.errors import ScanError

PHOTOS = "A folder, a zip or tar, a .parquet file or folder of them, or a .npy file."
GROUPS = (
    "A number; auto: estimate it; several such as 5,10,20: compare them. By default as many as classes, or else auto."
)
LABELS = "none, or folders: then subfolders are classes."
TRAIN = "Train a network on these images alone, instead of taking one that others have trained."
SCRATCH = Path(".scan")
RUN = SCRATCH / "run.json"  # what the last scan run was asked, and the settings that it wrote
LOG = SCRATCH / "run.log"  # what DVC said
FEWEST = 4  # images that can be divided into train and val
FEW = 10  # images for each group: with fewer, most methods find little
SHOWN = 20  # groups in the table


@dataclass(frozen=True)
class Proposal:
    """The settings that suit a source, and what running them would take."""

    found: Inspection
    suggested: dict[str, Any]  # groups of settings
    lines: list[str]  # the plan in words


def look(
    photos: str = typer.Argument(help=PHOTOS),
    groups: str | None = typer.Option(None, help=GROUPS),
    labels: str = typer.Option("none", help=LABELS),
    train: bool = typer.Option(False, "--train", help=TRAIN),
    sheet: str = typer.Option(".scan/contact_sheet.png", help="Where to write a picture of some of the images."),
    use: bool = typer.Option(False, "--use", help="Put the suggested settings into params.yaml; the others stay."),
) -> None:
    """Look at a source: what it holds, what scan run would do, how long, and the settings. Nothing is run."""
    if Path(sheet).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ScanError(f"--sheet is {sheet}; a .png or .jpg file is allowed")
    proposal = propose(photos, one_number(groups), labels, train)
    shown = write_contact_sheet(proposal.found, Path(sheet))
    # Before anything is said of it: settings that do not go with the others are refused.
    kept = change_params(proposal.suggested, f"{photos}: as scan look suggests") if use else None
    print("\n".join([*proposal.lines, f"sheet     {sheet} ({shown} images)"]))
    print(f"\nSettings for params.yaml ({'now there' if use else '--use puts them there'}):\n")
    print(as_yaml(proposal.suggested).strip())
    if use:
        print("\nnext      dvc repro" + (f"; a copy of the old settings is {kept}" if kept else ""))
    else:
        print("\nnext      scan run does all of it")


def numbers_of(groups: str | None) -> tuple[Number, ...]:
    """What ``--groups`` says: () if it is left out. Raises ``ScanError``."""
    if groups in (None, "auto"):
        return ("auto",) if groups else ()
    assert groups is not None
    parts = [part.strip() for part in groups.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 1 for part in parts):
        raise ScanError(f"--groups is {groups!r}; auto, a number from 2, or several such as 5,10,20 are allowed")
    return tuple(dict.fromkeys(int(part) for part in parts))


def one_number(groups: str | None) -> Number | None:
    """``numbers_of`` if it is one, or None. Raises ``ScanError`` if it is several."""
    numbers = numbers_of(groups)
    if len(numbers) > 1:
        raise ScanError(f"--groups is {groups}; scan run compares several numbers once it has run; give one here")
    return numbers[0] if numbers else None


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


def compare_numbers(photos: str, numbers: list[int]) -> None:
    """Prints how the images of the last run on ``photos`` fall into each of ``numbers`` of groups; changes nothing.

    Raises ``ScanError`` if there are no embeddings of them, or more groups than the images allow.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from pipeline import artifacts
    from pipeline.environment import use_threads
    from scan_core.clustering.number import SAMPLE, divide

    current = read_params()
    if current.data.path != photos or not (artifacts.EMBEDDINGS / "train.npy").exists():
        raise ScanError(f"{photos} has no embeddings here; scan run {photos} makes them: run that first")
    train = artifacts.load_array(artifacts.EMBEDDINGS / "train.npy", "float32", (None, None))
    points = train[np.unique(artifacts.load_first("train", len(train)))][:SAMPLE]
    if max(numbers) >= len(points):
        raise ScanError(f"--groups has {max(numbers)}, but there are {len(points)} images; fewer than that are allowed")
    use_threads()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("groups", "largest", "smallest", "apart", "found twice"):
        table.add_column(column, justify="right")
    for each in divide(points, sorted(numbers), current.seed, lambda _: None):
        shares = [f"{share:.0%}" for share in (each.largest, each.smallest)]
        table.add_row(str(each.groups), *shares, f"{each.silhouette:.3f}", f"{each.agreement:.2f}")
    Console().print(table)
    print(
        "\napart: silhouette in the embeddings, higher is better; found twice: how far two methods agree, 1 is the same"
        f"\n\nnext      scan run {photos} --groups {numbers[0]}"
    )


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


def propose(photos: str, groups: Number | None, labels: str, train: bool) -> Proposal:
    """Looks at a source and plans. Raises ``ScanError`` if there is nothing to group, or too little memory."""
    from pipeline.plan import choose, plan_frozen, plan_training
    from pipeline.suggest import default_groups, suggest_frozen, suggest_training

    if labels not in ("none", "folders"):
        raise ScanError(f"--labels is {labels}; none or folders is allowed")
    current = read_params()
    found = inspect_source(photos, current.data, Path.cwd(), SCRATCH, worker_count())
    if found.images < FEWEST:
        raise ScanError(f"{photos} holds {found.images} images; at least {FEWEST} are needed to find groups")
    say(f"measuring how fast this machine is on {len(found.sample)} of {found.images:,} images …")
    training = suggest_training(found, current, labels)
    clusters = groups or default_groups(found, labels)
    if clusters != "auto" and clusters > found.images:
        raise ScanError(f"--groups is {clusters}, but there are {found.images} images; at most that many are allowed")
    trained = plan_training(found, validate(changed_params(training)[1], Path("params.yaml")))
    plan = choose([trained]) if train else choose(plan_frozen(found, clusters, photos_cluster()))
    suggested = training if train else suggest_frozen(found, labels, plan.spaces)
    suggested["cluster"]["num_clusters"] = clusters
    cost = f"about {clock(plan.seconds)}, {plan.memory / 1e9:.1f} GB of memory; nothing leaves this computer"
    if train:
        name, side = suggested["backbone"]["name"], suggested["data"]["size"]
        what = [f"a {name} trained on these images alone at {side} px", cost]
    else:
        names = " and ".join(f"{name} at {side} px" for name, side in plan.spaces)
        instead = f"{clock(trained.seconds)}, {trained.memory / 1e9:.0f} GB"
        what = [f"{names},", "frozen: others have taught them ImageNet's labels", cost]
        what += [f"instead, --train learns from these images alone: about {instead}"]
    number = "as many groups as there seem to be," if clusters == "auto" else f"{clusters} groups"
    lines = [*describe(found, labels), *titled("plan", [f"{number} by {what[0]}", *what[1:]])]
    if clusters != "auto" and clusters > found.images / FEW:
        lines += titled("", [f"{clusters} groups of {found.images} images are many: fewer than {FEW} images in each"])
    return Proposal(found, suggested, lines)


def photos_cluster() -> Any:
    """The settings of clustering on frozen features."""
    from pipeline.presets import find_preset, read_preset

    return read_preset(find_preset("photos")).cluster


def describe(found: Inspection, labels: str) -> list[str]:
    """What a source holds, in words."""
    formats = ", ".join(name for name, _ in found.formats.most_common(4))
    lines = [f"{found.images:,} images, {_range(found.sizes)}; {formats}"]
    if found.others:
        lines.append(f"left out unless they are images after all: {found.others:,} other files")
    if found.refused:
        first = found.refused[0]
        share = f"{len(found.refused)} of {len(found.sample)} looked at"
        lines.append(f"{share} cannot be read, such as {first.name}: {first.reason}")
    if "no split of its own" not in found.splits:
        lines.append("a split of its own: " + ", ".join(f"{count:,} {name}" for name, count in found.splits.items()))
    if len(found.classes) > 1:
        what = "subfolders" if found.settings.name in ("folder", "archive") else "labels"
        used = f"{len(found.classes):,} classes" if labels == "folders" else "not classes (--labels folders)"
        lines.append(f"{what} are {used}")
    return titled("found", lines)


def titled(title: str, lines: list[str]) -> list[str]:
    """Lines, the first behind a title."""
    return [f"{title if not number else '':<9} {line}" for number, line in enumerate(lines)]


def _range(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return "none of them readable"
    middle = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
    megapixels = statistics.median(width * height for width, height in sizes) / 1e6
    return f"{megapixels:.0f} megapixels" if megapixels >= 1 else f"{middle[0]} x {middle[1]} pixels"


def show_groups() -> None:
    """Prints how far the groups can be trusted, and how many images each has, the largest first."""
    import pyarrow.parquet as pq
    from rich.console import Console
    from rich.table import Table

    from pipeline.artifacts import GROUPS as NUMBER
    from pipeline.artifacts import VERDICT
    from pipeline.report.words import range_of, states_of, what_to_try, why

    rows = pq.read_table(require(PREDICTIONS), columns=["cluster", "state"]).drop_null()
    clusters, states = rows["cluster"].to_pylist(), rows["state"].to_pylist()
    verdict, groups = load_json(VERDICT), load_json(NUMBER)
    counts = Counter(clusters)
    pairs = Counter(zip(clusters, states, strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("group", "images", "share", "verdict", *(state for state, _ in states_of(verdict))):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for group, count in counts.most_common(SHOWN):
        by_state = [f"{pairs[group, state]:,}" for state, _ in states_of(verdict)]
        word = verdict["groups"][group]["word"]
        table.add_row(str(group), f"{count:,}", f"{count / len(clusters):.1%}", word, *by_state)
    print(f"{range_of(groups)}; verdict: {verdict['word'].upper()}\n")
    Console().print(table)
    if len(counts) > SHOWN:
        print(f"and {len(counts) - SHOWN} more")
    print(f"\n{why(verdict)}" + (f"\nto try: {tried}" if (tried := what_to_try(verdict, groups)) else ""))
