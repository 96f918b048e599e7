"""Groups from stored embeddings: what each method proposes, and which proposal is kept."""

import functools

import numpy as np
import pytest
import torch

from scan_core.clustering import candidates as module
from scan_core.clustering import heads as heads_module
from scan_core.clustering.candidates import UNEQUAL, Candidates, choose, kept_head, propose
from scan_core.clustering.consensus import agreement, consensus
from scan_core.clustering.heads import assign, new_heads
from tests.scan_core.clustering.test_spectral import groups, mined, one_cluster_per_group
from tests.tiny import frozen_settings, refused

NAMES = ["k-means", "graph", "graph, SCAN loss", UNEQUAL, *["SCAN loss"] * 3, "consensus", "consensus, SCAN loss"]
BY_METHOD = {"kmeans": NAMES[:1], "graph": NAMES[1:4], "scan": NAMES[4:], "temi": ["TEMI"], "turtle": ["TURTLE"]}
SAID = ["k-means", "graph", "SCAN loss", "consensus", "TEMI", "TURTLE"]


def proposed(sizes=(30, 30, 30), seed=0, **values):
    points, labels = groups(sizes)
    said = []
    return propose(points, mined(points, 5), frozen_settings(**values), seed, said.append), points, labels, said


def test_every_method_finds_plain_groups():
    found, points, labels, said = proposed()
    assert found.names == NAMES and said == SAID[:4]
    assigned = assign(torch.from_numpy(points), found.joined()).numpy()
    for name, row in zip(NAMES, assigned, strict=True):
        assert name == "SCAN loss" or one_cluster_per_group(row, labels), name
    assert found.agreement == agreement(assigned, NAMES, 3, UNEQUAL)
    shares = [share for name, share in zip(NAMES, found.agreement, strict=True) if name != UNEQUAL]
    assert found.agreement[found.kept] == max(shares) and found.names[found.kept] != UNEQUAL


@pytest.mark.parametrize("wanted", [0.45, 0.8])
def test_the_kept_head_is_as_confident_on_average_as_it_agrees_and_keeps_each_cluster(wanted):
    """Scattered points: on those that are far apart no temperature would do."""
    points = torch.nn.functional.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))
    weight, _ = new_heads(1, 3, 8, torch.Generator().manual_seed(1))
    heads = weight, torch.tensor([[0.02, -0.05, 0.03]])
    found = Candidates(["graph"], [heads], [wanted])
    with torch.no_grad():
        given = kept_head(found, points)(points)[0]
    assert given.softmax(dim=1).amax(dim=1).mean().item() == pytest.approx(wanted, abs=1e-4)
    assert torch.equal(given.argmax(dim=1), assign(points, heads)[0])
    plain = points @ heads[0][0].T + heads[1][0]
    torch.testing.assert_close(given / given[0, 0], plain / plain[0, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("methods", [("scan",), ("graph", "scan")])
def test_the_consensus_is_of_all_heads_and_the_graph_has_half_as_many_votes(monkeypatch, methods):
    given = []

    def spied(proposals, votes, clusters, seed):
        given.append((proposals, votes))
        return consensus(proposals, votes, clusters, seed)

    monkeypatch.setattr(module, "consensus", spied)
    found, points, _, _ = proposed(methods=methods)
    ((proposals, votes),) = given
    assigned = assign(torch.from_numpy(points), found.joined()).numpy()
    heads = [row for name, row in zip(found.names, assigned, strict=True) if name == "SCAN loss"]
    assert np.array_equal(proposals[:3], np.stack(heads))
    assert votes == ([1.0, 1.0, 1.0, 1.5] if "graph" in methods else [1.0, 1.0, 1.0]) and len(proposals) == len(votes)


def test_of_very_many_images_the_first_are_landmarks_from_which_all_are_grouped(monkeypatch):
    points, labels = groups((40, 40, 40))
    order = np.random.default_rng(0).permutation(120)
    points, labels = points[order], labels[order]
    seen = []
    monkeypatch.setattr(module, "LANDMARKS", 50)
    monkeypatch.setattr(heads_module, "BLOCK", 32)
    monkeypatch.setattr(module, "GRAPH_NEIGHBORS", 5)
    for name in ("kmeans_clusters", "spectral_clusters", "consensus"):
        monkeypatch.setattr(module, name, counted(getattr(module, name), seen))
    found = propose(points, mined(points, 5), frozen_settings(), 0, lambda _: None)
    assert seen == [(50, 8), (50, 5), (4, 50)]
    for name, row in zip(NAMES, assign(torch.from_numpy(points), found.joined()).numpy(), strict=True):
        assert name in ("SCAN loss", UNEQUAL) or one_cluster_per_group(row, labels), name


def counted(function, seen):
    def run(given, *rest):
        seen.append(given.shape)
        return function(given, *rest)

    return run


def test_the_head_of_the_largest_agreement_is_kept(monkeypatch):
    monkeypatch.setattr(module, "agreement", lambda *_: [0.1, 0.2, 0.3, 0.95, 0.1, 0.9, 0.2, 0.8, 0.7])
    monkeypatch.setattr(module, "BETTER", float("inf"))
    assert proposed()[0].kept == 5


def test_the_head_without_a_preference_is_kept_if_the_graph_is_cut_less_and_only_then():
    """Two groups of 90 and 30; the heads cut the large one in halves."""
    points, labels = groups((90, 30))
    near, halves = mined(points, 5), np.where(labels == 1, 2, np.arange(120) % 2)
    found = Candidates(["graph", "SCAN loss", UNEQUAL], agreement=[0.7, 0.8, 0.1])
    assert choose(found, np.stack([halves, halves, labels]), near) == 2
    assert choose(found, np.stack([halves, labels, labels]), near) == 1, "no better"
    assert choose(found, np.stack([halves, labels, halves]), near) == 1
    assert choose(found, np.stack([halves, halves, labels]), None) == 1


def test_the_head_without_a_preference_has_no_vote():
    one, other, odd = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), np.array([0, 1, 0, 1])
    assigned = np.stack([one, other, odd])
    assert agreement(assigned, ["a", "b", "c"], 2, "c")[:2] == agreement(assigned[:2], ["a", "b"], 2)
    assert agreement(assigned, ["a", "b", "c"], 2, "c")[2] == agreement(assigned, ["a", "b", "c"], 2)[2]


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(heads_module, "CLASSIFIER_STEPS", 20)
    monkeypatch.setattr(module, "FROM_CLUSTERS_STEPS", 5)
    for name in ("temi_clusters", "turtle_clusters"):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), steps=5))


