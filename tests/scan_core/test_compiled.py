"""The clustering loops with their networks compiled whole, as on a GPU: they run, and compute what they did."""

import pytest
import torch

from scan_core import scan, selflabel
from scan_core.scan import start_scan, train_scan
from scan_core.selflabel import start_selflabel, train_selflabel
from scan_core.settings import NoAugmentation
from tests.scan_core.tiny import (
    TRAIN,
    VAL,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    selflabel_settings,
)

SLOW = optimizer(lr=1e-3)


def cluster(fabric, **changes):
    settings = cluster_settings(optimizer=SLOW, **changes)
    state = start_scan(settings, cluster_model(), 0, fabric)
    loop = train_scan(state, images(), TRAIN, neighbors(32, 5), VAL, neighbors(16, 4), settings, fabric)
    return state, epochs_of(loop)


def label(fabric, **changes):
    settings = selflabel_settings(optimizer=SLOW, **changes)
    state = start_selflabel(settings, cluster_model(), 0, fabric)
    return state, epochs_of(train_selflabel(state, images(), TRAIN, VAL, settings, fabric))


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
def test_a_loop_compiles_whole_and_computes_the_same(monkeypatch, fp32, train, changes):
    made = []

    def compile_whole(module, fabric):
        made.append(module)
        return torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)

    eager, wanted = train(fp32, **changes)
    torch.compiler.reset()
    for module in (scan, selflabel):
        monkeypatch.setattr(module, "compiled", compile_whole)
    state, found = train(fp32, **changes)
    assert made == [state.module]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    for (name, value), other in zip(state.module.state_dict().items(), eager.module.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-3, msg=name)
