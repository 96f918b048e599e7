"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps along a momentum that was made orthogonal, so
that no direction of a matrix is left behind.

They are as long as Adam's (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2), so that one
rate serves both: what is no matrix takes Adam.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ITERATION = (3.4445, -4.7750, 2.0315)  # Jordan's polynomial: steep at 0, its values within 0.7 and 1.2 for 5 rounds
ROUNDS = 5
ADAMS = 0.2  # root mean square of Adam's steps, in rates
SQUARES = 0.999  # Adam's second beta


def orthogonal(matrix: Tensor, bf16: bool) -> Tensor:
    """(A,B) to about the nearest matrix whose singular values are all equal, near 1 (Newton-Schulz); 0 stays 0.

    ``bf16`` says whether it is computed in bfloat16, which is enough for it.
    """
    tall = len(matrix) > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    if bf16:
        x = x.bfloat16()
    a, b, c = ITERATION
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """m <- momentum * m + (1 - momentum) * g;  w <- w - lr * (0.2 * sqrt(max(A,B)) * o + weight_decay * w), where o is
    the ``orthogonal`` of momentum * m + (1 - momentum) * g (Nesterov), of shape (A,B): filters with all that one sees.

    What is no matrix, or one row or column, takes Adam without decay, ``momentum`` being its first beta.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, bf16: bool = False
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss is returned
        """One step; without synchronisation with the device."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, state = weight.grad, self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    if not _is_matrix(weight):
                        state["squares"], state["steps"] = torch.zeros_like(weight), 0
                momentum, lr = group["momentum"], group["lr"]
                state["momentum"].lerp_(gradient, 1 - momentum)
                if _is_matrix(weight):
                    ahead = gradient.lerp(state["momentum"], momentum).flatten(1)
                    weight.mul_(1 - lr * group["weight_decay"])
                    turned = orthogonal(ahead, self.bf16).view_as(weight)
                    weight.add_(turned, alpha=-lr * ADAMS * max(ahead.shape) ** 0.5)
                else:
                    state["steps"] += 1
                    state["squares"].lerp_(gradient.square(), 1 - SQUARES)
                    size = (state["squares"] / (1 - SQUARES ** state["steps"])).sqrt_().add_(1e-8)
                    weight.addcdiv_(state["momentum"], size, value=-lr / (1 - momentum ** state["steps"]))


def _is_matrix(weight: Tensor) -> bool:
    """Two dimensions or more, filters being rows, and neither one row nor one column."""
    return weight.ndim > 1 and 1 < len(weight) < weight.numel()
