"""CUDA graphs: the kernels of a step are captured once and then launched by a single call of the host.

A step of ResNet-18 launches hundreds of kernels, which can take the host longer than the GPU needs to run them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scan_core.compute.distributed import world_size

# Calls before the capture. They compile, choose kernels and create the optimizer's state: none of it can be captured.
WARMUP_CALLS = 3


def uses_cuda_graphs(device: torch.device) -> bool:
    """True for a GPU that a single process trains on."""
    return device.type == "cuda" and world_size() == 1


def cuda_graphed(fn: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """``fn``, which on a GPU of a single process is replayed as a CUDA graph from its fourth call on.

    ``fn`` takes tensors on ``device``, with the same shapes at each call; the tensors that it returns are overwritten
    by its next call. Tensors that it reads or changes besides, such as weights or sums, must keep their place in
    memory; numbers keep the value that they had during the capture. ``fn`` may neither wait for the device nor copy
    anything from the host.
    """
    return CudaGraphed(fn) if uses_cuda_graphs(device) else fn


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """Lets ``optimizer``'s steps be captured. Returns its learning rate as a tensor, which a replay reads anew."""
    lr = torch.zeros((), device=device)
    for group in optimizer.param_groups:
        group["lr"] = lr.fill_(group["lr"])
        if "capturable" in group:  # Adam has this flag, and a state that was saved on a CPU has it unset
            group["capturable"] = True
    return lr


class CudaGraphed:
    """See ``cuda_graphed``."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn, self.calls = fn, 0
        self.graph: Any = None
        # The warm-up runs on the capture's stream, because a gradient accumulates on the stream where it was created.
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch declares no types for it

    def __call__(self, *inputs: Tensor) -> Any:
        if self.calls < WARMUP_CALLS:
            self.calls += 1
            return self._on_side_stream(*inputs)
        if self.graph is None:
            self.inputs = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):  # a capture computes nothing
                self.outputs = self.fn(*self.inputs)
            self.graph = graph
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()
        return self.outputs

    def _on_side_stream(self, *inputs: Tensor) -> Any:
        """Runs ``fn`` on the capture's stream, in order with the work on the current stream."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # A capturable optimizer warns about each step that is not captured.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            outputs = self.fn(*inputs)
        current.wait_stream(self.stream)
        return outputs
