"""The SCAN loop: who is paired with whom, which head and epoch are kept, the validation loss."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from scan_core.clustering import scan
from scan_core.clustering.losses import scan_loss
from scan_core.clustering.scan import best_model, start_scan, train_scan, validation_loss
from scan_core.errors import ScanError
from scan_core.models.inference import log_probabilities
from scan_core.training.state import Epoch
from scan_core.views.random_view import random_view
from tests.tiny import (
    NO_AUGMENTATION,
    PLAIN,
    SGD,
    TRAIN,
    VAL,
    assert_descended,
    assert_equal,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    simclr_augmentation,
    spied,
)

MINED, VAL_MINED = neighbors(32, 5), neighbors(16, 4)
PRIOR = (0.6, 0.3, 0.1)
EVERY_PRIOR = pytest.mark.parametrize("prior", [None, PRIOR, PRIOR[::-1]], ids=["none", "falling", "rising"])


def start(settings, fabric, seed=0):
    return start_scan(settings, cluster_model(), seed, fabric)


def train(state, settings, fabric, mined=MINED, rows=TRAIN):
    return train_scan(state, images(), rows, mined, VAL, VAL_MINED, settings, fabric)


def validation_by_loops(log_p, mined, weight, prior):
    """Eq. 2 over all images of one head and all their neighbors; the entropy of the mean over all images.

    Or, with a ``prior``, the mean's divergence from it.
    """
    p = log_p.double().exp()
    pairs = [-math.log(float(p[i] @ p[j])) for i in range(len(p)) for j in mined[i]]
    mean = p.mean(dim=0)
    balance = sum(float(m) * math.log(float(m) / share) for m, share in zip(mean, prior or (1, 1, 1), strict=True))
    return sum(pairs) / len(pairs) + weight * balance


# --- The start


def test_heads_are_new_and_the_seeds_and_the_backbone_is_the_given_one(fp32):
    pretext = cluster_model(seed=5)
    weights = copy.deepcopy(pretext.backbone.state_dict())
    settings = cluster_settings(num_clusters=4, heads=3)
    one, other = (start_scan(settings, pretext, seed, fp32) for seed in (0, 1))
    assert (one.module.head.heads, one.module.head.clusters) == (3, 4)
    assert all(torch.equal(value, weights[key]) for key, value in one.module.backbone.state_dict().items())
    assert not torch.equal(one.module.head.linear.weight, other.module.head.linear.weight)


# --- The step


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prior": PRIOR},
        {"prior": PRIOR, "entropy_of": "both"},
        {"augmentation": PLAIN},
        {"augmentation": PLAIN, "train": "head"},  # on features that are made once
    ],
    ids=["usual", "prior", "both", "plain", "cached"],
)
def test_a_step_is_the_loss_of_anchors_and_neighbors_and_plain_gradient_descent(fp32, values):
    """By hand: order, one neighbor of each anchor, a view of each, the sum of the heads' losses, w - lr * gradient."""
    settings, rows = cluster_settings(epochs=1, optimizer=SGD, entropy_weight=3.0, **values), TRAIN.flip(0)
    state = start(settings, fp32)
    module, generator = copy.deepcopy(state.module).train(), state.generator.clone_state()
    next(train(state, settings, fp32, rows=rows))

    anchors = torch.randperm(32, generator=generator)[:8]
    partners = MINED[anchors, torch.randint(3, (8,), generator=generator)]
    logits = module(random_view(images(), rows[torch.cat([anchors, partners])], settings.augmentation, generator))[1]
    balance = settings.prior and torch.tensor(settings.prior), settings.entropy_of
    sum(scan_loss(*head.log_softmax(1).chunk(2), 3.0, *balance)[0] for head in logits).backward()
    assert_descended(state.module, module)
    assert torch.equal(state.generator.get_state(), generator.get_state())


