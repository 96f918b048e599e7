"""CIFAR-10 from its archive to scores within a time budget, for a machine that has neither DVC nor MLflow."""

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
from torch import nn

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.evaluation.metrics import clustering_metrics, neighbor_purity
from scan_core.evaluation.probes import predict_knn
from scan_core.evaluation.scores import fit_kmeans, kmeans_scores
from scan_core.images.store import Images
from scan_core.method import Method, cluster_images
from scan_core.models.inference import embed
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

    def scores(self, images: Images, labels: np.ndarray, count: int, resume: Path | None) -> dict[str, Any]:
        """Runs every step and scores the images after the first ``count``. Labels are read at the end.

        If clustering or self-labeling runs out of time, the scores are those of what there is; ``cut`` says where.
        """
        params, cut, embedding = self.params, list[str](), 0.0
        rows = {"train": torch.arange(count), "val": torch.arange(count, len(labels))}
        vectors: dict[str, dict[str, np.ndarray]] = {}

        def run(name: str, state: TrainingState, loop: Progress) -> None:
            nonlocal embedding
            epochs = getattr(params, name).epochs
            if name == "cluster":
                self.seconds.setdefault("embed and neighbors", time.monotonic() - embedding)
            if name == "pretext":
                if not resume or not load_parts(resume, f"{self.name}-pretext", state.module):
                    self.train(name, state, loop, epochs)
                    self.export(name, state.module)
                for features in ("projector", "backbone"):  # now, because clustering trains the backbone on
                    vectors[features] = {
                        split: embed(state.module, images, each, features == "projector", self.fabric).cpu().numpy()
                        for split, each in rows.items()
                    }
                embedding = time.monotonic()
            elif not cut:
                try:
                    self.train(name, state, loop, epochs)
                except OutOfTime as stopped:
                    cut.append(str(stopped))

        method = Method(
            params.backbone, params.pretext, params.embed, params.neighbors, params.cluster, params.selflabel
        )
        found = cluster_images(images, rows["train"], rows["val"], method, self.fabric, self.seed, run)
        self.export("selflabel", found.model)
        started = time.monotonic()
        truth = {split: labels[each.numpy()] for split, each in rows.items()}
        scores: dict[str, Any] = {"cut": cut[0] if cut else None}
        for name, assigned in (("cluster", found.before), ("selflabel", found.clusters)):
            measured = clustering_metrics(truth["val"], assigned.numpy(), params.cluster.num_clusters)
            scores[name] = {measure: measured[measure] for measure in ("acc", "nmi", "ari")}
            print(f"seed {self.seed} {name} {scores[name]} {self.seconds}", flush=True)
        settings = params.neighbors
        scores["features"] = {}
        for name, each in vectors.items():
            near = found.neighbors["train"]
            if name != params.embed.features:
                near = mine_neighbors(each["train"], settings.k, settings.exact_rows, settings.recall).nearest
            scores["features"][name] = {
                "purity_20": neighbor_purity(truth["train"], near, 20),
                "knn_acc": float((predict_knn(each["train"], truth["train"], each["val"]) == truth["val"]).mean()),
            }
        fitted = fit_kmeans(found.embeddings["train"], 10, 5)
        baseline = kmeans_scores(fitted, found.embeddings["val"], truth["val"], 10)
        scores["kmeans"] = {name: baseline[name] for name in ("acc", "nmi", "ari")}
        self.seconds["evaluate"] = time.monotonic() - started
        epochs = {"cluster": found.scan.best_epoch, "selflabel": found.selflabel.epoch}
        kept = {"kept": found.kept, "why": found.reason}
        return {"seed": self.seed, **scores, **kept, "epochs": epochs, "seconds": self.seconds}


def load_parts(folder: Path, name: str, model: nn.Module) -> bool:
    """Loads the parts of an earlier call into ``model``, if they are there."""
    parts = sorted(folder.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        return False
    data = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    half = torch.load(data, map_location="cpu", weights_only=True)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in half.items()})
    return True
