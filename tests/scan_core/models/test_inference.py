"""Features and probabilities of plain views, in eval mode, whatever the batch."""

import copy
from types import SimpleNamespace

import pytest
import torch

from scan_core.compute.device import Compute
from scan_core.models import inference
from scan_core.models.inference import batch_size, cache_features, embed, forward_all, log_probabilities
from scan_core.models.networks import Model, Projector, build_backbone
from tests.tiny import BACKBONE, CPU, assert_equal, cluster_model, images

FP32 = Compute(CPU, "fp32")


def projector_model():
    torch.manual_seed(0)
    return Model(build_backbone(BACKBONE, 3), Projector(16, 5))


def test_all_rows_come_out_in_their_order():
    data, model, rows = images(20), cluster_model(heads=2).eval(), torch.tensor([3, 19, 0, 3, 7])
    features, outputs = forward_all(model, data, rows, FP32)
    with torch.no_grad():
        torch.testing.assert_close((features, outputs), model(data.plain_view(rows)))
    assert (features.shape, outputs.shape) == ((5, 16), (2, 5, 3))


def test_features_that_are_not_wanted_are_not_kept():
    data, model, rows = images(20), cluster_model(heads=2), torch.arange(20)
    wanted = forward_all(model, data, rows, FP32)[1]
    features, outputs = forward_all(model, data, rows, FP32, keep_features=False)
    assert features.shape == (0, 16) and torch.equal(outputs, wanted)


def test_features_that_are_not_wanted_take_no_memory(monkeypatch):
    """No part of a batch's features either, which would keep the whole of them."""
    joined, cat = [], torch.cat

    def spy(tensors, *args, **named):
        joined.append(list(tensors))
        return cat(tensors, *args, **named)

    monkeypatch.setattr(inference, "BATCH", 5)
    monkeypatch.setattr(torch, "cat", spy)
    forward_all(cluster_model(), images(20), torch.arange(20), FP32, keep_features=False)
    (features,) = [parts for parts in joined if parts[0].shape == (0, 16)]
    assert [part.untyped_storage().nbytes() for part in features] == [0] * 4


@pytest.mark.parametrize("model", [cluster_model(heads=2), projector_model()], ids=["cluster", "projector"])
@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_the_batch_changes_nothing(monkeypatch, model, batch):
    data, rows = images(20), torch.arange(20)
    whole = forward_all(model, data, rows, FP32)
    monkeypatch.setattr(inference, "BATCH", batch)
    torch.testing.assert_close(forward_all(model, data, rows, FP32), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_inference_is_in_eval_mode_and_leaves_the_mode_and_the_network(training):
    model, data = cluster_model(), images(20)
    model.train(training)
    before, seen = copy.deepcopy(model.state_dict()), []
    model.backbone.register_forward_hook(lambda module, given, output: seen.append(module.training))
    features, _ = forward_all(model, data, torch.arange(20), FP32)
    assert seen == [False]
    assert model.training is model.backbone.training is training
    assert not features.requires_grad
    assert_equal(model.state_dict(), before)


def test_cached_features_stand_for_images_and_backbone():
    model, data = cluster_model(heads=2), images(20)
    splits = [torch.arange(12).flip(0), torch.arange(12, 20)]
    wanted = [log_probabilities(model, data, rows, FP32) for rows in splits]
    called = []
    model.backbone.register_forward_hook(lambda *_: called.append(1))
    table, cached, positions = cache_features(model, data, splits, FP32)
    assert len(called) == 2 and table.state_dict() == {}
    known = Model(table, model.head, frozen=True)
    for rows, expected in zip(positions, wanted, strict=True):
        torch.testing.assert_close(log_probabilities(known, cached, rows, FP32), expected)
        assert torch.equal(cached.plain_view(rows), rows)
    assert len(called) == 2


def test_a_frozen_backbone_is_in_eval_mode_afterwards_too():
    model = cluster_model()
    model = Model(model.backbone, model.head, frozen=True).train()
    forward_all(model, images(20), torch.arange(20), FP32)
    assert model.training
    assert not model.backbone.training


@pytest.mark.parametrize("projected", [False, True])
def test_embeddings_are_unit_rows_of_the_features_asked_for(projected):
    data, model, rows = images(20), projector_model(), torch.arange(20)
    embeddings = embed(model, data, rows, projected, FP32)
    source = forward_all(model, data, rows, FP32)[int(projected)]
    assert embeddings.shape == (20, 5 if projected else 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(embeddings, source / source.norm(dim=1, keepdim=True))


def test_log_probabilities_are_those_of_each_head():
    data, model, rows = images(20), cluster_model(heads=2), torch.arange(20)
    log_p = log_probabilities(model, data, rows, FP32)
    logits = forward_all(model, data, rows, FP32)[1]
    assert log_p.shape == (2, 20, 3)
    torch.testing.assert_close(log_p.exp().sum(dim=2), torch.ones(2, 20))
    torch.testing.assert_close(log_p, (logits.exp() / logits.exp().sum(dim=2, keepdim=True)).log())


def test_under_bf16_features_probabilities_and_confidences_are_float32(bf16):
    data, model, rows = images(20), cluster_model(heads=2), torch.arange(20)
    for compute in (bf16, Compute(CPU, "bf16")):
        features, logits = forward_all(model, data, rows, compute)
        log_p = log_probabilities(model, data, rows, compute)
        confidences = log_p.amax(dim=2).exp()
        assert {each.dtype for each in (features, logits, log_p, confidences)} == {torch.float32}
        assert embed(model, data, rows, False, compute).dtype == torch.float32
        # The head as float32 computes it from the same features, though the backbone ran in bfloat16.
        torch.testing.assert_close(logits, model.head(features), rtol=1e-6, atol=1e-6)
        assert not torch.equal(features, forward_all(model, data, rows, FP32)[0])
        torch.testing.assert_close(confidences.log(), model.head(features).log_softmax(-1).amax(-1))


@pytest.mark.parametrize(("device", "side", "batch"), [("cpu", 8, 512), ("cuda", 32, 2048), ("cuda", 224, 512)])
def test_small_images_are_taken_more_at_a_time_on_a_gpu(device, side, batch):
    assert batch_size(SimpleNamespace(device=torch.device(device), side=side)) == batch
