"""The clustering loops with their networks compiled, as on a GPU: they run, and compute what they did."""

import pytest
import torch

from scan_core.clustering import scan, selflabel
from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.settings import NoAugmentation
from scan_core.training.step import Step
from tests.tiny import (
    TRAIN,
    VAL,
    Reads,
    as_on_a_gpu,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    selflabel_settings,
)

SLOW = optimizer(lr=1e-3)


def cluster(fabric, steps=False, **changes):
    settings = cluster_settings(**{"optimizer": SLOW, **changes})
    state = start_scan(settings, cluster_model(), 0, fabric)
    loop = train_scan(state, images(), TRAIN, neighbors(32, 5), VAL, neighbors(16, 4), settings, fabric)
    return state, loop if steps else epochs_of(loop)


def label(fabric, steps=False, **changes):
    settings = selflabel_settings(**{"optimizer": SLOW, **changes})
    state = start_selflabel(settings, cluster_model(), 0, fabric)
    loop = train_selflabel(state, images(), TRAIN, VAL, settings, fabric)
    return state, loop if steps else epochs_of(loop)


@pytest.mark.parametrize(
    ("train", "changes", "reads"),
    [
        (cluster, {}, 0),
        (cluster, {"train": "head"}, 0),
        (cluster, {"train": "head", "augmentation": NoAugmentation(kind="none")}, 0),
        (label, {}, 1),  # whether an image is confident: a step without one would still decay the weights
        (label, {"train": "head"}, 1),
        (label, {"ema": 0.9}, 1),
    ],
)
def test_a_step_reads_no_more_back_from_the_device_than_it_must(monkeypatch, fp32, train, changes, reads):
    """Views aside, which are drawn on the host. An optimiser that keeps no count of its steps there."""
    views = torch.rand(32, 3, 8, 8)
    for module in (scan, selflabel):
        monkeypatch.setattr(module, "random_view", lambda data, rows, *others: views[: len(rows)])
    _, loop = train(fp32, steps=True, optimizer=optimizer(name="sgd"), **changes)
    next(loop)  # before it lies what is computed once
    with Reads() as seen:
        assert isinstance(next(loop), Step)
    assert len(seen.seen) == reads, seen.seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (cluster, {}),
        (cluster, {"train": "head"}),
        (cluster, {"train": "head", "augmentation": NoAugmentation(kind="none")}),
        (label, {}),
        (label, {"train": "head"}),
        (label, {"ema": 0.9}),
    ],
)
def test_a_loop_compiles_whole_and_computes_the_same(monkeypatch, request, precision, train, changes):
    """In bf16 with the autocast around what is compiled, as training on a GPU has it."""
    fabric = request.getfixturevalue(precision)
    within = {"fp32": (1e-3, 1e-2, 1e-3), "bf16": (3e-2, 5e-2, 1e-2)}[precision]

    eager, wanted = train(fabric, **changes)
    made = as_on_a_gpu(monkeypatch, pays=8)  # two epochs of four steps
    state, found = train(fabric, **changes)
    assert made == [state.module.backbone]
    compared = [name for name in wanted[0] if precision == "fp32" or "loss" in name]  # rounding moves counts
    for one, other in zip(found, wanted, strict=True):
        one, other = ({name: record[name] for name in compared} for record in (one, other))
        assert one == pytest.approx(other, rel=within[0], abs=within[0] / 10)
    for (name, value), other in zip(state.module.state_dict().items(), eager.module.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=within[1], atol=within[2], msg=name)
