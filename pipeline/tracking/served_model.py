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

        from scan_core.models.files import load_model

        self.model, self.description = load_model(Path(context.artifacts["weights"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per image, ``cluster`` and its ``probability``; the input is (B,height,width,channels) uint8."""
        import torch

        from scan_core.compute.device import configure_compute
        from scan_core.images.store import ArrayImages
        from scan_core.models.inference import log_probabilities

        compute = configure_compute("fp32", "auto")
        pixels = np.ascontiguousarray(model_input, dtype=np.uint8)
        images = ArrayImages(compute.device, [pixels], self.description["mean"], self.description["std"])
        log_p = log_probabilities(self.model.to(compute.device), images, torch.arange(len(pixels)), compute)[0]
        best = log_p.exp().max(dim=1)
        return pd.DataFrame({"cluster": best.indices.cpu().numpy(), "probability": best.values.double().cpu().numpy()})


mlflow.models.set_model(ClusterModel())