@pytest.mark.parametrize("method", BY_METHOD)
def test_a_method_alone_proposes_what_is_its_own(method, few_steps):
    found, _, _, said = proposed(methods=(method,))
    assert found.names == BY_METHOD[method] and said == [name for name in SAID if name in found.names]
    assert len(found.agreement) == len(found.names) and (len(found.names) > 1 or found.agreement == [1.0])


def test_further_methods_come_last_and_change_no_other_proposal(few_steps):
    every = proposed(methods=("turtle", "temi", "scan", "graph", "kmeans"))[0]
    assert every.names == [*NAMES, "TEMI", "TURTLE"] and len(every.agreement) == len(every.names)
    for one, other in zip(proposed()[0].joined(), every.joined(), strict=True):
        assert torch.equal(one, other[: len(NAMES)])


def test_temi_and_turtle_are_given_the_settings(few_steps, monkeypatch):
    seen = []

    def clusters(*given):
        seen.append(given[:-1])
        return labels

    monkeypatch.setattr(module, "temi_clusters", clusters)
    monkeypatch.setattr(module, "turtle_clusters", clusters)
    _, labels = groups((30, 30, 30))
    _, points, _, _ = proposed(methods=("temi", "turtle"), heads=7, neighbors=2)
    (rows, near, *numbers), (spaces, count) = seen
    assert np.array_equal(rows.numpy(), points) and np.array_equal(near.numpy(), mined(points, 2))
    assert numbers == [3, 7] and count == 3 and [np.array_equal(each.numpy(), points) for each in spaces] == [True]


def test_the_seed_decides_everything():
    one, again, other = (proposed(seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.joined(), again.joined(), strict=True))
    assert not torch.equal(one.joined()[0], other.joined()[0])


def test_too_few_images_or_neighbors_are_refused_and_as_many_clusters_as_images_have_no_graph():
    points, _ = groups((2, 1))
    near = mined(points, 2)

    def run(**values):
        return propose(points, near, frozen_settings(**values), 0, lambda _: None)

    refused(lambda: run(num_clusters=4), "cluster.num_clusters is 4", "3 images")
    refused(lambda: run(neighbors=3), "cluster.neighbors is 3", "2 neighbors were mined")
    assert "graph" not in run(num_clusters=3, neighbors=2).names
    refused(lambda: run(neighbors=2, methods=("graph",)), "cluster.methods is graph alone", "at most 2")
