"""LARS (You et al., arXiv 1708.03888): SGD whose rate is scaled for each layer by the norms of weights and gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = 0.001


class Lars(torch.optim.Optimizer):
    """g <- g + weight_decay * w;  v <- momentum * v + trust * |w| / |g| * g;  w <- w - lr * v.

    Biases and BatchNorm's parameters, those of one dimension, are neither decayed nor scaled (SimCLR, BYOL). Where a
    norm is 0 the scale is 1.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss is returned
        """One step; without synchronisation with the device."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad
                if weight.ndim > 1:
                    gradient = gradient.add(weight, alpha=group["weight_decay"])
                    norm, of_gradient = weight.norm(), gradient.norm()
                    scale = torch.where((norm > 0) & (of_gradient > 0), TRUST * norm / of_gradient, 1.0)
                    gradient = gradient * scale
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                weight.sub_(group["lr"] * state["momentum"].mul_(group["momentum"]).add_(gradient))
