"""The SCAN loop: who is paired with whom, which head and epoch are kept, the validation loss, a resume to the bit."""

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
from scan_core.views.settings import NoAugmentation
from tests.tiny import (
    NO_AUGMENTATION,
    TRAIN,
    VAL,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    simclr_augmentation,
    through_a_file,
)

MINED, VAL_MINED = neighbors(32, 5), neighbors(16, 4)
PRIOR = (0.6, 0.3, 0.1)
COSINE = optimizer(schedule="cosine", warmup_epochs=1)


def start(settings, fabric, seed=0):
    return start_scan(settings, cluster_model(), seed, fabric)


def train(state, settings, fabric, data=None, mined=MINED, rows=TRAIN):
    return train_scan(state, data or images(), rows, mined, VAL, VAL_MINED, settings, fabric)


def validation_by_loops(log_p, mined, weight, prior=(1.0, 1.0, 1.0)):
    """Eq. 2 over all images of one head and all their neighbors; the entropy of the mean over all images.

    Or, with a ``prior``, the mean's divergence from it.
    """
    p = log_p.double().exp()
    pairs = [-math.log(float(p[i] @ p[j])) for i in range(len(p)) for j in mined[i]]
    mean = p.mean(dim=0)
    balance = sum(float(m) * math.log(float(m) / share) for m, share in zip(mean, prior, strict=True))
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


@pytest.mark.parametrize(("part", "trained"), [("head", 2), ("all", 20)])
def test_what_trains_is_what_the_setting_says(fp32, part, trained):
    state = start(cluster_settings(train=part), fp32)
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == trained


# --- The step


def test_a_step_is_the_loss_of_anchors_and_neighbors_and_plain_gradient_descent(fp32):
    """By hand: order, one neighbor of each anchor, a view of each, the sum of the heads' losses, w - lr * gradient."""
    sgd = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    settings, data, rows = cluster_settings(epochs=1, optimizer=sgd, entropy_weight=3.0), images(), TRAIN.flip(0)
    state = start(settings, fp32)
    module = copy.deepcopy(state.module).train()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    next(train(state, settings, fp32, data, rows=rows))

    anchors = torch.randperm(32, generator=generator)[:8]
    partners = MINED[anchors, torch.randint(3, (8,), generator=generator)]
    logits = module(random_view(data, rows[torch.cat([anchors, partners])], settings.augmentation, generator))[1]
    loss = sum(scan_loss(*head.log_softmax(1).chunk(2), 3.0)[0] for head in logits)
    loss.backward()
    for (name, found), wanted in zip(state.module.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted - 0.1 * wanted.grad, msg=name)


