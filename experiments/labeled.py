"""Bounds that use labels for training. The pipeline never runs them: call them by hand in a project that has run.

``python -m experiments.labeled oracle --neighbors 20`` trains with the SCAN loss on those mined neighbors that are of
the image's class (Figure 8). ``... supervised`` trains the backbone and one linear layer on the labels of train
(Table 3). Both print ACC, NMI and ARI on val as one line of JSON, and save nothing.
"""

import json
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from pipeline import artifacts
from pipeline.environment import use_threads, wanted_device
from pipeline.params import Params, read_params
from pipeline.stage import Stage
from scan_core.clustering.scan import best_model, start_scan, train_scan
from scan_core.clustering.settings import ScanCluster, known_number
from scan_core.compute.device import configure_compute, make_fabric, seed_everything
from scan_core.errors import ScanError
from scan_core.evaluation.metrics import clustering_metrics
from scan_core.models.files import load_model
from scan_core.models.inference import log_probabilities
from scan_core.models.networks import ClusterHeads, Model, build_backbone, feature_size
from scan_core.training.state import TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class _Project:
    """The settings and artifacts of the project in the working folder, and the labels."""

    def __init__(self) -> None:
        self.params: Params = read_params()
        self.compute = configure_compute(self.params.precision, wanted_device())
        use_threads()
        self.fabric = make_fabric(self.compute.precision, self.compute.device.type)
        self.images, self.rows, self.stats = Stage.images(self.compute)
        self.labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (self.stats["count"],))

    @property
    def cluster(self) -> ScanCluster:
        """The settings of a clustering that trains the network."""
        if not isinstance(self.params.cluster, ScanCluster):
            raise ScanError(f"cluster.method is {self.params.cluster.method}; scan is allowed here")
        return self.params.cluster

    def report(self, model: Model, clusters: int) -> None:
        """Prints a model's scores on val."""
        log_p = log_probabilities(model, self.images, self.rows["val"], self.compute)[0]
        labels = self.labels[self.rows["val"].numpy()]
        metrics = clustering_metrics(labels, log_p.argmax(dim=1).cpu().numpy(), clusters)
        print(json.dumps({name: metrics[name] for name in ("acc", "nmi", "ari")}))


@app.command()
def oracle(neighbors: Annotated[int, typer.Option(help="How many per image, true and false.")]) -> None:
    """The SCAN loss on neighbors without false positives."""
    project = _Project()
    settings = project.cluster.model_copy(update={"neighbors": neighbors})
    mined = {split: artifacts.load_neighbors(split, len(project.rows[split])) for split in ("train", "val")}
    true = without_false_positives(mined["train"][:, :neighbors], project.labels[project.rows["train"].numpy()])
    pretext, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    state = start_scan(settings, pretext, project.params.seed, project.fabric)
    train = project.rows["train"], torch.from_numpy(true)
    val = project.rows["val"], torch.from_numpy(mined["val"])
    for _ in train_scan(state, project.images, *train, *val, settings, project.fabric):
        pass
    project.report(best_model(state).to(project.compute.device), known_number(settings))


def without_false_positives(neighbors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,K) neighbors of the image's own class, repeated in order; the image itself if none is of its class."""
    true = labels[neighbors] == labels[:, None]  # (N,K)
    order = np.argsort(~true, axis=1, kind="stable")  # true neighbors first, in order of similarity
    count = true.sum(axis=1)
    column = np.arange(neighbors.shape[1])[None] % np.maximum(count, 1)[:, None]  # (N,K)
    repeated = np.take_along_axis(neighbors, np.take_along_axis(order, column, axis=1), axis=1)
    return np.where(count[:, None] > 0, repeated, np.arange(len(neighbors))[:, None])


@app.command()
def supervised() -> None:
    """A new backbone and one linear layer on labels, with the epochs, optimizer, batches and views of cluster."""
    project = _Project()
    settings, rows = project.cluster, project.rows["train"]
    rows = rows[torch.from_numpy(project.labels)[rows] >= 0]
    values, index = np.unique(project.labels[rows.numpy()], return_inverse=True)
    target = torch.full((project.stats["count"],), -1)
    target[rows] = torch.from_numpy(index)
    generator = seed_everything(project.params.seed)
    backbone = build_backbone(project.params.backbone, project.stats["channels"])
    model = Model(backbone, ClusterHeads(feature_size(backbone), len(values), 1)).to(project.compute.device)
    _train_supervised(project, model, rows, target, generator)
    project.report(model, max(len(values), known_number(settings)))


def _train_supervised(
    project: _Project, model: Model, rows: Tensor, target: Tensor, generator: torch.Generator
) -> None:
    settings = project.cluster
    optimizer = build_optimizer(settings.optimizer, model, project.fabric)
    state = TrainingState(module=model, optimizer=optimizer, generator=generator)
    train = TrainStep("cluster", state, settings, project.fabric, len(rows))

    @train.graphed
    def step(views: Tensor, classes: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(train.model(views)[1][0], classes)  # (B,classes)
        train.backward_and_update(loss)
        return {"loss": loss}

    train.model.train()
    for _ in train.epochs():
        for batch in train.batches():
            views = random_view(project.images, rows[batch], settings.augmentation, train.generator())
            step(views, target[rows[batch]].to(views.device))
            train.end_step(len(batch))
        train.end_epoch()


if __name__ == "__main__":
    app()
