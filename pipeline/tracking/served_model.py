"""The model that MLflow serves: from uint8 images to their clusters. ``mlflow_runs`` packages this file."""

from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd


class ClusterModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow's types are not followed
    """Clusters images of the size that the network was trained on."""

    def load_context(self, context: Any) -> None:
        """Loads the weights that were logged with the model."""
        from pathlib import Path

        from scan_core.compute.device import configure_compute
        from scan_core.models.files import load_model
        from scan_core.models.frozen import FrozenModel

        weights, self.compute = Path(context.artifacts["weights"]), configure_compute("fp32", "auto")
        self.frozen = None
        if "networks" in context.artifacts:
            self.frozen = FrozenModel(weights, Path(context.artifacts["networks"]), self.compute.device)
        else:
            self.model, self.description = load_model(weights)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per image, ``cluster`` and its ``probability``; the input is (B,height,width,channels) uint8."""
        import torch

        from scan_core.images.store import ArrayImages
        from scan_core.models.inference import log_probabilities

        pixels, device = np.ascontiguousarray(model_input, dtype=np.uint8), self.compute.device
        rows = torch.arange(len(pixels))
        if self.frozen:
            probabilities = self.frozen(ArrayImages(device, [pixels], [0.0], [1.0]), rows)
        else:
            images = ArrayImages(device, [pixels], self.description["mean"], self.description["std"])
            log_p = log_probabilities(self.model.to(device), images, rows, self.compute)[0]
            probabilities = log_p.exp().cpu().numpy()
        best = probabilities.argmax(axis=1)
        return pd.DataFrame({"cluster": best, "probability": probabilities.max(axis=1).astype(np.float64)})


mlflow.models.set_model(ClusterModel())