def test_a_step_on_features_made_once_is_that_on_plain_views_of_anchors_and_neighbors(fp32):
    """By hand, where the backbone is frozen and nothing is augmented: its features in eval mode, of the very pairs."""
    sgd = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    plain = NoAugmentation(kind="none")
    settings = cluster_settings(epochs=1, optimizer=sgd, train="head", augmentation=plain)
    data, rows = images(), TRAIN.flip(0)
    state = start(settings, fp32)
    module = copy.deepcopy(state.module).train()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    loop = train(state, settings, fp32, data, rows=rows)
    order = torch.randperm(32, generator=generator)
    for anchors in order.split(8)[:2]:
        next(loop)
        partners = MINED[anchors, torch.randint(3, (8,), generator=generator)]
        module.zero_grad()
        logits = module(data.plain_view(rows[torch.cat([anchors, partners])]))[1]
        sum(scan_loss(*head.log_softmax(1).chunk(2), settings.entropy_weight)[0] for head in logits).backward()
        with torch.no_grad():
            for weight in module.head.parameters():
                weight -= 0.1 * weight.grad
        for found, wanted in zip(state.module.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.fixture
def seen(monkeypatch):
    """The rows of the views that each step makes: anchors, then partners."""
    rows_seen, original = [], scan.random_view

    def spy(data, rows, *others):
        rows_seen.append(rows)
        return original(data, rows, *others)

    monkeypatch.setattr(scan, "random_view", spy)
    return rows_seen


def test_each_anchor_is_paired_with_one_of_its_first_neighbors(fp32, seen):
    """Rows are not positions: the training images come in another order. All 3 of the 5 mined are drawn, no other."""
    rows = TRAIN[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    position = {int(row): number for number, row in enumerate(rows)}
    settings = cluster_settings(epochs=12)
    epochs_of(train(start(settings, fp32), settings, fp32, rows=rows))
    assert [len(both) for both in seen] == [16] * 48
    anchors, partners = torch.cat([both[:8] for both in seen]), torch.cat([both[8:] for both in seen])
    for epoch in anchors.view(12, 32):
        assert torch.equal(epoch.sort().values, TRAIN)
    columns = [
        MINED[position[int(anchor)]].tolist().index(position[int(partner)])
        for anchor, partner in zip(anchors, partners, strict=True)
    ]
    counts = torch.tensor(columns).bincount(minlength=5)
    assert counts[3:].tolist() == [0, 0]
    assert float(counts[:3].min()) > 100  # of 128


def test_without_neighbors_the_partner_is_another_view_of_the_same_image(monkeypatch, fp32, seen):
    given, original = [], scan.scan_loss
    monkeypatch.setattr(scan, "scan_loss", lambda *all_given: given.append(all_given) or original(*all_given))
    settings = cluster_settings(neighbors=0)
    values = epochs_of(train(start(settings, fp32), settings, fp32, mined=MINED[:, :0]))
    assert len(values) == 2
    assert [len(both) for both in seen] == [16] * 8
    assert all(torch.equal(both[:8], both[8:]) for both in seen)
    assert all(not torch.allclose(anchors, partners) for anchors, partners, *_ in given)


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


@pytest.mark.parametrize("of", ["anchors", "both"])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_each_step_and_validation_has_the_settings_lambda_prior_and_entropy(monkeypatch, fp32, prior, of):
    steps, validations, original, original_validation = [], [], scan.scan_loss, scan.validation_loss

    def spy(anchors, neighbors, weight, shares, entropy_of):
        steps.append((weight, shares, entropy_of))
        return original(anchors, neighbors, weight, shares, entropy_of)

    def spy_validation(log_p, mined, weight, shares):
        validations.append((weight, shares))
        return original_validation(log_p, mined, weight, shares)

    monkeypatch.setattr(scan, "scan_loss", spy)
    monkeypatch.setattr(scan, "validation_loss", spy_validation)
    settings = cluster_settings(entropy_weight=3.0, prior=prior, entropy_of=of)
    epochs_of(train(start(settings, fp32), settings, fp32))
    assert (len(steps), len(validations)) == (8, 2)
    assert {entropy_of for *_, entropy_of in steps} == {of}
    for weight, shares, *_ in [*steps, *validations]:
        assert weight == 3.0
        if prior is None:
            assert shares is None
        else:
            assert torch.equal(shares, torch.tensor(PRIOR))


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


def test_head_only_training_leaves_the_backbone_and_its_buffers(fp32):
    settings = cluster_settings(train="head", epochs=2)
    state = start(settings, fp32)
    before, heads = copy.deepcopy(state.module.backbone.state_dict()), copy.deepcopy(state.module.head.state_dict())
    epochs_of(train(state, settings, fp32))
    assert all(torch.equal(value, before[key]) for key, value in state.module.backbone.state_dict().items())
    assert not torch.equal(state.module.head.linear.weight, heads["linear.weight"])


def test_training_everything_moves_the_backbone_and_its_buffers(fp32):
    settings = cluster_settings(epochs=1)
    state = start(settings, fp32)
    before = copy.deepcopy(state.module.backbone.state_dict())
    epochs_of(train(state, settings, fp32))
    assert not any(torch.equal(value, before[key]) for key, value in state.module.backbone.state_dict().items())


# --- Validation and the model kept


@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_validation_loss_is_the_loop_over_all_pairs_with_the_same_lambda(weight):
    log_p = (3 * torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    found = validation_loss(log_p, VAL_MINED, weight)
    for head in range(2):
        wanted = validation_by_loops(log_p[head], VAL_MINED, weight, (1.0,) * 4)
        assert float(found[head]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_validation_loss_does_not_depend_on_the_block(monkeypatch, prior, dtype):
    """Blocks that do and do not divide the 16 images, of one image, and one that is more than there are."""
    log_p = (3 * torch.randn(2, 16, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    shares = None if prior is None else torch.tensor(prior, dtype=dtype)
    wanted = [validation_by_loops(head, VAL_MINED, 5.0, prior or (1.0,) * 3) for head in log_p]
    rel = 1e-12 if dtype == torch.float64 else 1e-5
    for block in (1, 7, 8, 16, 1024):
        monkeypatch.setattr(scan, "BLOCK", block)
        found = validation_loss(log_p, VAL_MINED, 5.0, shares)
        assert (found.dtype, found.shape) == (dtype, (2,))
        assert found.tolist() == pytest.approx(wanted, rel=rel), block


@pytest.mark.parametrize("prior", [None, PRIOR])
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_loop_validates_each_head_on_plain_views_with_the_lambda_and_prior_of_training(fp32, weight, prior):
    """With the first 2 of the 4 mined, after each epoch."""
    settings, data = cluster_settings(entropy_weight=weight, epochs=3, prior=prior), images()
    state = start(settings, fp32)
    for done in train(state, settings, fp32, data):
        if isinstance(done, Epoch):
            log_p = log_probabilities(state.module, data, VAL, fp32)
            balance = {} if prior is None else {"prior": prior}
            wanted = [validation_by_loops(head, VAL_MINED[:, :2], weight, **balance) for head in log_p]
            assert state.head_losses[-1] == pytest.approx(wanted, rel=1e-5)
            assert done.values["val_loss"] == pytest.approx(min(wanted), rel=1e-5)
            assert done.values["val_loss_worst_head"] == pytest.approx(max(wanted), rel=1e-5)


def test_confident_balanced_neighbors_have_the_lowest_validation_loss():
    kinds = torch.arange(15) % 3
    log_p = (200 * F.one_hot(kinds, 3).float()).log_softmax(-1)[None]
    mined = neighbors(15, 4)
    assert float(validation_loss(log_p, mined, 5.0)) == pytest.approx(-5 * math.log(3), rel=1e-5)
    assert float(validation_loss(log_p, mined + 1 - 3 * (mined == 14), 5.0)) > 100


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_head_and_epoch_kept_are_those_of_the_lowest_validation_loss(fp32, seed):
    """A rate so high that the losses rise and fall; the weights kept are those of that epoch."""
    settings = cluster_settings(epochs=6, heads=3, optimizer=optimizer(lr=0.1))
    state, snapshots = start(settings, fp32, seed), []
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch):
            snapshots.append(copy.deepcopy(state.module))
    losses = torch.tensor(state.head_losses, dtype=torch.float64)  # (epochs,H)
    assert losses.shape == (6, 3)
    epoch, head = divmod(int(losses.argmin()), 3)
    assert (state.best_epoch, state.best_head) == (epoch + 1, head)
    assert state.best_loss == pytest.approx(float(losses.min()))

    kept = best_model(state)
    assert (kept.head.heads, kept.head.clusters) == (1, 3)
    assert all(torch.equal(v, snapshots[epoch].backbone.state_dict()[k]) for k, v in kept.backbone.state_dict().items())
    assert torch.equal(kept.head.linear.weight, snapshots[epoch].head.only(head).linear.weight)
    assert torch.equal(kept.head.linear.bias, snapshots[epoch].head.only(head).linear.bias)
    log_p = log_probabilities(kept, images(), VAL, fp32)
    assert float(validation_loss(log_p, VAL_MINED[:, :2], 5.0)) == pytest.approx(state.best_loss, rel=1e-5)


def test_some_run_keeps_an_epoch_that_is_not_the_last_and_a_head_that_is_not_the_first(fp32):
    """So that the test above says something."""
    kept = []
    for seed in range(3):
        settings = cluster_settings(epochs=6, heads=3, optimizer=optimizer(lr=0.1))
        state = start(settings, fp32, seed)
        epochs_of(train(state, settings, fp32))
        kept.append((state.best_epoch, state.best_head))
    assert any(epoch < 6 for epoch, _ in kept)
    assert any(head > 0 for _, head in kept)


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
    assert all(torch.equal(value, before["module"][key]) for key, value in after["module"].items())
    assert all(torch.equal(v, before["best_backbone"][k]) for k, v in after["best_backbone"].items())
    assert [each.requires_grad for each in state.module.parameters()] == trained


def test_assignments_are_those_of_each_epochs_best_head(fp32):
    settings, data = cluster_settings(epochs=3), images()
    state = start(settings, fp32)
    for done in train(state, settings, fp32, data):
        if isinstance(done, Epoch):
            log_p = log_probabilities(state.module, data, VAL, fp32)
            head = int(torch.tensor(state.head_losses[-1]).argmin())
            assert state.assignments[-1].dtype == torch.int32
            assert torch.equal(state.assignments[-1].long(), log_p[head].argmax(dim=1))
    assert len(state.assignments) == 3


def spoil(module):
    """All images in one cluster, whence no step of a few leads away: no later epoch is the best."""
    with torch.no_grad():
        module.head.linear.bias.view(-1, 3).copy_(torch.tensor([100.0, 0.0, 0.0]))


def test_what_all_heads_made_of_the_images_is_that_of_the_best_epoch(fp32):
    settings, data = cluster_settings(epochs=4, heads=3), images()
    state, found = start(settings, fp32), []
    for done in train(state, settings, fp32, data):
        if isinstance(done, Epoch):
            found.append(log_probabilities(state.module, data, VAL, fp32).argmax(dim=2))
            if done.number == 2:
                spoil(state.module)
    heads, epoch = state.best_heads, state.best_epoch
    assert epoch <= 2
    assert (heads.shape, heads.dtype) == ((3, 16), torch.int32)
    assert torch.equal(heads.long(), found[epoch - 1])
    assert not torch.equal(heads.long(), found[-1])
    assert torch.equal(heads[state.best_head], state.assignments[epoch - 1])


# --- Resume


def test_what_all_heads_made_of_the_images_survives_a_resume(fp32):
    """A resume after the best epoch, on into worse ones."""
    settings = cluster_settings(epochs=4, heads=3)
    state = start(settings, fp32)
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch) and done.number == 2:
            break
    best = copy.deepcopy(state.best_heads)
    spoil(state.module)
    resumed = start(settings, fp32, seed=7)
    resumed.load_state_dict(through_a_file(state))
    assert len(epochs_of(train(resumed, settings, fp32))) == 2
    assert resumed.best_epoch <= 2
    assert resumed.best_heads.dtype == torch.int32
    assert torch.equal(resumed.best_heads, best)


def test_a_saved_best_is_not_changed_by_training_on(fp32):
    settings = cluster_settings(epochs=3)
    state, kept = start(settings, fp32), None
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch):
            if kept and state.best_epoch == kept[0]:
                assert all(torch.equal(value, kept[1][key]) for key, value in state.best_backbone.items())
            kept = state.best_epoch, copy.deepcopy(state.best_backbone)
