"""``scan look``: what a source holds, and what a run on it would take."""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from pipeline.cli.numbers import GROUPS, one_number
from pipeline.environment import worker_count
from pipeline.inspect_source import Inspection, inspect_source, write_contact_sheet
from pipeline.params import read_params, validate
from pipeline.presets import as_yaml, change_params, changed_params, find_preset, read_preset, use_preset
from pipeline.progress import alive, clock, say
from pipeline.project import START, is_project
from pipeline.suggest import Number, fit_of
from scan_core.data.open import expanded
from scan_core.data.settings import SOURCES_WITH_PATH
from scan_core.errors import ScanError

PHOTOS = "A folder, a zip or tar, a .parquet file or folder of them, or a .npy file."
LABELS = "none; folders: then subfolders, or a table's labels, are classes; or a .csv file with columns source,label."
AS = "What the photos are, if that is not told rightly: folder, archive, parquet or npy."
SPLIT = "none: folders called train and test are no split; source: they are."
TRAIN = "Train a network on these images alone, instead of taking one that others have trained."
ADAPT = "Let the last layers of a network that others have trained learn these images' groups first."
SCRATCH = Path(".scan")
FEWEST = 4  # images that can be divided into train and val
KINDS, CLASSES = 4, 5  # that are named
SPLIT_ORDER = ("train", "val", "unlabeled")
FEW = 10  # images for each group: with fewer, most methods find little


@dataclass(frozen=True)
class Meant:
    """How a person corrects what is understood of a source. Raises ``ScanError`` for what is not allowed."""

    labels: str = "none"  # data.labels
    kind: str | None = None  # data.name; None: told by the path
    split: Any = "source"  # data.split

    def __post_init__(self) -> None:
        if self.labels not in ("none", "folders") and not self.labels.endswith(".csv"):
            raise ScanError(f"--labels is {self.labels}; none, folders or a .csv file is allowed")
        if self.kind not in (None, *SOURCES_WITH_PATH):
            raise ScanError(f"--as is {self.kind}; {', '.join(SOURCES_WITH_PATH)} is allowed")
        if self.split not in ("source", "none"):
            raise ScanError(f"--split is {self.split}; source or none is allowed")


def whole_path(labels: str) -> str:
    """``--labels`` for a project in another folder."""
    return str(Path(labels).expanduser().absolute()) if labels.endswith(".csv") else labels


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
    kind: str | None = typer.Option(None, "--as", help=AS),
    split: str = typer.Option("source", help=SPLIT),
    adapt: bool = typer.Option(False, "--adapt", help=ADAPT),
    train: bool = typer.Option(False, "--train", help=TRAIN),
    sheet: str | None = typer.Option(None, help="Where to write a picture of some of the images."),
    use: bool = typer.Option(False, "--use", help="Put the suggested settings into params.yaml; the others stay."),
) -> None:
    """Look at a source: what it holds, what scan run would do, how long, and the settings. Nothing is run."""
    if sheet and Path(sheet).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ScanError(f"--sheet is {sheet}; a .png or .jpg file is allowed")
    here = is_project(Path.cwd())
    if use and not here:
        raise ScanError("--use needs a project, and there is none here; scan run makes one")
    sheet = sheet or (str(SCRATCH / "contact_sheet.png") if here else None)
    place = Path(sheet).absolute() if sheet else None
    where = photos if here else str(expanded(photos).absolute())
    meant = Meant(labels if here else whole_path(labels), kind, split)
    with contextlib.nullcontext() if here else somewhere(), alive("look"):
        proposal = propose(where, one_number(groups), meant, adapt, train)
        shown = write_contact_sheet(proposal.found, place) if place else 0
        # Before anything is said of it: settings that do not go with the others are refused.
        kept = change_params(proposal.suggested, f"{photos}: as scan look suggests") if use else None
    print("\n".join([*proposal.lines, *([f"sheet     {sheet} ({shown} images)"] if sheet else [])]))
    print(f"\nSettings for params.yaml ({'now there' if use else '--use puts them there'}):\n")
    print(as_yaml(proposal.suggested).strip())
    if use:
        print("\nnext      dvc repro" + (f"; a copy of the old settings is {kept}" if kept else ""))
    else:
        print("\nnext      scan run does all of it")


