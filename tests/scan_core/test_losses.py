"""Losses against plain loops written from the equations, closed forms, and where gradients must and must not be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scan_core.losses import confident_cross_entropy, mean_entropy, nt_xent, scan_loss


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nt_xent_by_loops(first, second, temperature):
    """SimCLR, eq. 1, for each of the 2B views as anchor: a list of 2B."""
    views = [view / math.sqrt(sum(float(x) ** 2 for x in view)) for view in [*first, *second]]
    batch, each = len(first), []
    for i, anchor in enumerate(views):
        j = i + batch if i < batch else i - batch
        similar = [math.exp(float(anchor @ other) / temperature) for other in views]
        each.append(-math.log(similar[j] / sum(s for k, s in enumerate(similar) if k != i)))
    return each


def scan_by_loops(anchors, neighbors, entropy_weight):
    """The paper's eq. 2 on probabilities (B,C)."""
    batch, clusters = anchors.shape
    consistency = 0.0
    for b in range(batch):
        consistency -= math.log(sum(float(anchors[b, c]) * float(neighbors[b, c]) for c in range(clusters))) / batch
    minus_entropy = 0.0
    for c in range(clusters):
        mean = sum(float(anchors[b, c]) for b in range(batch)) / batch
        minus_entropy += mean * math.log(mean)
    return consistency + entropy_weight * minus_entropy, consistency, -minus_entropy


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


# --- NT-Xent


@pytest.mark.parametrize(("batch", "dimensions", "temperature"), [(1, 3, 0.5), (2, 2, 0.1), (5, 8, 0.2), (9, 4, 1.0)])
def test_nt_xent_is_the_loop_over_its_equation(batch, dimensions, temperature):
    first, second = double(batch, dimensions), double(batch, dimensions, seed=1)
    each = nt_xent_by_loops(first, second, temperature)
    wanted = sum(each) / len(each)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(wanted, rel=1e-10)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 2), st.integers(0, 99))
def test_nt_xent_is_symmetric_in_its_views(batch, dimensions, temperature, seed):
    first, second = double(batch, dimensions, seed=seed), double(batch, dimensions, seed=seed + 100)
    one, other = nt_xent(first, second, temperature), nt_xent(second, first, temperature)
    assert float(one) == pytest.approx(float(other), rel=1e-9, abs=1e-12)