def test_each_anchor_is_paired_with_one_of_its_first_neighbors(monkeypatch, fp32):
    """Rows are not positions: the training images come in another order. All 3 of the 5 mined are drawn, no other."""
    rows = TRAIN[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    position = rows.argsort()
    views, _ = spied(monkeypatch, scan, "random_view")
    settings = cluster_settings(epochs=12)
    epochs_of(train(start(settings, fp32), settings, fp32, rows=rows))
    anchors, partners = torch.stack([seen for _, seen, *_ in views]).view(12, 4, 2, 8).unbind(dim=2)
    assert_equal(anchors.reshape(12, 32).sort().values, TRAIN.expand(12, 32))
    columns = (MINED[position[anchors.flatten()]] == position[partners.flatten()][:, None]).nonzero()[:, 1]
    counts = columns.bincount(minlength=5)
    assert counts[3:].tolist() == [0, 0] and len(columns) == 12 * 32
    assert float(counts[:3].min()) > 100  # of 128


def test_without_neighbors_the_partner_is_another_view_of_the_same_image(monkeypatch, fp32):
    losses, views = spied(monkeypatch, scan, "scan_loss")[0], spied(monkeypatch, scan, "random_view")[0]
    settings = cluster_settings(neighbors=0)
    assert len(epochs_of(train(start(settings, fp32), settings, fp32, mined=MINED[:, :0]))) == 2
    assert [len(both) for _, both, *_ in views] == [16] * 8
    assert all(torch.equal(both[:8], both[8:]) for _, both, *_ in views)
    assert all(not torch.allclose(anchors, partners) for anchors, partners, *_ in losses)


@pytest.mark.parametrize(("name", "columns"), [("neighbors", 5), ("val_neighbors", 4)])
def test_more_neighbors_than_were_mined_are_an_error(fp32, name, columns):
    settings = cluster_settings(**{name: columns + 1})
    with pytest.raises(ScanError, match=rf"cluster\.{name} is {columns + 1}, but {columns} neighbors were mined"):
        next(train(start(settings, fp32), settings, fp32))


def test_one_batch_is_learnt_by_heart(fp32):
    """Three kinds of images, three clusters: the loss nears its lowest, -5 ln 3."""
    settings = cluster_settings(epochs=40, batch_size=9, augmentation=NO_AUGMENTATION, heads=1, neighbors=2)
    mined = neighbors(9, 2)
    found = epochs_of(train(start(settings, fp32), settings, fp32, mined=mined, rows=TRAIN[:9]))
    assert found[0]["loss"] > -5 * math.log(3) + 0.3
    assert found[-1]["loss"] < -5 * math.log(3) + 0.1
    assert found[-1]["loss"] >= -5 * math.log(3) - 1e-4


def test_the_first_losses_are_the_recorded_ones(fp32):
    """Float32 on the CPU. A change here changes every result: say why, and record anew."""
    settings = cluster_settings(
        epochs=4, batch_size=32, heads=1, optimizer=optimizer(lr=1e-3), augmentation=simclr_augmentation()
    )
    found = epochs_of(train(start(settings, fp32), settings, fp32))
    assert [values["loss"] for values in found] == pytest.approx(RECORDED, abs=1e-4)
    assert [values["val_loss"] for values in found] == pytest.approx(RECORDED_VAL, abs=1e-4)


RECORDED = [-4.326976, -4.341486, -4.357668, -4.351092]
RECORDED_VAL = [-4.376265, -4.374866, -4.373648, -4.37288]


def test_the_loss_of_an_epoch_is_that_of_its_parts_over_heads_and_steps(fp32):
    settings = cluster_settings(entropy_weight=2.0)
    for values in epochs_of(train(start(settings, fp32), settings, fp32)):
        assert values["loss"] == pytest.approx(values["consistency"] - 2.0 * values["entropy"], abs=1e-5)


def test_clusters_take_the_prior_s_shares(fp32):
    """Twelve images of three kinds, each of them its own neighbor: without a prior the clusters become equally large.

    The mean prediction is that of the images as they are, after training on them all at once.
    """
    shares = {}
    for prior in (None, PRIOR):
        settings = cluster_settings(
            epochs=40, batch_size=12, augmentation=NO_AUGMENTATION, heads=1, neighbors=0, prior=prior,
            entropy_weight=20.0,
        )  # fmt: skip
        state = start(settings, fp32)
        epochs_of(train(state, settings, fp32, mined=MINED[:12, :0], rows=TRAIN[:12]))
        module = state.module.train()
        shares[prior] = F.softmax(module(images().plain_view(TRAIN[:12]))[1][0], dim=1).mean(dim=0).tolist()
    assert shares[None] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert shares[PRIOR] == pytest.approx(PRIOR, abs=0.05)


# --- Validation and the model kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.0, 2.0, 5.0])
@EVERY_PRIOR
def test_validation_loss_is_the_loop_over_all_pairs_whatever_the_block(monkeypatch, prior, weight, dtype):
    """Blocks that do and do not divide the 16 images, of one image, and one that is more than there are."""
    log_p = (3 * torch.randn(2, 16, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    wanted = [validation_by_loops(head, VAL_MINED, weight, prior) for head in log_p]
    for block in (1, 7, 8, 16, 1024):
        monkeypatch.setattr(scan, "BLOCK", block)
        found = validation_loss(log_p, VAL_MINED, weight, prior and torch.tensor(prior, dtype=dtype))
        assert (found.dtype, found.shape) == (dtype, (2,))
        assert found.tolist() == pytest.approx(wanted, rel=1e-12 if dtype == torch.float64 else 1e-5), block


@EVERY_PRIOR
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_loop_validates_each_head_on_plain_views_with_the_lambda_and_prior_of_training(fp32, weight, prior):
    """With the first 2 of the 4 mined, after each epoch."""
    settings = cluster_settings(entropy_weight=weight, epochs=3, prior=prior)
    state = start(settings, fp32)
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch):
            log_p = log_probabilities(state.module, images(), VAL, fp32)
            wanted = [validation_by_loops(head, VAL_MINED[:, :2], weight, prior) for head in log_p]
            assert state.head_losses[-1] == pytest.approx(wanted, rel=1e-5)
            found = done.values["val_loss"], done.values["val_loss_worst_head"]
            assert found == pytest.approx((min(wanted), max(wanted)), rel=1e-5)


def test_the_head_and_epoch_kept_are_those_of_the_lowest_validation_loss(fp32):
    """A rate so high that the losses rise and fall; the weights kept are those of that epoch."""
    settings, best = cluster_settings(epochs=6, heads=3, optimizer=optimizer(lr=0.1)), []
    for seed in range(3):
        state, snapshots = start(settings, fp32, seed), []
        for done in train(state, settings, fp32):
            if isinstance(done, Epoch):
                snapshots.append(copy.deepcopy(state.module))
        losses = torch.tensor(state.head_losses, dtype=torch.float64)  # (epochs,H)
        assert losses.shape == (6, 3)
        epoch, head = divmod(int(losses.argmin()), 3)
        assert (state.best_epoch, state.best_head) == (epoch + 1, head)
        assert state.best_loss == pytest.approx(float(losses.min()))
        best.append((epoch, head))

        kept = best_model(state)
        assert (kept.head.heads, kept.head.clusters) == (1, 3)
        assert_equal(kept.backbone.state_dict(), snapshots[epoch].backbone.state_dict())
        assert_equal(kept.head.state_dict(), snapshots[epoch].head.only(head).state_dict())
        log_p = log_probabilities(kept, images(), VAL, fp32)
        assert float(validation_loss(log_p, VAL_MINED[:, :2], 5.0)) == pytest.approx(state.best_loss, rel=1e-5)
    assert any(epoch < 5 for epoch, _ in best) and any(head > 0 for _, head in best)  # so that this says something


@pytest.mark.parametrize("part", ["all", "head"])
def test_the_model_that_is_kept_is_a_copy_and_leaves_the_one_in_training(fp32, part):
    settings = cluster_settings(epochs=1, train=part)
    state = start(settings, fp32)
    epochs_of(train(state, settings, fp32))
    with torch.no_grad():  # as if it had been trained on
        for value in (*state.module.parameters(), *state.module.buffers()):
            value += 1
    before, trained = copy.deepcopy(state.state_dict()), [each.requires_grad for each in state.module.parameters()]
    kept = best_model(state)
    for value in (*kept.parameters(), *kept.buffers()):
        value.data.zero_()
    after = state.state_dict()
    assert_equal([after["module"], after["best_backbone"]], [before["module"], before["best_backbone"]])
    assert [each.requires_grad for each in state.module.parameters()] == trained


def test_what_all_heads_made_of_the_images_is_that_of_the_best_epoch(fp32):
    """And the assignments of each epoch are its best head's."""
    settings = cluster_settings(epochs=4, heads=3)
    state, found = start(settings, fp32), []
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch):
            found.append(log_probabilities(state.module, images(), VAL, fp32).argmax(dim=2).int())
            assert_equal(state.assignments[-1], found[-1][torch.tensor(state.head_losses[-1]).argmin()])
            if done.number == 2:  # all images in one cluster, whence no step of a few leads away
                with torch.no_grad():
                    state.module.head.linear.bias.view(-1, 3).copy_(torch.tensor([100.0, 0.0, 0.0]))
    assert state.best_epoch <= 2 and len(state.assignments) == 4
    assert_equal(state.best_heads, found[state.best_epoch - 1])
    assert not torch.equal(state.best_heads, found[-1])
