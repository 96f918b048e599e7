"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps along a momentum that was made orthogonal, so
that no direction of a matrix is left behind.

They are as long as Adam's (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2), so that one
rate serves both: what is no matrix takes Adam.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adam import adam

ITERATION = (3.4445, -4.7750, 2.0315)  # Jordan's polynomial: steep at 0, its values within 0.7 and 1.2 for 5 rounds
ROUNDS = 5
ADAMS = 0.2  # root mean square of Adam's steps, in rates
SQUARES = 0.999  # Adam's second beta


def orthogonal(matrices: Tensor, bf16: bool) -> Tensor:
    """(n,A,B) to about the nearest matrices whose singular values are all equal, near 1 (Newton-Schulz); 0 stays 0.

    ``bf16`` says whether it is computed in bfloat16, which is enough for it.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if bf16:
        x = x.bfloat16()
    a, b, c = ITERATION
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """m <- momentum * m + (1 - momentum) * g;  w <- w - lr * (0.2 * sqrt(max(A,B)) * o + weight_decay * w), where o is
    the ``orthogonal`` of momentum * m + (1 - momentum) * g (Nesterov), of shape (A,B): filters with all that one sees.

    What is no matrix, or one row or column, takes Adam without decay, ``momentum`` being its first beta. Matrices of
    one shape are taken together: a GPU spends longer on starting so many small products than on computing them.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, bf16: bool = False
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss is returned
        """One step; without synchronisation with the device. The rate may be a tensor there."""
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                    if not _is_matrix(weight):
                        count = torch.zeros((), device=weight.device)
                        self.state[weight].update(squares=torch.zeros_like(weight), steps=count)
            self._turn([weight for weight in weights if _is_matrix(weight)], group)
            self._adam([weight for weight in weights if not _is_matrix(weight)], group)

    def _turn(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """The step of matrices."""
        alike, momentum = defaultdict(list), group["momentum"]
        for weight in weights:
            alike[len(weight), weight.numel() // len(weight)].append(weight)
        for shape, same in alike.items():
            gradients, momenta = (
                [cast(Tensor, each.grad) for each in same],
                [self.state[each]["momentum"] for each in same],
            )
            torch._foreach_lerp_(momenta, gradients, 1 - momentum)
            ahead = [each.flatten(1) for each in torch._foreach_lerp(gradients, momenta, momentum)]
            rate = group["lr"]
            if not isinstance(rate, Tensor):  # made there: a copy from the host would wait
                rate = torch.full((), rate, dtype=ahead[0].dtype, device=ahead[0].device)
            for weight, turned in zip(same, orthogonal(torch.stack(ahead), self.bf16), strict=True):
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcmul_(turned.view_as(weight), rate, value=-ADAMS * max(shape) ** 0.5)

    def _adam(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """The step of all else."""
        momenta, squares, steps = (
            [self.state[each][name] for each in weights] for name in ("momentum", "squares", "steps")
        )
        gradients = [cast(Tensor, each.grad) for each in weights]
        adam(
            weights, gradients, momenta, squares, [], steps, fused=True, amsgrad=False, beta1=group["momentum"],
            beta2=SQUARES, lr=group["lr"], weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def _is_matrix(weight: Tensor) -> bool:
    """Two dimensions or more, filters being rows, and neither one row nor one column."""
    return weight.ndim > 1 and 1 < len(weight) < weight.numel()
