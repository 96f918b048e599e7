"""The context that every stage runs in."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline import artifacts
from pipeline.environment import data_home, use_threads, wanted_device
from pipeline.fingerprint import fingerprint, git_commit, own_params, run_key, source_key, stage_entries
from pipeline.finished import AlreadyFinished, by_dvc, delete_noted, keep, kept, move, place_of, take
from pipeline.params import Params, read_params
from pipeline.progress import TrainingProgress, say
from pipeline.resume import ScratchFolder, holder, launched, training_environment
from pipeline.tracking.execution import end_execution, execution_id, project_name, tags_of_run
from pipeline.tracking.spool import NullTracker, Tracker
from pipeline.weights import weights_file
from scan_core.errors import ScanError

if TYPE_CHECKING:
    from torch import Tensor

    from scan_core.compute.device import Compute
    from scan_core.images.store import Images
    from scan_core.training.state import Progress, TrainingState


SECONDS_TO_STOP = 10.0  # of a stage whose DVC was killed, which another run is waiting for


class Stage:
    """One execution of a stage: settings, outputs that all appear at the end, resuming, tracking.

    If torchrun has started several processes, the first one does all this, and the others only train with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rank, self.processes = launched()
        self.params: Params = read_params()
        self._staging = Path(".scan") / "outputs" / name
        self._alone = FileLock(Path(".scan") / f"{name}.lock")
        if not self.rank:
            self._be_alone()
        # DVC runs some experiments in a copy of the project and names the project itself here.
        self.root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        self.fingerprint = "" if self.rank else fingerprint(name, self.params)  # reads all images
        if not self.rank:
            delete_noted(self.root)
        self._kept = place_of(self.root, name, self.fingerprint)
        self.finished = [] if self.rank or not by_dvc() else kept(self._kept)  # an earlier run's outputs
        # What an earlier run has finished it has recorded, too.
        self.tracker = NullTracker() if self.rank or self.finished else Tracker(self.root, name)
        self._outputs: list[tuple[Path, Path]] = []
        self._scratch: ScratchFolder | None = None
        if not self.rank:
            shutil.rmtree(self._staging, ignore_errors=True)
        self._announce()

    def _be_alone(self) -> None:
        """Raises ``ScanError`` if the stage already runs in this folder, because both would write the same outputs."""
        Path(".scan").mkdir(exist_ok=True)
        try:
            self._alone.acquire(timeout=SECONDS_TO_STOP if by_dvc() else 0)
        except Timeout:
            who = holder(Path(self._alone.lock_file))
            raise ScanError(f"another {self.name} runs in {Path.cwd()}, {who}; wait for its end or stop it") from None

    def _announce(self) -> None:
        """Starts the runs in MLflow that this execution fills."""
        everything = flatten(self.params.model_dump(mode="json"))
        if not self.params.evaluate.pictures:
            everything["data.path"] = "withheld"
        group = {"seed", "precision", self.name, "data" if self.name == "prepare" else "backbone"}
        key, own = run_key(self.params, source_key()), tags_of_run(git_commit())
        self.tracker.event(
            "start",
            stage=self.name,
            key="" if self.rank else execution_id(key),
            name=f"{project_name(self.root)} seed {self.params.seed} {key[:6]}",
            params=everything,
            own={name: value for name, value in everything.items() if name.split(".")[0] in group},
            tags={"scan.fingerprint": self.fingerprint, **own},
            about={"scan.key": key, **own},
        )

    def out(self, path: Path) -> Path:
        """Where to write the output ``path``. ``finish`` moves it to its place."""
        staged = self._staging / path
        staged.parent.mkdir(parents=True, exist_ok=True)
        self._outputs.append((staged, path))
        return staged

    def restore(self) -> None:
        """Takes the outputs that an earlier run has finished."""
        say(f"{self.name:<9} resuming at its end: its outputs were finished, but DVC had not noted them")
        for path in self.finished:
            take(self._kept, path, self.out(path))

    def staged(self, path: Path) -> Path:
        """Where an output, or a folder of outputs, is before the stage has finished."""
        return self._staging / path

    def now(self, path: Path) -> Path:
        """Where the newest content of the file ``path`` is: that of this execution if it has written it already."""
        staged = self.staged(path)
        return staged if staged.exists() else path

    def log_completion(self) -> None:
        """Tells MLflow which executions made this run: the fingerprint of each stage, and the hash of dvc.lock."""
        stages = {name: fingerprint(name, self.params) for name in stage_entries()}
        lock = Path("dvc.lock")
        tags = {"scan.commit": git_commit()}
        if lock.exists():
            tags["scan.dvc_lock_sha256"] = hashlib.sha256(lock.read_bytes()).hexdigest()
            self.tracker.artifact(lock, parent=True)
        self.tracker.event("tags", values=tags, parent=True)
        self.tracker.event("complete", stages=stages)

    @property
    def device(self) -> str:
        """``SCAN_DEVICE``."""
        return wanted_device()

    def use(self, compute: "Compute") -> "Compute":
        """Applies ``SCAN_THREADS``, and records what the bytes depend on besides the fingerprint."""
        use_threads()
        self.environment = training_environment(compute.precision, compute.device.type, self.processes)
        self.tracker.event("tags", values={f"scan.{key}": str(value) for key, value in self.environment.items()})
        return compute

    @staticmethod
    def images(compute: "Compute") -> "tuple[Images, dict[str, Tensor], dict[str, Any]]":
        """The images on the device, the rows of each split on the host, and the statistics."""
        import torch

        from scan_core.images.store import ArrayImages, JpegImages

        stats = artifacts.load_json(artifacts.IMAGES / "stats.json")
        index = {split: torch.from_numpy(row) for split, row in artifacts.load_rows(stats["count"]).items()}
        shards, seen = artifacts.load_shards(stats), (stats["mean"], stats["std"], stats["view"])
        if stats["store"] == "array":
            return ArrayImages(compute.device, shards, *seen), index, stats
        blobs = [artifacts.IMAGES / f"jpeg-{number:05d}.bin" for number in range(len(shards))]
        return JpegImages(compute.device, blobs, shards, *seen), index, stats

    def weights(self, name: str) -> Path:
        """The file of weights: published ones by their name, others by their path."""
        return weights_file(name, self.root)

    @property
    def data_home(self) -> Path:
        """The folder of the named data sets."""
        return data_home(self.root)

    def scratch(self, depends_on: dict[str, Any] | None = None) -> Path:
        """A folder for unfinished work on the same files and settings. It is deleted when the stage is done.

        ``depends_on`` are the settings that the work depends on, if they are fewer than the stage's. A stage that
        trains, too, may not have fewer.
        """
        self._scratch = ScratchFolder(self.root, self.name, fingerprint(self.name, self.params, depends_on))
        self._scratch.delete_stale(self.name)
        return self._scratch.folder

    def train(self, state: "TrainingState", loop: "Progress", epochs: int, steps: int) -> None:
        """Runs ``loop``, which changes ``state``, to its end: resumes, saves after any step, shows and logs epochs.

        Only the first of several processes returns, because it writes the outputs.
        """
        from scan_core.compute.distributed import broadcast
        from scan_core.training.state import Epoch

        saved = None
        if not self.rank and not self.finished:
            self._scratch = self._scratch or ScratchFolder(self.root, self.name, self.fingerprint)
            saved = self._scratch.load(self.environment)
        saved, finished = broadcast((saved, bool(self.finished)))
        if finished:  # nothing is left to train, which only the first process knows before
            raise SystemExit(0) if self.rank else AlreadyFinished
        if saved is not None:
            state.load_state_dict(saved)
        if self.rank:
            for _ in loop:
                pass
            raise SystemExit(0)
        assert self._scratch is not None
        if saved is not None:
            for values in state.history:  # the run in MLflow is a new one, and its curves are to be whole
                self.tracker.metrics(values, int(values["epoch"]))
        with TrainingProgress(self.name, epochs, state.epoch, steps, state.step) as progress:
            for record in loop:
                if isinstance(record, Epoch):
                    progress.epoch_done(record.number, record.values["loss"])
                    self.tracker.metrics(record.values, record.number)
                    resumable = record.number < epochs
                else:
                    progress.step_done(record.images)
                    resumable = state.step < steps  # the epoch's end needs more of its last step than the state has
                if resumable and self._scratch.should_save():
                    self._scratch.save_if_room(state.state_dict(), self.environment)
            progress.loop_ended()
        self._scratch.save_for_waiter(state.state_dict(), self.environment)

    def keep(self) -> bool:
        """Keeps the outputs until DVC has noted them: what stops this run from now on costs no work.

        Returns whether they are kept.
        """
        if self.finished or not by_dvc():
            return bool(self.finished)
        about = {
            "stage": self.name,
            "params": own_params(self.name, self.params),
            "deps": stage_entries()[self.name]["deps"],
            "scratch": self._scratch.folder.name if self._scratch else None,
        }
        return keep(self._kept, self._staging, [path for _, path in self._outputs], about)

    def finish(self) -> None:
        """Moves the outputs into place, one rename each, and then deletes the unfinished state."""
        for staged, path in self._outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.rmtree(path)
            move(staged, path)
        shutil.rmtree(self._staging, ignore_errors=True)
        if self._scratch:
            self._scratch.close(finished=True)
            self._scratch = None
        if self.name == "evaluate":
            end_execution()
        self._alone.release()

    def abandon(self) -> None:
        """After an error: deletes incomplete outputs, keeps the saved state."""
        if self.rank:
            return
        shutil.rmtree(self._staging, ignore_errors=True)
        if self._scratch:
            self._scratch.close(finished=False)
        self._alone.release()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` to ``{"a.b": "1"}``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return flat
