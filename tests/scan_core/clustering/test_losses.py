"""Losses of clustering against plain loops written from the equations, closed forms, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.clustering.losses import confident_cross_entropy, imbalance, mean_entropy, scan_loss
from scan_core.clustering.scan import validation_loss

PRIOR = (0.6, 0.3, 0.1)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def predictions(*shape, seed=0):
    """Log-probabilities of some anchors and their neighbors."""
    return (2 * double(*shape, seed=seed)).log_softmax(-1), (2 * double(*shape, seed=seed + 50)).log_softmax(-1)


def tensor(prior):
    return torch.tensor(prior, dtype=torch.float64)


def scan_by_loops(anchors, neighbors, weight, prior, of):
    """The paper's eq. 2 on probabilities (B,C); with a prior, KL(mean || prior) in the place of minus the entropy."""
    consistency = 0.0
    for anchor, neighbor in zip(anchors, neighbors, strict=True):
        consistency -= math.log(sum(float(a) * float(n) for a, n in zip(anchor, neighbor, strict=True))) / len(anchors)
    rows = [*anchors, *neighbors] if of == "both" else anchors
    mean = [sum(float(row[c]) for row in rows) / len(rows) for c in range(rows[0].numel())]
    entropy = -sum(m * math.log(m) for m in mean)
    if prior is None:
        return consistency - weight * entropy, consistency, entropy
    divergence = sum(m * math.log(m / share) for m, share in zip(mean, prior, strict=True))
    return consistency + weight * divergence, consistency, entropy


def assigned(counts, depth=1e3):
    """Confident log-probabilities of as many images of each cluster as ``counts`` says."""
    clusters = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    logits = torch.full((len(clusters), len(counts)), -depth, dtype=torch.float64)
    logits[torch.arange(len(clusters)), clusters] = depth
    return logits.log_softmax(1)


@pytest.mark.parametrize("of", ["anchors", "both"])
@pytest.mark.parametrize("prior", [None, PRIOR, (1 / 3, 1 / 3, 1 / 3), (0.98, 0.01, 0.01)])
@pytest.mark.parametrize(("batch", "weight"), [(1, 5.0), (6, 5.0), (5, 2.0), (4, 0.0)])
def test_scan_loss_is_the_loop_over_its_equation(batch, weight, prior, of):
    anchors, neighbors = predictions(batch, 3)
    found = scan_loss(anchors, neighbors, weight, None if prior is None else tensor(prior), of)
    wanted = scan_by_loops(anchors.exp(), neighbors.exp(), weight, prior, of)
    for value, expected in zip(found, wanted, strict=True):
        assert value.shape == ()
        assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("of", ["anchors", "both"])
def test_scan_loss_of_many_heads_is_that_of_each(of):
    anchors, neighbors = predictions(4, 6, 3)
    together = scan_loss(anchors, neighbors, 5.0, tensor(PRIOR), of)
    for head in range(4):
        alone = scan_loss(anchors[head], neighbors[head], 5.0, tensor(PRIOR), of)
        for all_heads, one in zip(together, alone, strict=True):
            torch.testing.assert_close(all_heads[head], one)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(2, 8), st.floats(0, 10), st.sampled_from(["anchors", "both"]), st.integers(0, 40))
def test_a_uniform_prior_adds_lambda_ln_c_to_the_entropy_s_loss(batch, clusters, weight, of, seed):
    anchors, neighbors = predictions(batch, clusters, seed=seed)
    uniform = tensor([1 / clusters] * clusters)
    with_prior, without = (scan_loss(anchors, neighbors, weight, prior, of)[0] for prior in (uniform, None))
    assert float(with_prior) == pytest.approx(float(without) + weight * math.log(clusters), abs=1e-9)


@pytest.mark.parametrize("counts", [(6, 3, 1), (5, 4, 1), (7, 2, 1), (6, 2, 2), (1, 3, 6), (4, 3, 3), (10, 0, 0)])
def test_confident_predictions_have_no_loss_with_the_prior_s_shares_and_one_with_any_other(counts):
    shares = [count / 10 for count in counts]
    wanted = 5 * sum(s * math.log(s / p) for s, p in zip(shares, PRIOR, strict=True) if s)
    assert wanted == 0 if shares == list(PRIOR) else wanted > 0.05
    confident = assigned(counts)
    assert float(scan_loss(confident, confident, 5.0, tensor(PRIOR))[0]) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(0, 40))
def test_the_divergence_is_never_below_0_and_the_entropy_is_imbalance_without_a_prior(batch, seed):
    anchors, _ = predictions(batch, 3, seed=seed)
    assert float(imbalance(anchors, tensor(PRIOR))) >= -1e-12
    assert torch.equal(imbalance(anchors, None), -mean_entropy(anchors))


@pytest.mark.parametrize("of", ["anchors", "both"])
@pytest.mark.parametrize("depth", [20.0, 60.0, 85.0])
def test_a_dead_cluster_keeps_its_gradient(depth, of):
    """Its probability is e^-depth in float32, below any clamp; raising its logit must lower the loss."""
    logits = torch.zeros(6, 3)
    logits[:, 2] = -depth
    logits.requires_grad_()
    anchors = logits.log_softmax(1)
    scan_loss(anchors, anchors, 5.0, torch.tensor(PRIOR), of)[0].backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 2] < 0).all()


