"""What a GPU is to do is recorded once and replayed: with a stand-in for CUDA, whose graphs run their work again."""

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from scan_core.compute import cuda_graphs
from scan_core.compute.cuda_graphs import WARMUP_CALLS, CudaGraphed, cuda_graphed, make_capturable
from scan_core.training.state import TrainingState
from scan_core.training.step import TrainStep, build_optimizer
from scan_core.views import per_image
from scan_core.views import strong as strong_views
from tests.tiny import (
    LOOPS,
    cluster_settings,
    epochs_of,
    optimizer,
    run_loop,
    start_loop,
    strong_augmentation,
    through_a_file,
)


class Stream:
    """Notes for whom it waits."""

    waits: ClassVar = []

    def wait_stream(self, other):
        self.waits.append((self, other))


class Seen(TorchDispatchMode):
    """What a graph would keep: each operation, its numbers, and where the tensors lie that are not made inside it."""

    def __init__(self):
        super().__init__()
        self.made, self.operations, self.alive = set(), [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, values = func.overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        assert name not in ("lift_fresh", "_local_scalar_dense", "nonzero"), f"{name}: from or to the host"
        given = {each.untyped_storage().data_ptr() for each in values if isinstance(each, torch.Tensor)}
        numbers = [each for each in values if isinstance(each, (bool, int, float))]
        self.operations.append((name, numbers, sorted(given - self.made)))
        found = func(*args, **(kwargs or {}))
        made = [each for each in tree_flatten(found)[0] if isinstance(each, torch.Tensor)]
        self.alive += made  # no other takes its place
        self.made |= {each.untyped_storage().data_ptr() for each in made} - given
        return found


@pytest.fixture
def cuda(monkeypatch):
    """Streams and graphs as ``CudaGraphed`` uses them: a ``CudaGraphed`` to use, what was done, the current stream.

    A replay does the work again and must find every number and place as they were. What is recorded is undone, as a
    GPU would not have done it.
    """
    usual, log, recorders = Stream(), [], []
    Stream.waits.clear()

    class Graph:
        def replay(self):
            log.append("replay")
            with Seen() as seen:
                outputs = self.recorder.fn(*self.recorder.inputs)
            assert seen.operations == self.operations
            for kept, new in zip(tree_leaves(self.recorder.outputs), tree_leaves(outputs), strict=True):
                kept.copy_(new)

    @contextmanager
    def graph(made, stream):
        log.append("record")
        (made.recorder,) = (each for each in recorders if each.stream is stream)
        before = [(each, each.clone()) for each in made.recorder.held()]
        with Seen() as seen:
            yield
        made.operations = seen.operations
        for each, value in before:
            each.data.copy_(value)

    @contextmanager
    def on(stream):
        log.append(stream)
        yield

    class Watched(CudaGraphed):
        def __init__(self, work, held=list):
            recorders.append(self)
            self.held = held
            super().__init__(work)

    for name, value in {
        "Stream": Stream, "current_stream": lambda: usual, "stream": on, "CUDAGraph": Graph, "graph": graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return Watched, log, usual


@pytest.mark.parametrize(
    ("device", "processes", "recorded"), [("cpu", 1, False), ("cuda", 1, True), ("cuda", 2, False)]
)
def test_work_is_recorded_on_a_gpu_by_a_single_process(monkeypatch, cuda, device, processes, recorded):
    monkeypatch.setattr(cuda_graphs, "world_size", lambda: processes)
    found = cuda_graphed(tuple, torch.device(device))
    assert isinstance(found, CudaGraphed) if recorded else found is tuple


def test_work_is_recorded_after_some_calls_and_then_replayed_on_what_it_is_given(cuda):
    watched, log, usual = cuda
    total, calls = torch.zeros(3), []

    def work(one, other):
        calls.append(None)
        total.add_(one)
        return (one + other, total.clone())

    run, wanted = watched(work, lambda: [total]), torch.zeros(3)
    for number in range(WARMUP_CALLS + 3):
        one, other = torch.full((3,), float(number)), torch.rand(3)
        found, summed = run(one, other)
        wanted += one
        torch.testing.assert_close(found, one + other)
        torch.testing.assert_close(summed, wanted)
    assert torch.equal(total, wanted)  # the recording itself has computed nothing
    assert log == [run.stream] * WARMUP_CALLS + ["record"] + ["replay"] * 3
    assert Stream.waits == [(run.stream, usual), (usual, run.stream)] * WARMUP_CALLS


def test_what_it_gives_is_overwritten_by_the_next_call_and_what_it_was_given_is_not(cuda):
    run = cuda[0](lambda value: (2 * value,))
    for _ in range(WARMUP_CALLS):
        run(torch.zeros(2))
    given = torch.ones(2)
    (first,) = run(given)
    (second,) = run(torch.full((2,), 5.0))
    assert first is second and second.tolist() == [10, 10] and given.tolist() == [1, 1]


def watched_training(monkeypatch, cuda, capture, held):
    """Lets loops capture their steps with the stand-in, or not at all."""
    watched = lambda fn, device: cuda[0](fn, held) if capture else fn  # noqa: E731
    for module in ("training.step", "clustering.selflabel"):
        monkeypatch.setattr(f"scan_core.{module}.cuda_graphed", watched)
    monkeypatch.setattr("scan_core.training.step.uses_cuda_graphs", lambda device: capture)


@pytest.mark.parametrize("name", ["sgd", "adam", "muon"])
def test_a_captured_step_follows_the_schedule_as_one_that_is_not(monkeypatch, fp32, cuda, name):
    """The rate is the step's, not the capture's; means are the epoch's, not those of one tensor, overwritten."""
    chosen = optimizer(name=name, lr=0.1, schedule="cosine", warmup_epochs=1)
    inputs = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0))

    def run(capture):
        torch.manual_seed(0)
        linear = torch.nn.Linear(6, 5)
        built = build_optimizer(chosen, linear, fp32)
        state = TrainingState(module=linear, optimizer=built, generator=torch.Generator().manual_seed(0))

        def held():
            values = [each for values in built.state.values() for each in values.values()]
            return [*linear.parameters(), *[each for each in values if isinstance(each, torch.Tensor)]]

        watched_training(monkeypatch, cuda, capture, held)
        settings = cluster_settings(epochs=3, optimizer=chosen)
        train = TrainStep("cluster", state, settings, fp32, 32)

        @train.graphed
        def step(seen):
            loss = train.model(seen).square().mean()
            train.backward_and_update(loss)
            return {"loss": loss, "largest": seen.max()}

        for epoch in train.epochs():
            for number, _ in enumerate(train.batches()):
                step(inputs[4 * epoch + number])
                train.end_step(8)
            train.end_epoch()
        return linear, state.history

    (plain, wanted), (replayed, found) = run(False), run(True)
    assert "replay" in cuda[1]
    assert found == [pytest.approx(each, rel=1e-5) for each in wanted]
    torch.testing.assert_close(replayed.state_dict(), plain.state_dict())


