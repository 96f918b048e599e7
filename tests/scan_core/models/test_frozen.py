"""Frozen networks: the engine of the CPU against torch, and the whole model against its steps."""

import numpy as np
import pytest
import torch

from scan_core.models.files import FrozenSpace, Preprocessing, load_frozen, save_backbone
from scan_core.models.frozen import FrozenNetwork
from scan_core.models.networks import architecture, build_backbone
from tests.tiny import BACKBONE, CPU, backbone_settings, pixels, refused

EXPECTED = Preprocessing(16, (0.2, 0.4, 0.6), (0.3, 0.2, 0.1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "a.safetensors", BACKBONE)


def saved(path, settings):
    torch.manual_seed(3)
    network = build_backbone(settings, 3)
    for module in network.modules():  # so that eval mode differs from training mode
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    save_backbone(path, network.state_dict(), {"network": architecture(settings)}, settings, EXPECTED)
    return path


def by_torch(path, batch):
    """(B,3,side,side) uint8 to features, in torch's float32."""
    network, expected = load_frozen(path)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (expected.mean, expected.std))
    return network((batch.float() / 255 - mean) / std).numpy()


def batch(count=5, channels=3, side=16):
    return torch.from_numpy(pixels(count, channels, size=side)).permute(0, 3, 1, 2)


def test_features_are_torchs_float32_ones_whatever_else_is_in_the_batch(weights):
    network = FrozenNetwork(weights, CPU)
    found = network(batch())
    np.testing.assert_allclose(found, by_torch(weights, batch()), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32 and network.described("ab") == FrozenSpace("ab", 16, False)
    for count in (1, 3):
        assert np.array_equal(network(batch()[:count]), found[:count])
    assert np.array_equal(network(batch()), found), "the same bytes again"


def test_nothing_is_reported_over_the_network_and_nothing_is_warned_of(weights, monkeypatch, caplog):
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.tools.ovc import telemetry_utils

    reported = []
    monkeypatch.setattr(telemetry_utils.tm, "Telemetry", lambda **_: reported.append(1))
    monkeypatch.setattr(TorchFXPythonDecoder, "_decomp_table", None)  # its first use warns
    FrozenNetwork(weights, CPU)
    assert reported == [] and [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_another_side_a_mirror_and_gray_images(weights):
    np.testing.assert_allclose(
        FrozenNetwork(weights, CPU, side=24)(batch(side=24)), by_torch(weights, batch(side=24)), rtol=1e-4, atol=1e-5
    )
    both = (by_torch(weights, batch()) + by_torch(weights, batch().flip(3))) / 2
    np.testing.assert_allclose(FrozenNetwork(weights, CPU, mirror=True)(batch()), both, rtol=1e-4, atol=1e-5)
    gray = batch(channels=1)
    found = FrozenNetwork(weights, CPU)(gray)
    np.testing.assert_allclose(found, by_torch(weights, gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), [("test_vit", 32), ("vit_small_patch14_reg4_dinov2.lvd142m", 28)])
def test_a_transformer_sees_images_of_another_size_than_it_was_trained_on(tmp_path, model, side):
    path, settings = tmp_path / "a.safetensors", backbone_settings(name="timm", width=64, model=model)
    network, generator = build_backbone(settings, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():  # new, DINOv2's layers add next to nothing
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    save_backbone(path, network.state_dict(), {"network": architecture(settings)}, settings, EXPECTED)
    found = FrozenNetwork(path, CPU, side=side)(batch(side=side))
    np.testing.assert_allclose(found, by_torch(path, batch(side=side)), rtol=1e-3, atol=1e-4)
    assert found.std(axis=0).mean() > 1e-2, "features that are all the same would prove nothing"


@pytest.mark.slow
def test_a_network_that_does_not_take_the_side_is_named(tmp_path):
    path = saved(tmp_path / "a.safetensors", backbone_settings(name="timm", width=64, model="test_vit"))
    refused(lambda: FrozenNetwork(path, CPU, side=17), "images are 17x17", "patches")


def test_a_file_that_is_missing_or_another_is_refused(tmp_path, weights):
    refused(lambda: FrozenNetwork(tmp_path / "none.safetensors", CPU), "none.safetensors is missing", "import it again")
    (tmp_path / "text.safetensors").write_text("no tensors")
    refused(lambda: FrozenNetwork(tmp_path / "text.safetensors", CPU), "text.safetensors", "import it again")
