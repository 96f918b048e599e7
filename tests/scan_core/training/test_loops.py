"""What every training loop keeps to, over the table of them: resumes after any step, precision, errors, the device."""

import copy
import functools

import pytest
import torch
from torch.utils._pytree import tree_map_only

from scan_core.clustering import scan, selflabel
from scan_core.errors import ScanError
from scan_core.pretext import byol, instance_discrimination, moco, rotation, simclr
from scan_core.training.state import Epoch, Step
from tests.tiny import (
    LOOPS,
    PRETEXTS,
    Reads,
    as_on_a_gpu,
    assert_same_state,
    epochs_of,
    optimizer,
    run_loop,
    start_loop,
    through_a_file,
)

each_loop = pytest.mark.parametrize("name", LOOPS)
LOSSES = {  # of each loop's module, by the first word of its name
    "simclr": (simclr, "nt_xent"),
    "moco": (moco, "info_nce"),
    "instance_discrimination": (instance_discrimination, "memory_bank_nce"),
    "rotation": (rotation.F, "cross_entropy"),
    "byol": (byol, "byol_loss"),
    "scan": (scan, "scan_loss"),
    "selflabel": (selflabel, "confident_cross_entropy"),
}
STEPS = 4  # per epoch


def varying(optimizer_name="adam"):
    """Settings of two epochs whose rate is another at each step."""
    return {"epochs": 2, "optimizer": optimizer(name=optimizer_name, lr=1e-3, schedule="cosine", warmup_epochs=1)}


@functools.cache
def whole_run(name, fabric, optimizer_name="adam"):
    """The state and the epochs of a loop run from its start to its end."""
    state, settings = start_loop(name, fabric, **varying(optimizer_name))
    return state, epochs_of(run_loop(name, state, settings, fabric))


def test_the_table_of_losses_is_complete():
    assert {name.split()[0] for name in LOOPS} == set(LOSSES)


@each_loop
def test_a_loop_yields_its_steps_and_then_the_epoch(fp32, name):
    done = list(run_loop(name, *start_loop(name, fp32, epochs=1), fp32))
    assert [type(each) for each in done] == [Step] * STEPS + [Epoch]
    views = {"instance_discrimination": 1, "rotation": 4}.get(name, 2)
    assert [each.images for each in done[:STEPS]] == [8 * views] * STEPS
    assert done[STEPS].number == 1
    assert done[STEPS].values["lr"] == pytest.approx(1e-2)


@each_loop
def test_all_trains_but_a_frozen_backbone_with_its_buffers(fp32, name):
    """And so does the average."""
    state, settings = start_loop(name, fp32, **({"ema": 0.9} if name.startswith("selflabel") else {}))
    before, frozen = copy.deepcopy(state.module.state_dict()), getattr(settings, "train", "all") == "head"
    list(run_loop(name, state, settings, fp32))
    for network in filter(None, (state.module, getattr(state, "ema", None))):
        kept = {key for key, value in network.state_dict().items() if torch.equal(value, before[key])}
        assert kept == {key for key in before if frozen and key.startswith("backbone")}


