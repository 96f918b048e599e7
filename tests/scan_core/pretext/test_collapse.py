"""The spread of embeddings in closed forms; trainings that have died end with one line, those that live go on."""

import math

import pytest
import torch
from torch.nn import functional as F

from scan_core.errors import ScanError
from scan_core.pretext.collapse import DEAD_RANK, DEAD_VARIANCE, check_spread, embedding_spread
from tests.tiny import PRETEXTS, SGD, change, epochs_of, optimizer, refused, run_loop, start_loop


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(embeddings):
    found = embedding_spread(embeddings)
    assert list(found) == ["embedding_variance", "effective_rank"]
    return found["embedding_variance"], found["effective_rank"]


# --- Closed forms


AXIS = normal(1, 6)


@pytest.mark.parametrize(
    ("embeddings", "variance", "rank"),
    [
        *((normal(20_000, dimensions), 1, dimensions) for dimensions in (2, 8, 64)),
        (torch.cat([AXIS.expand(5, 6), -AXIS.expand(5, 6)]), 1, 1),
        # Centered, D unit axes have D-1 equal singular values, and a mean of length 1/sqrt(D).
        *((torch.eye(dimensions), 1 - 1 / dimensions, dimensions - 1) for dimensions in (3, 10)),
    ],
    ids=["all over 2", "all over 8", "all over 64", "two opposed points", "3 axes", "10 axes"],
)
def test_the_spread_of_known_shapes_is_closed(embeddings, variance, rank):
    sampled = len(embeddings) > 100
    assert spread(embeddings)[0] == pytest.approx(variance, abs=2e-3 if sampled else 1e-6)
    assert spread(embeddings)[1] == pytest.approx(rank, rel=1e-2 if sampled else 1e-4)


def test_one_point_has_no_variance():
    assert spread(torch.full((16, 4), 0.3))[0] == pytest.approx(0, abs=1e-12)
    assert spread(torch.zeros(16, 4)) == (0, 1)


def test_the_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    """Pairs opposed along axes, so that the singular values are the roots of how many there are on each."""
    axes = torch.eye(3).repeat_interleave(torch.tensor([8, 2, 1]), dim=0)
    values = [math.sqrt(16), math.sqrt(4), math.sqrt(2)]
    share = [value / sum(values) for value in values]
    variance, rank = spread(torch.cat([axes, -axes]))
    assert variance == pytest.approx(1)
    assert rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-5)


def test_the_variance_is_1_less_the_squared_length_of_the_mean():
    embeddings = normal(50, 6) + 1
    mean = F.normalize(embeddings, dim=1).mean(dim=0)
    assert spread(embeddings)[0] == pytest.approx(1 - float(mean @ mean), abs=1e-6)


def test_the_spread_does_not_depend_on_lengths_nor_on_the_dtype():
    embeddings = normal(30, 6)
    wanted = spread(embeddings)
    assert spread(embeddings * normal(30, 1, seed=1).abs()) == pytest.approx(wanted, rel=1e-4)
    assert spread(embeddings.bfloat16()) == pytest.approx(wanted, rel=1e-2)
    assert spread(embeddings.requires_grad_()) == pytest.approx(wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_makes_both_nan(value):
    embeddings = normal(8, 4)
    embeddings[3, 2] = value
    assert all(math.isnan(each) for each in spread(embeddings))


# --- The end of an epoch


def cloud(variance, count=512, dimensions=16):
    """Points about one direction, of about that variance."""
    return torch.eye(dimensions)[0] + math.sqrt(variance / dimensions) * normal(count, dimensions)


def flat(second, count=512):
    """Points along one axis, with ``second`` of that deviation along another two."""
    return torch.tensor([1.0, 0, 0, 0]) + 0.01 * normal(count, 4) * torch.tensor([0, 1.0, second, second])


def test_points_alike_are_a_collapse_that_says_how_much_and_what_to_do():
    refused(
        lambda: check_spread(cloud(1e-7), 2), "collapsed in epoch 2", "variance 9.", "e-08",
        "effective rank 1", "pretext.optimizer.lr", "warmup_epochs", "pretext.method",
    )  # fmt: skip


def test_points_on_a_line_are_a_collapse():
    refused(lambda: check_spread(flat(0.001), 1), "collapsed in epoch 1", "effective rank 1.")


def test_the_limits_are_those_between_what_was_measured_alive_and_dead():
    """3e-5 and 1.3 were the least of networks that lived, 4e-6 the most of those that had died."""
    assert 4e-6 < DEAD_VARIANCE < 3e-5
    assert 1 < DEAD_RANK < 1.3
    for alive in (cloud(3e-5), flat(0.035)):
        assert check_spread(alive, 1) == embedding_spread(alive)
    for dead in (cloud(4e-6), flat(0.001)):
        with pytest.raises(ScanError, match="collapsed"):
            check_spread(dead, 1)


@pytest.mark.parametrize("shape", [(2, 8), (3, 8), (64, 1), (64, 2)])
def test_few_images_or_dimensions_are_not_taken_for_a_line(shape):
    line = torch.linspace(-1, 1, shape[0])[:, None] * torch.ones(shape)
    assert spread(line)[1] == pytest.approx(1, abs=1e-3)
    check_spread(line, 1)
    with pytest.raises(ScanError, match="collapsed"):
        check_spread(torch.ones(shape), 1)


# --- Trainings


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_training_that_an_absurd_rate_kills_ends_with_that_error(fp32, method):
    """Every value stays finite; the loss is log(2B-1), or log(1+Q), of vectors all alike."""
    sgd = optimizer(name="sgd", lr={"simclr": 100.0, "moco": 1000.0}[method])
    loop = run_loop(method, *start_loop(method, fp32, optimizer=sgd, epochs=20), fp32)
    refused(lambda: list(loop), "collapsed in epoch")


@pytest.mark.parametrize("method", PRETEXTS)
def test_a_network_that_makes_all_images_alike_ends_in_its_first_epoch(fp32, method):
    """Its last layer's weights are 0, or what it embeds by is, and the rate is as good as 0."""

    state, settings = start_loop(method, fp32, optimizer=change(SGD, lr=1e-30))
    *_, layer = state.module.head.modules() if hasattr(settings, "projection") else state.module.backbone.norms
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(0.5)
    refused(lambda: list(run_loop(method, state, settings, fp32)), "collapsed in epoch 1", "0.0e+00")


@pytest.mark.parametrize("name", ["adam", "sgd", "lars", "muon"])
@pytest.mark.parametrize("method", PRETEXTS)
@pytest.mark.slow
def test_a_training_that_lives_goes_on(fp32, method, name):
    lr = {"adam": 1e-2, "sgd": 0.1, "lars": 1.0, "muon": 1e-2}[name]
    values = {"optimizer": optimizer(name=name, lr=lr), "epochs": 5}
    found = epochs_of(run_loop(method, *start_loop(method, fp32, **values), fp32))
    assert len(found) == 5
    assert all(0 < values["embedding_variance"] <= 1 for values in found)
    assert all(1 < values["effective_rank"] <= 16 for values in found)