def test_an_optimizer_can_be_recorded_also_where_its_state_is_of_one_that_could_not():
    own = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=0.25, fused=True)
    rate = make_capturable(own, torch.device("cpu"))
    assert own.param_groups[0]["lr"] is rate and float(rate) == 0.25 and own.param_groups[0]["capturable"]
    own.load_state_dict(through_a_file(own))
    again = make_capturable(own, torch.device("cpu"))
    assert own.param_groups[0]["lr"] is again and again is not rate and float(again) == 0.25
    make_capturable(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.25), torch.device("cpu"))


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_whose_steps_are_captured_computes_the_same(monkeypatch, fp32, cuda, name):
    """Eight steps; SGD, so that all that a capture would change is weights, momentum and BatchNorm's statistics."""
    values = {"optimizer": optimizer(name="sgd", lr=1e-3, schedule="cosine")}

    def run(capture):
        state, settings = start_loop(name, fp32, **values)

        def held():
            momentum = [value["momentum_buffer"] for value in state.optimizer.state.values()]
            return [*state.module.parameters(), *state.module.buffers(), *momentum]

        watched_training(monkeypatch, cuda, capture, held)
        return state.module, epochs_of(run_loop(name, state, settings, fp32))

    (plain, wanted), (replayed, found) = run(False), run(True)
    assert cuda[1].count("replay") >= 5
    assert found == [pytest.approx(each, rel=1e-5) for each in wanted]
    torch.testing.assert_close(replayed.state_dict(), plain.state_dict())


def test_strong_views_are_recorded_once_for_a_shape(monkeypatch, cuda):
    """With what a GPU is given: no image chosen by an index, and all that was drawn in one tensor."""
    watched, log, _ = cuda
    monkeypatch.setattr(strong_views, "cuda_graphed", lambda work, device: watched(work))
    monkeypatch.setattr(per_image, "runs_compiled", lambda images: True)
    monkeypatch.setattr(per_image, "compiled_for_gpu", lambda function: function)
    strong_views._graphed_views.cache_clear()
    pixels = torch.randint(0, 256, (2 * WARMUP_CALLS, 8, 3, 8, 8), dtype=torch.uint8)
    settings, generators = strong_augmentation(), [torch.Generator().manual_seed(0) for _ in range(2)]
    found = []
    for each in pixels:
        views, cut = strong_views.apply(each, strong_views.draw(settings, 8, 8, 8, generators[0]))
        found.append((views, cut.clone()))
    monkeypatch.undo()
    assert log.count("record") == 1 and log.count("replay") == WARMUP_CALLS
    strong_views._graphed_views.cache_clear()
    for each, (views, cut) in zip(pixels, found, strict=True):  # views are no other call's by now
        wanted, where = strong_views.apply(each, strong_views.draw(settings, 8, 8, 8, generators[1]))
        torch.testing.assert_close(views, wanted, rtol=0, atol=1e-6)
        assert torch.equal(cut, where)
