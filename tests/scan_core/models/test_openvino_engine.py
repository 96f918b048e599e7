"""OpenVINO's form of a network on disk: the same features, found again, never believed if it is damaged."""

import numpy as np
import pytest
import torch

from scan_core.models import openvino_engine
from scan_core.models.frozen import FrozenNetwork
from scan_core.models.openvino_engine import FILES, engine, key_of
from tests.tiny import CPU, pixels

IMAGES = torch.from_numpy(pixels(5, 3, size=16)).permute(0, 3, 1, 2)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.first(images).relu().mean((2, 3))


@pytest.fixture
def made(monkeypatch):
    """How often a network was converted."""
    calls, original = [], openvino_engine.convert
    monkeypatch.setattr(openvino_engine, "convert", lambda *given: calls.append(1) or original(*given))
    return calls


def features(kept):
    return engine(Network, 16, kept)(IMAGES.float())


def test_a_network_is_converted_once_and_gives_the_same_features_from_disk(tmp_path, made):
    first = features(tmp_path / "a" / "b")
    assert np.array_equal(features(tmp_path / "a" / "b"), first) and len(made) == 1
    assert np.array_equal(features(None), first) and len(made) == 2
    np.testing.assert_allclose(first, Network()(IMAGES.float()).detach().numpy(), rtol=1e-5)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("name", [*FILES, "sha256"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_form_is_made_again(tmp_path, made, name, damage):
    first, file = features(tmp_path / "a"), tmp_path / "a" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(bytes(data[: len(data) // 2] if damage == "cut" else data))
    assert np.array_equal(features(tmp_path / "a"), first) and len(made) == 2
    features(tmp_path / "a")
    assert len(made) == 2


def test_a_disk_that_takes_nothing_costs_no_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_engine, "mkdtemp", full)
    assert features(tmp_path / "a").shape == (5, 4) and not (tmp_path / "a").exists()


def test_weights_and_side_make_another_key(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    keys = {key_of(tmp_path / "a", 16), key_of(tmp_path / "a", 17), key_of(tmp_path / "b", 16)}
    assert len(keys) == 3 and key_of(tmp_path / "a", 16) in keys


def test_a_frozen_network_keeps_its_form_where_it_is_told(tmp_path, made):
    from tests.scan_core.models.test_frozen import saved
    from tests.tiny import BACKBONE

    weights = saved(tmp_path / "a.safetensors", BACKBONE)
    found = [FrozenNetwork(weights, CPU, kept=tmp_path / "kept")(IMAGES) for _ in range(2)]
    assert np.array_equal(*found) and len(made) == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [key_of(weights, 16)]