def test_nt_xent_has_both_views_as_anchors():
    """The second views lie apart from one another and the first do not, so the two halves' losses differ."""
    first = torch.tensor([[1.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    second = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    each = nt_xent_by_loops(first, second, 0.5)
    halves = sum(each[:2]) / 2, sum(each[2:]) / 2
    assert abs(halves[0] - halves[1]) > 0.1
    assert float(nt_xent(first, second, 0.5)) == pytest.approx(sum(halves) / 2)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_nt_xent_of_equal_views_is_log_of_their_number_less_one(batch):
    equal = torch.ones(batch, 4, dtype=torch.float64)
    assert float(nt_xent(equal, equal, 0.1)) == pytest.approx(math.log(2 * batch - 1), abs=1e-12)


def test_nt_xent_does_not_depend_on_the_length_of_the_vectors():
    first, second = double(6, 4), double(6, 4, seed=1)
    scaled = nt_xent(first * double(6, 1, seed=2).abs(), second * 7, 0.2)
    torch.testing.assert_close(scaled, nt_xent(first, second, 0.2))


def test_nt_xent_gradient():
    inputs = double(4, 3).requires_grad_(), double(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda first, second: nt_xent(first, second, 0.3), inputs)


# --- SCAN


@pytest.mark.parametrize(("batch", "clusters", "weight"), [(1, 2, 5.0), (4, 3, 5.0), (7, 10, 2.0), (6, 4, 0.0)])
def test_scan_loss_is_the_loop_over_its_equation(batch, clusters, weight):
    anchors, neighbors = (double(batch, clusters, seed=seed).log_softmax(1) for seed in (0, 1))
    wanted = scan_by_loops(anchors.exp(), neighbors.exp(), weight)
    for value, expected in zip(scan_loss(anchors, neighbors, weight), wanted, strict=True):
        assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_scan_loss_of_many_heads_is_that_of_each():
    anchors, neighbors = (double(3, 6, 4, seed=seed).log_softmax(-1) for seed in (0, 1))
    together = scan_loss(anchors, neighbors, 5.0)
    for head in range(3):
        for all_heads, one in zip(together, scan_loss(anchors[head], neighbors[head], 5.0), strict=True):
            torch.testing.assert_close(all_heads[head], one)


@pytest.mark.parametrize(("clusters", "weight"), [(2, 5.0), (3, 5.0), (10, 5.0), (20, 2.0)])
def test_scan_loss_of_confident_balanced_predictions_is_minus_lambda_ln_c(clusters, weight):
    logits = torch.full((4 * clusters, clusters), -1e4)
    logits[torch.arange(4 * clusters), torch.arange(4 * clusters) % clusters] = 1e4
    confident = logits.log_softmax(1)
    total, consistency, entropy = scan_loss(confident, confident, weight)
    assert float(consistency) == pytest.approx(0, abs=1e-6)
    assert float(entropy) == pytest.approx(math.log(clusters), rel=1e-6)
    assert float(total) == pytest.approx(-weight * math.log(clusters), rel=1e-6)


def test_scan_entropy_is_that_of_the_anchors_alone():
    anchors, neighbors, others = (double(5, 4, seed=seed).log_softmax(1) for seed in range(3))
    torch.testing.assert_close(scan_loss(anchors, neighbors, 5.0)[2], scan_loss(anchors, others, 5.0)[2])
    torch.testing.assert_close(scan_loss(anchors, neighbors, 5.0)[2], mean_entropy(anchors))


def test_scan_loss_gradient_flows_through_anchors_and_neighbors():
    inputs = double(5, 3).requires_grad_(), double(5, 3, seed=1).requires_grad_()

    def total(anchors, neighbors):
        return scan_loss(anchors.log_softmax(1), neighbors.log_softmax(1), 5.0)[0]

    assert torch.autograd.gradcheck(total, inputs)
    total(*inputs).backward()
    assert all(float(each.grad.abs().sum()) > 0 for each in inputs)


@pytest.mark.parametrize("depth", [20.0, 60.0, 85.0])
def test_a_dead_cluster_keeps_its_gradient(depth):
    """Its probability is e^-depth in float32, below any clamp; raising its logit must lower the loss."""
    logits = torch.zeros(6, 4)
    logits[:, 3] = -depth
    logits.requires_grad_()
    anchors = logits.log_softmax(1)
    scan_loss(anchors, anchors, 5.0)[0].backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 3] < 0).all()


def test_a_dead_cluster_has_the_gradient_of_the_equation():
    """For one row p the entropy's derivative by the logits is -p (ln p - sum p ln p)."""
    logits = torch.tensor([[0.0, 0.0, -40.0]], dtype=torch.float64).requires_grad_()
    p = logits.detach().softmax(1)[0]
    mean_entropy(logits.log_softmax(1)).backward()
    wanted = -p * (p.log() - (p * p.log()).sum())
    torch.testing.assert_close(logits.grad[0], wanted, rtol=1e-9, atol=0.0)


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


# --- Self-labelling


def predictions(batch=12, clusters=4, seed=0):
    """Logits of the strong views, and log-probabilities of the weak ones, about half of them above 0.6."""
    return double(batch, clusters, seed=seed), (2 * double(batch, clusters, seed=seed + 1)).log_softmax(1)


@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_self_label_loss_is_the_loop_over_its_definition(threshold, class_weights):
    strong, weak = predictions()
    share = float((weak.exp().amax(1) > threshold).double().mean())
    assert 0 < share < 1 or threshold == 0.3  # rows on both sides
    wanted = self_label_by_loops(strong, weak, threshold, class_weights)
    assert float(confident_cross_entropy(strong, weak, threshold, class_weights)) == pytest.approx(wanted, rel=1e-10)


def test_class_weights_make_every_pseudo_label_count_the_same():
    """Three confident rows of cluster 0 and one of cluster 1: the mean over clusters of the mean over rows."""
    weak = torch.full((4, 2), math.log(0.01), dtype=torch.float64)
    weak[[0, 1, 2, 3], [0, 0, 0, 1]] = math.log(0.99)
    strong = double(4, 2)
    each = F.cross_entropy(strong, torch.tensor([0, 0, 0, 1]), reduction="none")
    weighted = confident_cross_entropy(strong, weak, 0.9, True)
    torch.testing.assert_close(weighted, (each[:3].mean() + each[3]) / 2)
    torch.testing.assert_close(confident_cross_entropy(strong, weak, 0.9, False), each.mean())


def test_the_threshold_itself_is_not_confident():
    weak = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64).log()
    strong = double(2, 2).requires_grad_()
    confident_cross_entropy(strong, weak, 0.5, True).backward()
    assert (strong.grad[0] == 0).all()
    assert (strong.grad[1] != 0).all()


def test_no_gradient_reaches_the_pseudo_labels():
    strong, weak = predictions()
    strong.requires_grad_()
    weak.requires_grad_()
    confident_cross_entropy(strong, weak, 0.6, True).backward()
    assert weak.grad is None
    assert float(strong.grad.abs().sum()) > 0


def test_no_gradient_reaches_rows_that_are_not_confident():
    strong, weak = predictions()
    strong.requires_grad_()
    confident_cross_entropy(strong, weak, 0.6, True).backward()
    confident = weak.exp().amax(1) > 0.6
    assert (strong.grad[~confident] == 0).all()
    assert (strong.grad[confident].abs().sum(1) > 0).all()


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
    strong, weak = predictions(6, 3)
    strong.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: confident_cross_entropy(s, weak, 0.5, class_weights), (strong,))