def test_a_dead_cluster_has_the_gradient_of_the_equation():
    """For one row p the divergence's derivative by the logits is p (ln p/q - sum p ln p/q)."""
    logits = torch.tensor([[0.0, 0.0, -40.0]], dtype=torch.float64).requires_grad_()
    p, q = logits.detach().softmax(1)[0], tensor(PRIOR)
    imbalance(logits.log_softmax(1), q).backward()
    wanted = p * ((p / q).log() - (p * (p / q).log()).sum())
    torch.testing.assert_close(logits.grad[0], wanted, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("of", ["anchors", "both"])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_scan_loss_gradient(prior, of):
    inputs = double(4, 3).requires_grad_(), double(4, 3, seed=1).requires_grad_()
    given_prior = None if prior is None else tensor(prior)

    def total(anchors, neighbors):
        return scan_loss(anchors.log_softmax(1), neighbors.log_softmax(1), 5.0, given_prior, of)[0]

    assert torch.autograd.gradcheck(total, inputs)


def test_a_prior_decides_between_heads():
    """One head has the prior's shares, the other equal ones; each is the better by its own measure."""
    log_p = torch.stack([assigned([6, 3, 1], 10.0).repeat(3, 1), assigned([10, 10, 10], 10.0)])
    mined = torch.arange(30)[:, None]  # all are confident and agree
    assert int(validation_loss(log_p, mined, 5.0, tensor(PRIOR)).argmin()) == 0
    assert int(validation_loss(log_p, mined, 5.0).argmin()) == 1


@pytest.mark.parametrize(("clusters", "weight"), [(2, 5.0), (3, 5.0), (10, 5.0), (20, 2.0)])
def test_scan_loss_of_confident_balanced_predictions_is_minus_lambda_ln_c(clusters, weight):
    confident = assigned([4] * clusters)
    found = [float(each) for each in scan_loss(confident, confident, weight)]
    assert found == pytest.approx([-weight * math.log(clusters), 0, math.log(clusters)], rel=1e-6, abs=1e-6)


def test_scan_loss_is_finite_where_probabilities_underflow():
    logits = torch.tensor([[300.0, 0.0, -300.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    log_p = logits.log_softmax(1)
    total, *_ = scan_loss(log_p, log_p.flip(0), 5.0)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 99))
def test_mean_entropy_is_between_0_and_ln_c(batch, clusters, seed):
    entropy = float(mean_entropy((5 * double(batch, clusters, seed=seed)).log_softmax(1)))
    assert -1e-12 <= entropy <= math.log(clusters) + 1e-12


# --- Self-labeling


def self_label_by_loops(logits, weak, threshold, class_weights):
    """Cross-entropy of the confident rows, each weighted by one over the count of its pseudo-label among them."""
    labels = {}
    for b, probabilities in enumerate(weak.exp()):
        if float(probabilities.max()) > threshold:
            labels[b] = int(probabilities.argmax())
    counts = {label: list(labels.values()).count(label) for label in labels.values()}
    total = weights = 0.0
    for b, label in labels.items():
        weight = 1 / counts[label] if class_weights else 1.0
        each = math.log(sum(math.exp(float(x)) for x in logits[b])) - float(logits[b, label])
        total, weights = total + weight * each, weights + weight
    return total / weights


def strong_and_weak(batch=12, clusters=4, seed=0):
    """Logits of the strong views, and log-probabilities of the weak ones, about half of them above 0.6."""
    return double(batch, clusters, seed=seed), (2 * double(batch, clusters, seed=seed + 1)).log_softmax(1)


@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_self_label_loss_is_the_loop_over_its_definition(threshold, class_weights):
    strong, weak = strong_and_weak()
    share = float((weak.exp().amax(1) > threshold).double().mean())
    assert 0 < share < 1 or threshold == 0.3  # rows on both sides
    wanted = self_label_by_loops(strong, weak, threshold, class_weights)
    assert float(confident_cross_entropy(strong, weak, threshold, class_weights)) == pytest.approx(wanted, rel=1e-10)


def test_the_threshold_itself_is_not_confident():
    weak = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64).log()
    strong = double(2, 2).requires_grad_()
    confident_cross_entropy(strong, weak, 0.5, True).backward()
    assert (strong.grad[0] == 0).all()
    assert (strong.grad[1] != 0).all()


def test_no_gradient_reaches_the_pseudo_labels_nor_rows_that_are_not_confident():
    strong, weak = (each.requires_grad_() for each in strong_and_weak())
    confident_cross_entropy(strong, weak, 0.6, True).backward()
    assert weak.grad is None
    assert torch.equal(strong.grad.abs().sum(1) > 0, weak.exp().amax(1) > 0.6)


@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_confident_row_the_loss_and_its_gradient_are_0(class_weights, dtype):
    strong = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    loss = confident_cross_entropy(strong, torch.full((5, 3), math.log(1 / 3), dtype=dtype), 0.9, class_weights)
    loss.backward()
    assert loss.item() == 0
    assert (strong.grad == 0).all()


@pytest.mark.parametrize("class_weights", [False, True])
def test_self_label_gradient(class_weights):
    strong, weak = strong_and_weak(6, 3)
    strong.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: confident_cross_entropy(s, weak, 0.5, class_weights), (strong,))
