"""What a run has found, as a person reads it: its groups with their numbers and names, its scores and settings.

The files of a run are put into a folder of their own, in which the code that reads the last run reads this one: so
groups are numbered, named and corrected in one way, and nothing is written to the places that are compared.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts
from pipeline.comparing.places import LOCK, Place, Revision
from pipeline.groups import file
from pipeline.groups.numbering import MEMBERS, numbered
from pipeline.groups.placed import PLACED
from pipeline.groups.suggestions import KEPT as SUGGESTED
from pipeline.groups.suggestions import suggested_names
from pipeline.params import PARAMS_FILE
from pipeline.presets import flat
from pipeline.yaml_file import read_yaml
from scan_core.errors import ScanError

if TYPE_CHECKING:
    import pyarrow as pa

MODEL = artifacts.MODELS / "selflabel.safetensors"
SPLITS = ("train", "val")
READ = (
    *(PARAMS_FILE, artifacts.METRICS, artifacts.VERDICT, artifacts.GROUPS, file.FILE, file.ANSWERS),
    *(PLACED, SUGGESTED),  # by scan run and scan show, since the run: only a folder has them
)
OF_PARTS = [folder / f"{split}.npy" for folder in (artifacts.EMBEDDINGS, artifacts.IMAGES) for split in SPLITS]


@dataclass(frozen=True)
class Outcome:
    """A run, whose N images have a group."""

    title: str
    source: list[str]  # (N,) names of the images
    content: list[str] | None  # (N,) hashes of their files; None for a run of an older program
    group: np.ndarray  # (N,) int64
    names: dict[int, str]  # of the groups that have one
    reported: str  # the split that scores are of
    settings: dict[str, Any]  # dotted name → value
    metrics: dict[str, Any]  # the content of metrics.json; empty if there is none
    verdict: dict[str, Any]  # of verdict.json
    number: dict[str, Any]  # of groups.json
    notes: list[str]  # what a person should know of it

    def titled(self, group: int) -> str:
        """``3 daisy``, or ``3``."""
        return f"{group} {self.names.get(group, '')}".strip()


def read_outcomes(first: Place, second: Place) -> tuple[Outcome, Outcome]:
    """Both runs. Raises ``ScanError`` naming what cannot be had, and how to get it."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        copies = [_Copy(place, Path(folder) / str(number)) for number, place in enumerate((first, second))]
        one, other = copies
        for copy, beside in ((one, other), (other, one)):
            with copy.entered():
                copy.settle_numbers(beside, here)
        outcomes = []
        for copy in copies:
            with copy.entered():
                outcomes.append(copy.outcome())
    return outcomes[0], outcomes[1]


