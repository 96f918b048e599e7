"""CUDA graphs: what a GPU is to do many times over, recorded once, and from then on started by one call of the host.

A step of ResNet-18 starts hundreds of kernels, which can take the host longer than the GPU needs to run them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scan_core.compute.distributed import world_size

WARMUP_CALLS = (
    3  # calls before the recording: in them is compiled, kernels are chosen, an optimiser's state comes to be
)

Work = Callable[..., Sequence[Tensor]]


def cuda_graphed(work: Work, device: torch.device) -> Work:
    """``work``, on a GPU of a single process replayed from its fourth call on; elsewhere as it is.

    It takes tensors on ``device``, of the same shapes each time, and gives back tensors that its next call overwrites.
    Whatever else it reads or changes there, weights or sums, must stay where it is; what is no tensor is as it was
    when recorded. It may neither wait for the device nor bring anything from the host.
    """
    return CudaGraphed(work) if device.type == "cuda" and world_size() == 1 else work


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """Makes ``optimizer`` one whose steps can be recorded, and gives its rate: a number would stay as it was then."""
    rate = torch.zeros((), device=device)
    for group in optimizer.param_groups:
        group["lr"] = rate.fill_(group["lr"])
        if "capturable" in group:  # Adam's word for it, and in a state that was saved on a CPU it is not
            group["capturable"] = True
    return rate


class CudaGraphed:
    """See ``cuda_graphed``."""

    def __init__(self, work: Work) -> None:
        self.work, self.calls = work, 0
        self.graph: Any = None
        # Calls before the recording are on its stream, too: a gradient's sum keeps to the one where it was first made.
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch declares no types for it

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self.calls < WARMUP_CALLS:
            self.calls += 1
            return self._beside(*inputs)
        if self.graph is None:
            self.inputs = [each.clone() for each in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):  # computes nothing yet
                self.outputs = self.work(*self.inputs)
            self.graph = graph
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.outputs

    def _beside(self, *inputs: Tensor) -> Sequence[Tensor]:
        """On the stream of the recording, after what has been started on the usual one, and before what will be."""
        usual = torch.cuda.current_stream()
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # An optimiser that can be recorded warns where it is not.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            outputs = self.work(*inputs)
        usual.wait_stream(self.stream)
        return outputs