@contextlib.contextmanager
def somewhere() -> Iterator[None]:
    """A project for as long as this lasts: whoever only looks finds nothing new in the folder afterward."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        use_preset(find_preset(START))
        yield


def propose(photos: str, groups: Number | None, meant: Meant, adapt: bool, train: bool) -> Proposal:
    """Looks at a source and plans. Raises ``ScanError`` if there is nothing to group, or too little memory."""
    from pipeline.plan import LIKELY, adapting_seconds, choose, plan_frozen, plan_training
    from pipeline.suggest import default_groups, suggest_frozen, suggest_training

    labels = meant.labels
    if adapt and train:
        raise ScanError("--adapt and --train are both given; a network adapts or is trained anew, so one is allowed")
    current = read_params()
    found = inspect_source(photos, current.data, Path.cwd(), SCRATCH, worker_count(), meant.kind, labels, meant.split)
    if len(found.refused) == len(found.sample):
        first = found.refused[0]
        raise ScanError(
            f"{photos}: none of {len(found.sample)} images can be read, such as {first.name}: {first.reason}"
        )
    if found.images < FEWEST:
        raise ScanError(f"{photos} holds {found.images} images; at least {FEWEST} are needed to find groups")
    say(f"measuring how fast this machine is on {len(found.sample)} of {found.images:,} images …")
    training = suggest_training(found, current, labels)
    clusters = groups or default_groups(found, labels)
    if clusters != "auto" and clusters > found.images:
        raise ScanError(f"--groups is {clusters}, but there are {found.images} images; at most that many are allowed")
    trained = plan_training(found, validate(changed_params(training)[1], Path("params.yaml")))
    plan = choose([trained]) if train else choose(plan_frozen(found, clusters, photos_cluster()))
    suggested = training if train else suggest_frozen(found, labels, plan.spaces, adapt)
    suggested["cluster"]["num_clusters"] = clusters
    if adapt:
        suggested["pretext"]["groups"]["num_clusters"] = clusters
    more = 0.0 if train else adapting_seconds(found, plan, LIKELY if clusters == "auto" else clusters, adapting())
    seconds, memory = clock(plan.seconds + more * adapt), f"{plan.memory / 1e9:.1f} GB of memory"
    cost = f"about {seconds}, {memory}; nothing leaves this computer"
    if train:
        name, side = suggested["backbone"]["name"], suggested["data"]["size"]
        what = [f"a {name} trained on these images alone at {side} px", cost]
    else:
        names = " and ".join(f"{name} at {side} px" for name, side in plan.spaces)
        instead = f"{clock(trained.seconds)}, {trained.memory / 1e9:.0f} GB"
        state = "whose last layers learn these images' groups first" if adapt else "frozen"
        what = [f"{names},", f"{state}: others have taught them ImageNet's labels", cost]
        if not adapt:
            what += [f"or --adapt: its last layers learn these images' groups first, {clock(more)} more"]
        what += [f"or --train: a network learns from these images alone, about {instead}"]
    number = "as many groups as there seem to be," if clusters == "auto" else f"{clusters} groups"
    lines = [*describe(found, labels), *titled("plan", [f"{number} by {what[0]}", *what[1:]])]
    if clusters != "auto" and clusters > found.images / FEW:
        lines += titled("", [f"{clusters} groups of {found.images} images are many: fewer than {FEW} images in each"])
    return Proposal(found, suggested, lines)


def photos_cluster() -> Any:
    """The settings of clustering on frozen features."""
    return read_preset(find_preset("photos")).cluster


def adapting() -> Any:
    """The settings of a network that adapts."""
    return read_preset(find_preset("photos_adapted")).pretext


def describe(found: Inspection, labels: str) -> list[str]:
    """What a source holds, in words."""
    formats = ", ".join(name for name, _ in found.formats.most_common(4))
    lines = [f"{found.images:,} images, {_range(found.sizes)}; {formats}"]
    if found.others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.left_out.most_common(KINDS))
        kinds += ", …" if len(found.left_out) > KINDS else ""
        lines.append(f"left out unless they are images after all: {found.others:,} other files ({kinds})")
    lines += [f"{what}: {count:,} images" if count else what for what, count in found.notes.items()]
    if found.refused:
        first = found.refused[0]
        share = f"{len(found.refused)} of {len(found.sample)} looked at"
        lines.append(f"{share} cannot be read, such as {first.name}: {first.reason}")
    if found.range:
        lines.append(f"more than 8 bits: {found.range[0]:,g} becomes black and {found.range[1]:,g} white (data.range)")
    if found.paged:
        lines.append(f"{found.paged} of {len(found.sample)} looked at have several pages or frames; the first is taken")
    if "no split of its own" not in found.splits:
        counts = ", ".join(f"{found.splits[name]:,} {name}" for name in SPLIT_ORDER if found.splits[name])
        lines.append(f"a split of its own: {counts} (not so: --split none)")
    if fit_of(found) == "pad":
        lines.append(f"{found.cut:.0%} of those looked at are so tall or wide that they are padded to squares, not cut")
    if len(found.classes) > 1:
        what = "subfolders" if found.settings.name in ("folder", "archive") else "labels"
        many = f"{len(found.classes):,} classes"
        shown = ", ".join(found.classes[:CLASSES]) + (", …" if len(found.classes) > CLASSES else "")
        if labels == "none":
            lines.append(f"{what} are not classes (--labels folders): {many}, {shown}")
        else:
            lines.append(f"{what if labels == 'folders' else labels} are {many}, {shown}")
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