@dataclass
class _Copy:
    """The files of a run that are read, in a folder of their own."""

    place: Place
    folder: Path
    tracked: set[Path] = field(default_factory=set)  # outputs in dvc.lock, files and folders
    lock: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_content: bool = True

    def __post_init__(self) -> None:
        self.folder.mkdir()
        with self.entered():
            if self.get(LOCK):
                self.lock = (read_yaml(LOCK) or {}).get("stages") or {}
            self.tracked = {Path(out["path"]) for stage in self.lock.values() for out in stage.get("outs", [])}
            if not self.get(artifacts.PREDICTIONS):
                raise ScanError(f"there is no {artifacts.PREDICTIONS}, so no run has ended; run dvc repro there")
            for path in READ:
                self.get(path)
            self._complete()
            if not ((file.FILE.exists() or PLACED.exists()) and self.get(MODEL)):
                MODEL.parent.mkdir(exist_ok=True)
                MODEL.touch()  # asked for only to tell whether groups.yaml is of it

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """In its folder; an error names the place."""
        try:
            with contextlib.chdir(self.folder):
                yield
        except ScanError as error:
            raise ScanError(f"{self.place.title}: {error}") from None

    def get(self, path: Path) -> bool:
        """False if the run has no such file. Raises ``ScanError`` if it has one that cannot be had here."""
        if self.place.get(path, self.folder / path):
            return True
        if {path, *path.parents} & self.tracked:
            raise ScanError(f"{path} is in {LOCK}, but not in {self.place.store}; {self.place.how_to_get(path)}")
        return False

    def _complete(self) -> None:
        """Predictions and the number of groups as the present program writes them. Older ones had less."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipeline.groups.apply import COLUMNS

        table = pq.read_table(artifacts.PREDICTIONS)
        if not artifacts.GROUPS.exists():
            number = (pa.compute.max(table["cluster"]).as_py() or 0) + 1
            artifacts.save_json(artifacts.GROUPS, {"number": number, "given": True})
        self.has_content = "content" in table.column_names
        lacking = [name for name in COLUMNS if name not in (*table.column_names, "embedding")]
        for name in lacking:
            values = table["source"] if name == "content" else pa.nulls(len(table), _type_of(name))
            table = table.append_column(name, values)
        if lacking:
            artifacts.PREDICTIONS.unlink()
            pq.write_table(table, artifacts.PREDICTIONS)

    def settle_numbers(self, beside: "_Copy", here: Path) -> None:
        """Finds the numbers of groups if groups.yaml is of another model than the run's, as in a new experiment.

        ``beside`` is the run that this one is compared with, ``here`` the project.
        """
        if not file.FILE.exists():
            if isinstance(self.place, Revision):  # in a folder, this is how scan show will number them
                self.notes.append(f"{file.FILE} is not committed in it, so groups are numbered by size")
            return
        model = file.load().model
        if model in ("", file.model_digest()) or self.place.get(MEMBERS, self.folder / MEMBERS):
            return
        MEMBERS.parent.mkdir(exist_ok=True)
        if beside.digest() == model:
            beside.write_members(self.folder / MEMBERS)
        elif (here / MEMBERS).exists() and _model_of(here) == model:
            MEMBERS.symlink_to(here / MEMBERS)
        else:
            for path in (file.FILE, file.ANSWERS):
                path.unlink(missing_ok=True)
            self.notes.append(f"{file.FILE} is of another run, so groups are numbered by size and have no names")

    def digest(self) -> str:
        """Which model the run has made."""
        with self.entered():
            return file.model_digest()

    def write_members(self, path: Path) -> None:
        """Writes which group each of the run's images is in, as ``numbering`` keeps it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.entered():
            numbers = np.array(numbered().clusters)
            table = pq.read_table(artifacts.PREDICTIONS, columns=["content", "cluster"]).drop_null()
        pq.write_table(pa.table({"content": table["content"], "group": numbers[table["cluster"].to_numpy()]}), path)

    def outcome(self) -> Outcome:
        """The run as it is read."""
        import pyarrow as pa

        from pipeline.groups.apply import Grouping, read_predictions

        if file.load().split:
            for path in OF_PARTS:
                self.get(path)
        grouping = Grouping()
        table = read_predictions(grouping)
        table = table.filter(pa.compute.is_valid(table["group"]))
        names = dict(zip(table["group"].to_pylist(), table["name"].to_pylist(), strict=True))
        if SUGGESTED.exists():
            names |= {group: f"{word}?" for group, word in suggested_names(grouping).items() if group in names}
        verdict, metrics = (
            artifacts.load_json(path) if path.exists() else {} for path in (artifacts.VERDICT, artifacts.METRICS)
        )
        return Outcome(
            title=self.place.title,
            source=table["source"].to_pylist(),
            content=table["content"].to_pylist() if self.has_content else None,
            group=table["group"].to_numpy(),
            names={group: name for group, name in names.items() if name},
            reported="val" if "val" in table["split"].unique().to_pylist() else "train",
            settings=self._settings(),
            metrics=metrics,
            verdict=verdict,
            number=artifacts.load_json(artifacts.GROUPS),
            notes=self.notes,
        )

    def _settings(self) -> dict[str, Any]:
        """Those that the run was made with, which dvc.lock has; those of params.yaml may have been changed since."""
        written = _leaves(read_yaml(PARAMS_FILE) if PARAMS_FILE.exists() else {})
        used: dict[str, Any] = {}
        # The last to be run is the one that has written what is compared.
        for stage in sorted(self.lock, key=lambda name: name == "evaluate"):
            used |= _leaves(self.lock[stage].get("params", {}).get(str(PARAMS_FILE), {}))
        if changed := [name for name in written if name in used and written[name] != used[name]]:
            self.notes.append(f"not yet run with the {PARAMS_FILE} that is there: {first_of(changed)}")
        return used or written


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(values).items() if not isinstance(value, dict)}


def first_of(names: list[str], most: int = 3) -> str:
    """``a, b, c and 2 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _model_of(project: Path) -> str:
    with contextlib.chdir(project):
        return file.load().model


def _type_of(column: str) -> "pa.DataType":
    """The type of a column of predictions that an older program did not write."""
    import pyarrow as pa

    numbers = {"runner_up": pa.int64(), "probability": pa.float32(), "runner_up_probability": pa.float32()}
    return numbers.get(column, pa.string())
