"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps along an orthogonalized momentum, so that every
direction of a weight matrix is updated.

The steps are as long as Adam's (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2), so one
learning rate serves both: parameters that are not matrices are updated by Adam. ``torch.optim.Muon`` takes matrices
alone, and timm's computes in bfloat16 throughout: neither gives the same bytes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adam import adam

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's polynomial: steep at 0, within 0.7 and 1.2 after five steps
NS_STEPS = 5
ADAM_RMS = 0.2  # root mean square of an Adam step, in learning rates
BETA2 = 0.999  # Adam's


def newton_schulz(matrices: Tensor, bf16: bool) -> Tensor:
    """(n,A,B) to approximately the nearest matrices whose singular values are all 1; a zero matrix stays zero.

    ``bf16`` computes in bfloat16, which is precise enough.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if bf16:
        x = x.bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """m <- momentum * m + (1 - momentum) * g;  w <- w - lr * (0.2 * sqrt(max(A,B)) * o + weight_decay * w), where o is
    ``newton_schulz`` of momentum * m + (1 - momentum) * g (Nesterov), of shape (A,B); A is the number of filters.

    Parameters that are not matrices, or that have a single row or column, are updated by Adam without decay;
    ``momentum`` is its first beta. Matrices of one shape are stacked, because launching many small products takes a GPU
    longer than computing them.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, bf16: bool = False
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss is returned
        """One step, without a wait for the device. The learning rate may be a tensor there."""
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                    if not _is_matrix(weight):
                        count = torch.zeros((), device=weight.device)
                        self.state[weight].update(squares=torch.zeros_like(weight), steps=count)
            self._muon_update([weight for weight in weights if _is_matrix(weight)], group)
            self._adam_update([weight for weight in weights if not _is_matrix(weight)], group)

    def _muon_update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Updates matrices."""
        by_shape, momentum = defaultdict(list), group["momentum"]
        for weight in weights:
            by_shape[len(weight), weight.numel() // len(weight)].append(weight)
        for shape, same in by_shape.items():
            gradients, momenta = (
                [cast(Tensor, each.grad) for each in same],
                [self.state[each]["momentum"] for each in same],
            )
            torch._foreach_lerp_(momenta, gradients, 1 - momentum)
            ahead = [each.flatten(1) for each in torch._foreach_lerp(gradients, momenta, momentum)]
            rate = group["lr"]
            if not isinstance(rate, Tensor):  # made on the device, because a copy from the host would wait
                rate = torch.full((), rate, dtype=ahead[0].dtype, device=ahead[0].device)
            for weight, update in zip(same, newton_schulz(torch.stack(ahead), self.bf16), strict=True):
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcmul_(update.view_as(weight), rate, value=-ADAM_RMS * max(shape) ** 0.5)

    def _adam_update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Updates all other parameters."""
        momenta, squares, steps = (
            [self.state[each][name] for each in weights] for name in ("momentum", "squares", "steps")
        )
        gradients = [cast(Tensor, each.grad) for each in weights]
        adam(
            weights, gradients, momenta, squares, [], steps, fused=True, amsgrad=False, beta1=group["momentum"],
            beta2=BETA2, lr=group["lr"], weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def _is_matrix(weight: Tensor) -> bool:
    """True if the parameter has two dimensions or more, and neither a single row nor a single column."""
    return weight.ndim > 1 and 1 < len(weight) < weight.numel()
