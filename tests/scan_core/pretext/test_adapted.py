"""A network that adapts: its two halves, whom it trusts, what it learns and leaves, when it is kept."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.presets import read_preset
from scan_core.clustering.candidates import Candidates
from scan_core.errors import ScanError
from scan_core.images.store import ArrayImages
from scan_core.models.files import (
    adapted_from,
    load_frozen,
    load_preprocessing,
    save_adapted,
)
from scan_core.models.halves import LowerLayers, UpperLayers, check_network
from scan_core.models.networks import build_backbone
from scan_core.pretext.adapted import (
    SLACK,
    Proposed,
    choose_network,
    loop_of,
    neighbors_seen,
    propose_groups,
    start_adapted,
    store_views,
    train_adapted,
    trusted_images,
    upper_features,
)
from scan_core.pretext.settings import AdaptedPretext
from scan_core.training.state import Epoch
from tests.project import ROOT
from tests.tiny import CPU, backbone_settings, save_tinynet
from tests.tiny import TINYNET_SIDE as SIDE

IMAGES = 24


def settings(**values):
    preset = read_preset(ROOT / "presets" / "photos_adapted.yaml").pretext.model_dump(mode="json")
    groups = {**preset["groups"], "num_clusters": 3, "heads": 2, "neighbors": 4, "val_neighbors": 1, "steps": 20}
    few = {"side": SIDE, "dimensions": 8, "neighbors": 6, "steps": 6, "batch_size": 8, "views": 2}
    values = {**preset, **few, "groups": {**groups, "batch_size": 8}, **values}
    return AdaptedPretext.model_validate_json(json.dumps(values))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tinynet(tmp_path_factory.mktemp("weights") / "tinynet.safetensors")


@pytest.fixture(scope="module")
def images():
    """Three kinds of stripes, with noise."""
    rng = np.random.default_rng(0)
    wave = 128 + 100 * np.sign(np.sin(np.arange(SIDE) * np.array([[0.3], [0.8], [1.6]])))  # (3,SIDE)
    pixels = np.repeat(wave[np.arange(IMAGES) % 3, None, :, None], SIDE, axis=1) + rng.normal(
        0, 20, (IMAGES, SIDE, SIDE, 3)
    )
    return ArrayImages(CPU, [pixels.clip(0, 255).astype(np.uint8)], [0.5] * 3, [0.5] * 3)


@pytest.fixture
def started(weights, images, tmp_path, fp32):
    """Views, features, proposed groups and the state of a training that has not begun."""
    asked = settings()
    views = store_views(tmp_path / "views.npy", weights, images, torch.arange(IMAGES), asked, 0, lambda _: None)
    upper = UpperLayers(load_frozen(weights)[0])
    features = upper_features(upper, views, fp32)
    clusters = np.arange(IMAGES) % 3
    proposed = Proposed(Candidates(), clusters, np.ones(IMAGES), 3, True)
    return asked, views, proposed, start_adapted(upper, features, proposed, asked, 0, fp32)


def test_the_two_halves_are_the_network(weights):
    network, _ = load_frozen(weights)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(UpperLayers(network)(LowerLayers(network)(pixels)), network(pixels))


def test_another_network_is_refused_by_name():
    with pytest.raises(ScanError, match=r"pretext.weights are of ConvNet, which .* does not take; an EfficientNet"):
        check_network(build_backbone(backbone_settings(), 3))


def test_views_are_the_plain_image_and_others_that_are_made_once(weights, images, tmp_path, fp32):
    asked, file, done = settings(), tmp_path / "views.npy", []
    rows = torch.tensor([5, 1, 17])
    views = store_views(file, weights, images, rows, asked, 0, done.append)
    assert (views.dtype, views.shape[:2], done) == (np.dtype("float16"), (3, 3), [3])
    network, _ = load_frozen(weights)
    pixels = (images.squares(rows, SIDE).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        wanted = LowerLayers(network)(pixels)
        torch.testing.assert_close(torch.from_numpy(views[:, 0].astype(np.float32)), wanted, rtol=5e-3, atol=5e-3)
        plain = network(pixels)
    assert np.abs(views[:, 1] - views[:, 0]).max() > 0.1 and not np.array_equal(views[:, 1], views[:, 2])
    found = upper_features(UpperLayers(network), views, fp32)
    np.testing.assert_allclose(found, plain.numpy(), rtol=2e-2, atol=2e-2)
    store_views(file, weights, images, rows, asked, 1, done.append)
    assert done == [3], "made once"
    again = store_views(tmp_path / "again.npy", weights, images, rows, asked, 0, lambda _: None)
    other = store_views(tmp_path / "other.npy", weights, images, rows, asked, 1, lambda _: None)
    assert again.tobytes() == views.tobytes() and not np.array_equal(other[:, 1], views[:, 1])


def test_a_few_groups_are_found_with_votes_and_a_verdict(weights, images, tmp_path, fp32):
    views = store_views(tmp_path / "views.npy", weights, images, torch.arange(IMAGES), settings(), 0, lambda _: None)
    features, said = upper_features(UpperLayers(load_frozen(weights)[0]), views, fp32), []
    found = propose_groups(features, settings(), 0, said.append)
    assert (found.num_clusters, len(found.clusters), len(found.votes)) == (3, IMAGES, IMAGES)
    assert 0 <= found.votes.min() <= found.votes.max() <= 1 and said[0] == "k-means"
    auto = settings(groups={**settings().groups.model_dump(mode="json"), "num_clusters": "auto"})
    estimated = propose_groups(features, auto, 0, said.append)
    assert "number of groups" in said and estimated.clusters.max() < estimated.num_clusters
    assert propose_groups(features, auto, 0, said.append, 2).num_clusters == 2


@pytest.mark.parametrize(("share", "wanted"), [(0.5, [[1, 4], [2]]), (0.01, [[1], [2]]), (1.0, [[1, 4, 0, 5], [2, 3]])])
def test_trusted_are_those_of_each_group_on_which_most_methods_agree(share, wanted):
    clusters, votes = np.array([0, 0, 2, 2, 0, 0]), np.array([0.4, 0.9, 0.8, 0.1, 0.9, 0.2])
    found = trusted_images(Proposed(Candidates(), clusters, votes, 3, True), share)
    assert [rows.tolist() for rows in found] == wanted, "of those that are used"


@pytest.mark.parametrize(("count", "epochs", "batch"), [(6400, 5, 64), (64, 500, 64), (100_000, 1, 64), (10, 500, 10)])
def test_steps_are_those_of_the_settings_as_whole_epochs(count, epochs, batch):
    loop = loop_of(settings(steps=500, batch_size=64), count)
    assert (loop.epochs, loop.batch_size) == (epochs, batch)


def test_a_step_is_cross_entropy_of_trusted_views_and_of_sure_predictions(started, fp32):
    asked, views, proposed, state = started
    asked = settings(
        optimizer={**asked.optimizer.model_dump(), "name": "sgd", "lr": 0.1, "momentum": 0.0, "schedule": "constant"}
    )
    asked = asked.model_copy(update={"threshold": 0.5})
    state.optimizer = torch.optim.SGD(state.module.parameters(), lr=0.1)
    before, generator = copy.deepcopy(state.module), state.generator.clone_state()
    next(train_adapted(state, views, proposed, asked, fp32))

    batch = torch.randperm(IMAGES, generator=generator)[:8]
    trusted = trusted_images(proposed, asked.trusted)
    chosen = torch.randint(3, (8,), generator=generator).tolist()
    places = torch.rand(8, generator=generator).tolist()
    known = [int(trusted[c][int(p * len(trusted[c]))]) for c, p in zip(chosen, places, strict=True)]
    any_view = torch.randint(3, (8,), generator=generator).tolist()
    other_view = torch.randint(1, 3, (8,), generator=generator).tolist()

    def logits(rows, which):
        picked = [views[row, view] for row, view in zip(rows, which, strict=True)]
        return before(torch.from_numpy(np.stack(picked)).float())[1]

    with torch.no_grad():
        sure, guess = logits(batch.tolist(), [0] * 8).softmax(1).max(1)
    assert int((sure >= 0.5).sum()) > 0, "else nothing of it is tested"
    loss = F.cross_entropy(logits(known, any_view), torch.tensor(chosen))
    others = F.cross_entropy(logits(batch.tolist(), other_view), guess, reduction="none")
    (loss + (others * (sure >= 0.5)).sum() / 8).backward()
    for new, old in zip(state.module.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-4, atol=1e-5)


def test_only_the_upper_layers_change_and_batchnorm_keeps_its_statistics(started, weights, fp32):
    asked, views, proposed, state = started
    before = {key: value.clone() for key, value in state.module.state_dict().items()}
    records = [each for each in train_adapted(state, views, proposed, asked, fp32) if isinstance(each, Epoch)]
    assert len(records) == loop_of(asked, IMAGES).epochs == state.epoch
    assert {"loss", "confident", "effective_rank"} <= set(records[-1].values)
    after = state.module.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {name for name, _ in state.module.named_parameters()}


def test_the_groups_are_learned_and_a_stopped_training_ends_in_the_same_bytes(started, fp32):
    asked, views, proposed, state = started
    asked = asked.model_copy(update={"steps": 30, "trusted": 1.0})
    saved, other = None, copy.deepcopy(state.module)
    for count, _ in enumerate(train_adapted(state, views, proposed, asked, fp32), 1):
        if count == 10:
            saved = copy.deepcopy(state.state_dict())
    with torch.no_grad():
        features, logits = state.module(torch.from_numpy(views[:, 0].copy()).float())
    assert (logits.argmax(dim=1).numpy() == proposed.clusters).mean() > 0.9 and state.history[-1]["loss"] < 0.7
    resumed = start_adapted(other.backbone, np.asarray(features), proposed, asked, 0, fp32)
    resumed.load_state_dict(saved)
    for _ in train_adapted(resumed, views, proposed, asked, fp32):
        pass
    for one, two in zip(state.module.state_dict().values(), resumed.module.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_file_of_an_adapted_network_is_one_of_weights_and_says_whose(started, weights, tmp_path):
    network, _ = load_frozen(weights)
    with torch.no_grad():
        network.conv_head.weight.add_(1)
    path = tmp_path / "adapted.safetensors"
    save_adapted(path, weights, network, 48)
    loaded, _ = load_frozen(path)
    assert all(
        torch.equal(one, two)
        for one, two in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert load_preprocessing(path) == load_preprocessing(weights)
    sha256, side = adapted_from(path)
    assert (sha256, side) == (hashlib.sha256(weights.read_bytes()).hexdigest(), 48) and adapted_from(weights) is None


def test_the_network_is_kept_if_another_one_s_neighbors_are_as_often_in_one_group():
    nearest = np.array([[1, 2], [0, 2], [3, 0], [2, 1]])

    def found(*clusters):
        return Proposed(Candidates(), np.array(clusters), np.ones(4), 2, True)

    two, one = found(0, 0, 1, 1), found(1, 1, 0, 0)  # 4 of 8 pairs are in one group
    apart = found(0, 1, 0, 1)  # 3 of 8
    assert choose_network(two, one, nearest)[0] and choose_network(apart, two, nearest)[0]
    kept, why = choose_network(two, apart, nearest)
    assert not kept and why == "of neighbors for another network 37.5% are in one group, 50.0% before"


def test_what_is_a_little_worse_is_kept():
    nearest = np.arange(1000)[:, None] ^ 1
    for count, kept in ((int(500 * SLACK), True), (int(500 * SLACK) + 1, False)):
        before, after = np.zeros(1000, int), np.zeros(1000, int)
        after[: 2 * count : 2] = 1  # so many pairs are parted
        proposed = [Proposed(Candidates(), clusters, np.ones(1000), 2, True) for clusters in (before, after)]
        assert choose_network(*proposed, nearest)[0] is kept


def test_neighbors_are_those_of_the_judge_s_features(weights, images):
    nearest = neighbors_seen(weights, SIDE, images, torch.arange(IMAGES), 8)
    assert nearest.shape == (IMAGES, 10) and (nearest % 3 == np.arange(IMAGES)[:, None] % 3)[:, :3].mean() > 0.8


def test_groups_that_are_none_are_found_out():
    rows = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    assert not propose_groups(rows, settings(), 0, lambda _: None).found_any
    centers = np.eye(3, 12)[np.arange(60) % 3] * 20
    assert propose_groups((rows + centers).astype(np.float32), settings(), 0, lambda _: None).found_any
