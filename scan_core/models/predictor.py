"""A finished model and all that a prediction needs: from stored images to clusters, and whether each image fits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from scan_core.compute.device import Compute
from scan_core.evaluation.belonging import judge_images, nearest_in_bank
from scan_core.evaluation.scores import Prediction
from scan_core.images.store import Images
from scan_core.models.files import is_of_frozen, load_belonging, load_frozen_head, load_model, load_reduction
from scan_core.models.frozen import FrozenNetwork, embed_frozen
from scan_core.models.inference import embed, log_probabilities, probabilities_of


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model; ``evaluate`` sees to it that they belong together."""

    model: Path  # of the last stage that trains
    belonging: Path  # the images that were grouped, see ``save_belonging``
    pretext: Path | None = None  # of a network that was trained: its features tell whether an image fits
    networks: Path | None = None  # folder of the frozen networks, by the hash of their weights


@dataclass(frozen=True)
class Predicted:
    """What a model says of N images."""

    prediction: Prediction
    states: np.ndarray  # (N,) sure, to check, fits nowhere; see ``belonging``
    embeddings: np.ndarray  # (N,D) float32, rows of length 1


class Predictor:
    """The model of ``files``, ready to run: for frozen networks what embed, cluster and evaluate do, else the network.

    Raises ``ScanError`` if a file is missing or damaged.
    """

    def __init__(self, files: ModelFiles, compute: Compute, kept: Path | None = None) -> None:
        """``kept`` is that of ``FrozenNetwork``."""
        self.compute = compute
        self.fitted, self.bank, self.projected, _ = load_belonging(files.belonging)
        self.frozen = is_of_frozen(files.model)
        if self.frozen:
            assert files.networks is not None
            self.reduction, spaces = load_reduction(files.model)
            self.head = load_frozen_head(files.model)
            paths = [files.networks / f"{space.sha256[:16]}.safetensors" for space in spaces]
            self.networks = [
                FrozenNetwork(path, compute.device, space.side, space.mirror, kept)
                for path, space in zip(paths, spaces, strict=True)
            ]
        else:
            assert files.pretext is not None
            self.model, self.pretext = (load_model(path)[0].to(compute.device) for path in (files.model, files.pretext))

    def __call__(self, images: Images, rows: Tensor) -> Predicted:
        """(N,) int64 rows of ``images``, at least one."""
        if self.frozen:
            features = [np.concatenate(list(embed_frozen(network, images, rows))) for network in self.networks]
            embeddings = self.reduction(features)
            probabilities = probabilities_of(self.head, embeddings)
        else:
            embeddings = embed(self.pretext, images, rows, self.projected, self.compute).cpu().numpy()
            features = [embeddings]
            probabilities = log_probabilities(self.model, images, rows, self.compute)[0].exp().cpu().numpy()
        found = Prediction.of(probabilities)
        states = judge_images(self.fitted, *nearest_in_bank(features, self.bank), found.cluster)
        return Predicted(found, states, embeddings)
