"""CIFAR-10 from its archive to scores within a time budget, for a machine that has neither DVC nor MLflow."""

import copy
import io
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.scan import best_model, start_scan, train_scan
from scan_core.clustering.selflabel import choose_model, final_model, has_learned, start_selflabel, train_selflabel
from scan_core.evaluation.metrics import clustering_metrics, neighbor_purity
from scan_core.evaluation.probes import predict_knn
from scan_core.evaluation.scores import kmeans_scores
from scan_core.images.store import Images
from scan_core.models.inference import embed, log_probabilities
from scan_core.pretext.methods import start_pretext, train_pretext
from scan_core.training.state import Epoch, Progress, TrainingState

PART = 15 * 2**20  # bytes


class OutOfTime(Exception):
    """The budget is over; what is unfinished is saved."""


def read_archive(path: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """All images (N,32,32,3) uint8, train's first, their labels (N,), and how many are train's.

    The archive holds cifar10/{train,test}/CLASS/*.jpg. Rows are in an order that says nothing of the class.
    """
    from PIL import Image

    def decoded(found: tuple[str, str, bytes]) -> tuple[str, bytes, str, np.ndarray]:
        split, name, data = found
        picture = np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB"))
        return split, data[-64:], name, picture

    def files() -> Iterator[tuple[str, str, bytes]]:
        with tarfile.open(path) as archive:
            for member in archive:
                parts = Path(member.name).parts
                if member.isfile() and len(parts) >= 3 and parts[-3] in stored:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield parts[-3], parts[-2], file.read()

    stored: dict[str, list[tuple[bytes, str, np.ndarray]]] = {"train": [], "test": []}
    with ThreadPoolExecutor() as threads:
        for split, tail, name, picture in threads.map(decoded, files()):
            stored[split].append((tail, name, picture))
    for split, items in stored.items():
        items.sort(key=lambda item: (item[2].tobytes()[:64], item[0]))  # by content: not by class
        stored[split] = items[:limit]
    items = stored["train"] + stored["test"]
    classes = sorted({name for _, name, _ in items})
    labels = np.array([classes.index(name) for _, name, _ in items])
    return np.stack([picture for _, _, picture in items]), labels, len(stored["train"])


class Run:
    """One seed of the whole pipeline, within what is left of the budget.

    ``what`` names settings and images: what was saved under another name is not gone on from.
    """

    def __init__(
        self, params: Any, seed: int, fabric: Any, folder: Path, out: Path, deadline: float, what: str
    ) -> None:
        self.params, self.seed, self.fabric = params, seed, fabric
        self.name = f"{what}-seed{seed}"
        self.folder, self.out, self.deadline = folder / self.name, out, deadline
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = self._read("seconds.json") or {}

    def _read(self, name: str) -> Any:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def train(self, name: str, state: TrainingState, loop: Progress, epochs: int) -> None:
        """To the loop's end, or ``OutOfTime`` at the end of an epoch, with everything saved."""
        path = self.folder / f"{name}.state"
        if path.exists():
            state.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        started = saved = told = time.monotonic()
        before = self.seconds.get(name, 0.0)
        for record in loop:
            if not isinstance(record, Epoch):
                continue
            self.seconds[name] = before + time.monotonic() - started
            late = time.monotonic() > self.deadline
            if late or record.number == epochs or time.monotonic() - saved > 60:
                partial = path.with_suffix(".part")
                torch.save(state.state_dict(), partial)
                partial.replace(path)
                (self.folder / "seconds.json").write_text(json.dumps(self.seconds))
                saved = time.monotonic()
            if late or record.number == epochs or time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"seed {self.seed} {name} {record.number}/{epochs} {record.values}", flush=True)
            if late and record.number < epochs:
                raise OutOfTime(f"seed {self.seed} stopped in {name}, epoch {record.number} of {epochs}")

    def export(self, name: str, model: nn.Module) -> None:
        """Half precision, in parts that may leave the machine."""
        buffer = io.BytesIO()
        half = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
        torch.save({key: value.cpu() for key, value in half.items()}, buffer)
        data = buffer.getvalue()
        for number, start in enumerate(range(0, len(data), PART)):
            (self.out / f"{self.name}-{name}.{number}").write_bytes(data[start : start + PART])

    def embedded(self, model: nn.Module, images: Images, rows: dict[str, Tensor], features: str) -> dict[str, Any]:
        """(N,D) float32 of each split on the host: the projector's output, or the backbone's features."""
        return {
            split: embed(model, images, each, features == "projector", self.fabric).cpu().numpy()
            for split, each in rows.items()
        }

    def mined(self, vectors: np.ndarray) -> np.ndarray:
        """(N,K) nearest neighbours."""
        settings = self.params.neighbors
        found = mine_neighbors(vectors, settings.k, settings.exact_rows, settings.recall, smoothing=settings.smoothing)
        return found.nearest

    def scores(self, images: Images, labels: np.ndarray, count: int, resume: Path | None) -> dict[str, Any]:
        """Every step in turn, and the scores on the images after the first ``count``. Labels are read at the end.

        Where clustering or self-labelling runs out of time, what there is by then is scored; ``cut`` says where.
        """
        params, fabric = self.params, self.fabric
        found: dict[str, Any] = {"cut": None}
        rows = {"train": torch.arange(count), "val": torch.arange(count, len(labels))}
        state = start_pretext(params.pretext, params.backbone, 3, count, self.seed, fabric, None)
        loop = train_pretext(state, images, rows["train"], params.pretext, fabric)
        if not resume or not imported(resume, f"{self.name}-pretext", state.module):
            self.train("pretext", state, loop, params.pretext.epochs)
            self.export("pretext", state.module)
        started = time.monotonic()
        chosen = params.embed.features
        vectors = {chosen: self.embedded(state.module, images, rows, chosen)}
        mined = {split: self.mined(each) for split, each in vectors[chosen].items()}
        self.seconds.setdefault("embed and neighbors", time.monotonic() - started)
        for other in {"projector", "backbone"} - {chosen}:  # now, for clustering trains the backbone on
            vectors[other] = self.embedded(state.module, images, rows, other)
        nearest = {split: torch.from_numpy(each) for split, each in mined.items()}
        scan = start_scan(params.cluster, state.module, self.seed, fabric)
        try:
            self.train("cluster", scan, train_scan(
                scan, images, rows["train"], nearest["train"], rows["val"], nearest["val"], params.cluster, fabric
            ), params.cluster.epochs)  # fmt: skip
        except OutOfTime as stopped:
            found["cut"] = str(stopped)
        clustered = best_model(scan).to(fabric.device)
        kept_before = copy.deepcopy(clustered)  # self-labelling trains the one that it gets
        before = log_probabilities(clustered, images, rows["val"], fabric)[0].argmax(dim=1).cpu()
        labelled = start_selflabel(params.selflabel, clustered, self.seed, fabric)
        loop = train_selflabel(labelled, images, rows["train"], rows["val"], params.selflabel, fabric)
        if not found["cut"]:
            try:
                self.train("selflabel", labelled, loop, params.selflabel.epochs)
            except OutOfTime as stopped:
                found["cut"] = str(stopped)
        after = log_probabilities(final_model(labelled), images, rows["val"], fabric)[0].argmax(dim=1).cpu()
        learned = has_learned(labelled, len(rows["train"]) // params.selflabel.batch_size)
        kept, why = choose_model(before, after, nearest["val"][:, 0], learned)
        if kept == "before":
            after = before
        self.export("selflabel", kept_before if kept == "before" else final_model(labelled))
        started = time.monotonic()

        truth = {split: labels[each.numpy()] for split, each in rows.items()}
        for name, assigned in (("cluster", before), ("selflabel", after)):
            measured = clustering_metrics(truth["val"], assigned.numpy(), params.cluster.num_clusters)
            found[name] = {measure: measured[measure] for measure in ("acc", "nmi", "ari")}
            print(f"seed {self.seed} {name} {found[name]} {self.seconds}", flush=True)
        found["features"] = {}
        for name, each in vectors.items():
            near = mined["train"] if name == chosen else self.mined(each["train"])
            found["features"][name] = {
                "purity_20": neighbor_purity(truth["train"], near, 20),
                "knn_acc": float((predict_knn(each["train"], truth["train"], each["val"]) == truth["val"]).mean()),
            }
        embedded = vectors[chosen]
        baseline = kmeans_scores(embedded["train"], {"val": (embedded["val"], truth["val"])}, 10, 5)["val"]
        found["kmeans"] = {name: baseline[name] for name in ("acc", "nmi", "ari")}
        self.seconds["evaluate"] = time.monotonic() - started
        epochs = {"cluster": scan.best_epoch, "selflabel": labelled.epoch}
        return {"seed": self.seed, **found, "kept": kept, "why": why, "epochs": epochs, "seconds": self.seconds}


def imported(folder: Path, name: str, model: nn.Module) -> bool:
    """Loads the parts of an earlier call into ``model``, if they are there."""
    parts = sorted(folder.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        return False
    data = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    half = torch.load(data, map_location="cpu", weights_only=True)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in half.items()})
    return True
