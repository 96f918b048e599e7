"""What uses labels to train, for bounds alone: run by hand beside a finished pipeline, never by it.

``python -m experiments.labelled oracle --neighbors 20`` trains with the SCAN loss on mined neighbours from which those
of another class have been taken out (Figure 8); ``... supervised`` trains the backbone and one linear layer on train's
labels (Table 3). Both print ACC, NMI and ARI on val as one line of JSON. No model or neighbour that they make is kept.
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
from scan_core.compute.device import configure_compute, make_fabric, seed_everything
from scan_core.evaluation.metrics import clustering_metrics
from scan_core.models.files import load_model
from scan_core.models.inference import log_probabilities
from scan_core.models.networks import ClusterHeads, Model, build_backbone, feature_size
from scan_core.training.state import TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views.random_view import random_view

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class _Data:
    """The artifacts of the pipeline that has run here, and the labels."""

    def __init__(self) -> None:
        self.params: Params = read_params()
        self.compute = configure_compute(self.params.precision, wanted_device())
        use_threads()
        self.fabric = make_fabric(self.compute.precision, self.compute.device.type)
        self.images, self.rows, self.stats = Stage.images(self.compute)
        self.labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (self.stats["count"],))

    def report(self, model: Model, clusters: int) -> None:
        """Prints the scores of a trained model on val."""
        log_p = log_probabilities(model, self.images, self.rows["val"], self.compute)[0]
        labels = self.labels[self.rows["val"].numpy()]
        found = clustering_metrics(labels, log_p.argmax(dim=1).cpu().numpy(), clusters)
        print(json.dumps({name: found[name] for name in ("acc", "nmi", "ari")}))


@app.command()
def oracle(neighbors: Annotated[int, typer.Option(help="Mined; those of another class are then left out.")]) -> None:
    """The SCAN loss on neighbours without false positives."""
    data = _Data()
    settings = data.params.cluster.model_copy(update={"neighbors": neighbors})
    mined = {split: artifacts.load_neighbors(split, len(data.rows[split])) for split in ("train", "val")}
    true = without_false_positives(mined["train"][:, :neighbors], data.labels[data.rows["train"].numpy()])
    pretext, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    state = start_scan(settings, pretext, data.params.seed, data.fabric)
    val = torch.from_numpy(mined["val"])
    for _ in train_scan(
        state, data.images, data.rows["train"], torch.from_numpy(true), data.rows["val"], val, settings, data.fabric
    ):
        pass
    data.report(best_model(state).to(data.compute.device), settings.num_clusters)


def without_false_positives(neighbors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,K) neighbours, those of another class replaced by the image's true ones in turn; without any, by itself."""
    true = labels[neighbors] == labels[:, None]  # (N,K)
    order = np.argsort(~true, axis=1, kind="stable")  # the true ones first, nearest first
    count = true.sum(axis=1)
    column = np.arange(neighbors.shape[1])[None] % np.maximum(count, 1)[:, None]  # (N,K)
    kept = np.take_along_axis(neighbors, np.take_along_axis(order, column, axis=1), axis=1)
    return np.where(count[:, None] > 0, kept, np.arange(len(neighbors))[:, None])


@app.command()
def supervised() -> None:
    """The backbone, new, and one linear layer, on labels: epochs, optimiser, batches and views are cluster's."""
    data = _Data()
    settings, rows = data.params.cluster, data.rows["train"]
    known = torch.from_numpy(data.labels)[rows] >= 0
    values, index = np.unique(data.labels[rows[known].numpy()], return_inverse=True)
    target = torch.full((data.stats["count"],), -1)
    target[rows[known]] = torch.from_numpy(index)
    generator = seed_everything(data.params.seed)
    backbone = build_backbone(data.params.backbone, data.stats["channels"])
    model = Model(backbone, ClusterHeads(feature_size(backbone), len(values), 1)).to(data.compute.device)
    _train_supervised(data, model, rows[known], target, generator)
    data.report(model, max(len(values), settings.num_clusters))


def _train_supervised(data: _Data, model: Model, rows: Tensor, target: Tensor, generator: torch.Generator) -> None:
    settings = data.params.cluster
    optimizer = build_optimizer(settings.optimizer, model, data.fabric)
    state = TrainingState(module=model, optimizer=optimizer, generator=generator)
    train = TrainStep("cluster", state, settings, data.fabric, len(rows))

    @train.graphed
    def step(views: Tensor, classes: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(train.model(views)[1][0], classes)  # (B,classes)
        train.backward_and_update(loss)
        return {"loss": loss}

    train.model.train()
    for _ in train.epochs():
        for batch in train.batches():
            views = random_view(data.images, rows[batch], settings.augmentation, train.generator())
            step(views, target[rows[batch]].to(views.device))
            train.end_step(len(batch))
        train.end_epoch()


if __name__ == "__main__":
    app()