@pytest.mark.parametrize(
    ("name", "optimizer_name", "records"),
    # After the first step, at the end of an epoch, in the last one.
    [(name, "adam", records) for name in LOOPS for records in (1, STEPS + 1, STEPS + 3)]
    + [(name, optimizer_name, 3) for name in ("moco", "scan") for optimizer_name in ("sgd", "lars", "muon")],
)
def test_a_run_that_is_cut_after_any_step_ends_as_if_it_had_not_been(fp32, name, optimizer_name, records):
    whole, wanted = whole_run(name, fp32, optimizer_name)
    cut, settings = start_loop(name, fp32, **varying(optimizer_name))
    loop = run_loop(name, cut, settings, fp32)
    for _ in range(records):
        next(loop)
    resumed, _ = start_loop(name, fp32, seed=7, **varying(optimizer_name))
    resumed.load_state_dict(through_a_file(cut))
    assert (resumed.epoch, resumed.step) == divmod(records, STEPS + 1)
    assert epochs_of(run_loop(name, resumed, settings, fp32)) == wanted[records // (STEPS + 1) :]
    assert_same_state(resumed, whole)


@each_loop
def test_a_finished_run_does_nothing_more(fp32, name):
    state, settings = start_loop(name, fp32, epochs=1)
    list(run_loop(name, state, settings, fp32))
    again, _ = start_loop(name, fp32, epochs=1)
    again.load_state_dict(through_a_file(state))
    assert list(run_loop(name, again, settings, fp32)) == []
    assert_same_state(again, state)


@each_loop
def test_training_is_the_seed_s_whatever_was_drawn_before(fp32, name):
    _, first = whole_run(name, fp32)
    torch.rand(100)
    again, other = (epochs_of(run_loop(name, *start_loop(name, fp32, seed, **varying()), fp32)) for seed in (0, 1))
    assert again == first != other


@each_loop
def test_losses_are_computed_in_float32_outside_autocast_under_bf16(monkeypatch, bf16, name):
    module, function = LOSSES[name.split()[0]]
    original, seen = getattr(module, function), []

    def spy(first, second, *others):
        result = original(first, second, *others)
        total = result[0] if isinstance(result, tuple) else result
        assert (total.dtype, torch.is_autocast_enabled("cpu")) == (torch.float32, False)
        seen.append({first.dtype, second.dtype} <= {torch.float32, torch.int64})
        return result

    monkeypatch.setattr(module, function, spy)
    (values,) = epochs_of(run_loop(name, *start_loop(name, bf16, epochs=1), bf16))
    assert seen == [True] * STEPS * (2 if name == "byol" else 1)
    assert all(isinstance(value, (int, float)) for value in values.values())


@each_loop
def test_a_batch_larger_than_the_data_is_an_error(fp32, name):
    stage = "pretext" if name in PRETEXTS else {"scan": "cluster"}.get(name.split()[0], "selflabel")
    values = {"batch_size": 33, **({"key_groups": 1} if name == "moco" else {})}
    with pytest.raises(ScanError, match=rf"{stage}\.batch_size is 33, but there are 32 images"):
        next(run_loop(name, *start_loop(name, fp32, **values), fp32))


@pytest.mark.parametrize("optimizer_name", ["adam", "sgd"])
@each_loop
def test_a_diverging_run_is_an_error_that_names_the_epoch(fp32, name, optimizer_name):
    """Weights beyond float32 after the first step; the epoch's mean loss is not finite."""
    diverging = optimizer(name=optimizer_name, lr=1e36)
    with pytest.raises(ScanError, match="in epoch 1: training has diverged"):
        list(run_loop(name, *start_loop(name, fp32, optimizer=diverging), fp32))


@each_loop
@pytest.mark.slow
def test_a_loop_compiles_whole_and_computes_the_same(monkeypatch, fp32, name):
    values = {"epochs": 2, "optimizer": optimizer(lr=1e-3)}
    eager, settings = start_loop(name, fp32, **values)
    wanted = epochs_of(run_loop(name, eager, settings, fp32))
    compiled = as_on_a_gpu(monkeypatch, pays=2 * STEPS)
    state, _ = start_loop(name, fp32, **values)
    found = epochs_of(run_loop(name, state, settings, fp32))
    assert compiled and all(hasattr(module, "parameters") for module in compiled)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    for (key, value), other in zip(state.module.state_dict().items(), eager.module.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.parametrize("optimizer_name", ["sgd", "lars", "muon"])  # Adam counts its steps on the host
@each_loop
def test_a_step_waits_for_the_device_no_more_than_it_must(monkeypatch, fp32, name, optimizer_name):
    """Views aside, which are drawn on the host."""
    module, _ = LOSSES[name.split()[0]]
    module = rotation if name == "rotation" else module
    if name != "scan of cached features":
        views = torch.rand(32, 3, 8, 8)
        monkeypatch.setattr(module, "random_view", lambda images, rows, *others: views[: len(rows)].clone())
    loop = run_loop(name, *start_loop(name, fp32, optimizer=optimizer(name=optimizer_name)), fp32)
    next(loop)  # what is computed once comes before it
    with Reads() as reads:
        assert isinstance(next(loop), Step)
    # Self-labeling reads whether an image is confident: a step without one would still decay the weights.
    assert len(reads.seen) == name.startswith("selflabel"), reads.seen


class Elsewhere(torch.Tensor):
    """A tensor on another device than the network's, as a resume reads it: it must be brought there before any use."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.to:
            raise RuntimeError(f"{func} on tensors of two devices")
        with torch._C.DisableTorchFunctionSubclass():
            return args[0].to(*args[1:], **(kwargs or {})).as_subclass(torch.Tensor)


@each_loop
def test_tensors_that_a_resume_reads_to_the_host_are_brought_to_the_device(fp32, name):
    state, settings = start_loop(name, fp32)
    loop = run_loop(name, state, settings, fp32)
    next(loop)
    saved = through_a_file(state)
    for key in saved.keys() & {"sums", "queue", "memory_bank", "log_z"}:
        saved[key] = tree_map_only(torch.Tensor, lambda tensor: tensor.as_subclass(Elsewhere), saved[key])
    resumed, _ = start_loop(name, fp32, seed=7)
    resumed.load_state_dict(saved)
    list(run_loop(name, resumed, settings, fp32))
