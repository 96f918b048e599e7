"""Losses against plain loops written from the equations, closed forms, and where gradients must and must not be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scan_core.pretext.losses import byol_loss, info_nce, memory_bank_nce, nt_xent


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


def info_nce_by_loops(queries, keys, queue, temperature):
    """MoCo, eq. 1: each query against its key and the whole queue; the mean over queries."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(float(query @ key) / temperature)
        total -= math.log(own / (own + sum(math.exp(float(query @ other) / temperature) for other in queue)))
    return total / len(queries)


def nce_by_loops(embedded, own, noise, z, temperature):
    """Wu et al., eqs. 4-7: embeddings (B,D), their entries (B,D), m others each (B,m,D); ``z`` is (Z, count)."""
    constant, count = z
    total = 0.0
    for v, positive, others in zip(embedded, own, noise, strict=True):
        expected = len(others) / count  # m P_n, of uniform noise P_n = 1 / count

        def h(entry, v=v, expected=expected):
            probability = math.exp(float(v @ entry) / temperature) / constant
            return probability / (probability + expected)

        total -= math.log(h(positive)) + sum(math.log(1 - h(other)) for other in others)
    return total / len(embedded)


def byol_by_loops(predictions, slow):
    """BYOL, eq. 2: the squared distance of normalized predictions and projections; the mean over images."""
    total = 0.0
    for prediction, target in zip(predictions, slow, strict=True):
        p = [float(x) / math.sqrt(sum(float(y) ** 2 for y in prediction)) for x in prediction]
        z = [float(x) / math.sqrt(sum(float(y) ** 2 for y in target)) for x in target]
        total += sum((a - b) ** 2 for a, b in zip(p, z, strict=True))
    return total / len(predictions)


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


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_nt_xent_of_equal_views_is_log_of_their_number_less_one(batch):
    equal = torch.ones(batch, 4, dtype=torch.float64)
    assert float(nt_xent(equal, equal, 0.1)) == pytest.approx(math.log(2 * batch - 1), abs=1e-12)


def test_nt_xent_gradient():
    inputs = double(4, 3).requires_grad_(), double(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda first, second: nt_xent(first, second, 0.3), inputs)


# --- Contrast with a queue (MoCo)


def unit(*shape, seed=0):
    return F.normalize(double(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize(("batch", "queue", "temperature"), [(1, 1, 0.5), (3, 7, 0.2), (8, 2, 0.07), (2, 30, 1.0)])
def test_info_nce_is_the_loop_over_its_equation(batch, queue, temperature):
    inputs = unit(batch, 5), unit(batch, 5, seed=1), unit(queue, 5, seed=2)
    wanted = info_nce_by_loops(*inputs, temperature)
    assert float(info_nce(*inputs, temperature)) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("queue", [1, 5, 64])
def test_info_nce_of_equal_vectors_is_log_of_the_queue_and_one(queue):
    equal = F.normalize(torch.ones(3, 4, dtype=torch.float64), dim=1)
    found = float(info_nce(equal, equal, equal[:1].expand(queue, 4), 0.1))
    assert found == pytest.approx(math.log(queue + 1), abs=1e-12)


def test_info_nce_gradient_reaches_queries_alone():
    queries, keys, queue = (unit(3, 4, seed=seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda q: info_nce(q, keys, queue, 0.3), (queries,))
    info_nce(queries, keys, queue, 0.3).backward()
    assert float(queries.grad.abs().sum()) > 0
    assert keys.grad is None
    assert queue.grad is None


# --- NCE against a memory bank (instance discrimination)


@pytest.mark.parametrize(("batch", "negatives", "count"), [(1, 1, 2), (3, 5, 11), (4, 9, 6)])
@pytest.mark.parametrize(("z", "temperature"), [(1.0, 0.5), (37.5, 0.2)])
def test_nce_is_the_loop_over_its_equations(batch, negatives, count, z, temperature):
    embedded, own, noise = unit(batch, 5), unit(batch, 5, seed=1), unit(batch, negatives, 5, seed=2)
    wanted = nce_by_loops(embedded, own, noise, (z, count), temperature)
    positive = (embedded * own).sum(1) / temperature
    others = torch.einsum("bd,bmd->bm", embedded, noise) / temperature
    found = memory_bank_nce(positive, others, torch.tensor(z, dtype=torch.float64).log(), count)
    assert float(found) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(("negatives", "count"), [(1, 10), (7, 10), (4096, 50_000)])
def test_nce_where_all_are_as_likely_as_noise_is_that_of_m_and_one_coins(negatives, count):
    """P = 1/count everywhere, so that h = 1 / (1 + m): log(1+m) + m log((1+m)/m)."""
    similar = torch.full((3, 1 + negatives), 2.5, dtype=torch.float64)
    log_z = torch.tensor(2.5 + math.log(count), dtype=torch.float64)
    wanted = math.log(1 + negatives) + negatives * math.log1p(1 / negatives)
    found = memory_bank_nce(similar[:, 0], similar[:, 1:], log_z, count)
    assert float(found) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("similarity", [-200.0, 200.0])
def test_nce_is_finite_in_float32_where_probabilities_overflow(similarity):
    positive = torch.full((2,), similarity, requires_grad=True)
    noise = torch.full((2, 3), -similarity, requires_grad=True)
    found = memory_bank_nce(positive, noise, torch.tensor(5.0), 100)
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(each.grad).all() for each in (positive, noise))


def test_nce_gradient_pulls_to_the_own_entry_and_away_from_noise():
    positive, noise = double(3).requires_grad_(), double(3, 4, seed=1).requires_grad_()
    log_z = torch.tensor(1.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p, n: memory_bank_nce(p, n, log_z, 9), (positive, noise))
    memory_bank_nce(positive, noise, log_z, 9).backward()
    assert (positive.grad < 0).all()
    assert (noise.grad > 0).all()


# --- BYOL


@pytest.mark.parametrize(("batch", "dimensions"), [(1, 2), (5, 3), (8, 16)])
def test_byol_loss_is_the_loop_over_its_equation(batch, dimensions):
    predictions, slow = double(batch, dimensions), double(batch, dimensions, seed=1)
    wanted = byol_by_loops(predictions, slow)
    assert float(byol_loss(predictions, slow)) == pytest.approx(wanted, rel=1e-10)


def test_byol_loss_is_0_2_or_4_for_vectors_alike_at_right_angles_and_opposed():
    axes = torch.eye(4, dtype=torch.float64)
    for others, wanted in ((7 * axes, 0), (axes.roll(1, 0), 2), (-axes, 4)):
        assert float(byol_loss(axes, others)) == pytest.approx(wanted, abs=1e-12)


def test_byol_gradient_reaches_predictions_alone():
    predictions, slow = double(4, 3).requires_grad_(), double(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: byol_loss(p, slow), (predictions,))
    byol_loss(predictions, slow).backward()
    assert float(predictions.grad.abs().sum()) > 0
    assert slow.grad is None
