"""Metrics as a table: properties all must have; brute force; clusters and classes that do not pair up."""

import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from scan_core.evaluation import metrics
from scan_core.evaluation.metrics import (
    accuracy,
    clustering_metrics,
    many_to_one_accuracy,
    match_clusters,
    neighbor_purity,
    rank_clusters,
    top_accuracy,
)


def ranked(clusters, num_clusters, k):
    """(N,k) clusters, the item's own first."""
    return rank_clusters(np.eye(num_clusters)[clusters], k)


def next_in_cluster(clusters):
    """(N,1) the next item of the same cluster, as if it were the nearest neighbor."""
    nearest = np.arange(len(clusters))
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        nearest[members] = np.roll(members, -1)
    return nearest[:, None]


# Scores of (labels, clusters, C). Every public function of the module that scores must be here.
METRICS = {
    "accuracy": accuracy,
    "many_to_one_accuracy": many_to_one_accuracy,
    "top_accuracy 1": lambda labels, clusters, c: top_accuracy(labels, ranked(clusters, c, 1), c),
    "top_accuracy 5": lambda labels, clusters, c: top_accuracy(labels, ranked(clusters, c, 5), c),
    **{f"clustering_metrics {key}": lambda *given, key=key: clustering_metrics(*given)[key]
       for key in ("acc", "nmi", "ari", "ami")},
    "clustering_metrics acc_many_to_one": lambda labels, clusters, c: clustering_metrics(
        labels, clusters, max(c, len(np.unique(labels)) + 1)
    )["acc_many_to_one"],
    "neighbor_purity": lambda labels, clusters, _: neighbor_purity(labels, next_in_cluster(clusters), 1),
}  # fmt: skip
ADJUSTED = ("clustering_metrics ari", "clustering_metrics ami")  # 0 by chance, below 0 if worse
EVERY = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def example(count=60, classes=4, clusters=4, seed=0):
    """Labels that are 0..classes-1, and clusters that follow them in three of four cases."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    noise = rng.integers(clusters, size=count)
    return labels, np.where(rng.random(count) < 0.75, labels % clusters, noise)


def accuracy_by_brute_force(labels, clusters, num_clusters):
    """The best of all ways to give each cluster a class of its own, or none."""
    classes = np.unique(labels).tolist()
    choices = classes + [None] * max(0, num_clusters - len(classes))
    best = 0.0
    for chosen in itertools.permutations(choices, num_clusters):
        best = max(best, np.mean([chosen[cluster] == label for label, cluster in zip(labels, clusters, strict=True)]))
    return best


# --- All metrics


def test_the_table_is_complete():
    """Every public function that returns numbers, and every key of the one that returns several."""
    scoring = {
        name
        for name, function in inspect.getmembers(metrics, inspect.isfunction)
        if function.__module__ == metrics.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation in (float, dict[str, float])
    }
    assert scoring == {name.split()[0] for name in METRICS}
    labels, clusters = example(classes=3, clusters=5)
    keys = {name.split()[1] for name in METRICS if name.startswith("clustering_metrics")}
    assert set(clustering_metrics(labels, clusters, 5)) == keys


@EVERY
@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (3, 5), (5, 3)])
def test_renaming_clusters_changes_nothing(metric, classes, clusters):
    labels, assigned = example(classes=classes, clusters=clusters)
    wanted = metric(labels, assigned, clusters)
    for seed in range(5):
        names = np.random.default_rng(seed).permutation(clusters)
        assert metric(labels, names[assigned], clusters) == pytest.approx(wanted, abs=1e-12)


@EVERY
def test_renaming_classes_changes_nothing(metric):
    """Also to values that are not 0..C-1."""
    labels, clusters = example()
    wanted = metric(labels, clusters, 4)
    for names in ([3, 0, 2, 1], [7, 100, 12, 40]):
        assert metric(np.array(names)[labels], clusters, 4) == pytest.approx(wanted, abs=1e-12)


@EVERY
def test_the_order_of_the_items_changes_nothing(metric):
    labels, clusters = example(count=12, classes=3, clusters=3)
    if metric is METRICS["neighbor_purity"]:
        labels = clusters  # whoever is next in a cluster depends on the order
    order = np.random.default_rng(0).permutation(len(labels))
    assert metric(labels[order], clusters[order], 3) == pytest.approx(metric(labels, clusters, 3), abs=1e-12)


@EVERY
@pytest.mark.parametrize("unused", [0, 3])
def test_clusters_that_are_the_classes_score_1(metric, unused):
    """Under other names, and also where more clusters could have been used."""
    labels, _ = example()
    names = np.random.default_rng(1).permutation(4 + unused)[:4]
    assert metric(labels, names[labels], 4 + unused) == pytest.approx(1)


@EVERY
def test_clusters_that_are_not_the_classes_score_less(metric):
    labels, clusters = example()
    assert metric(labels, clusters, 4) < 0.95 or metric is METRICS["top_accuracy 5"]  # of 4 clusters: always right


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("clusters", [2, 4, 9])
def test_scores_are_between_0_and_1_also_for_a_single_cluster(name, clusters):
    lowest = -1 if name in ADJUSTED else 0
    for seed in range(5):
        labels, assigned = example(clusters=clusters, seed=seed)
        assert lowest <= METRICS[name](labels, np.roll(assigned, seed), clusters) <= 1
    assert lowest <= METRICS[name](labels, np.full(len(labels), clusters - 1), clusters) <= 1


# --- Matching


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 4), st.integers(0, 3)), min_size=1, max_size=20))
def test_accuracy_is_that_of_brute_force_for_any_items(items):
    labels, clusters = np.array(items).T
    assert accuracy(labels, clusters, 4) == pytest.approx(accuracy_by_brute_force(labels, clusters, 4))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_matching_is_one_to_one_and_is_what_accuracy_counts(items):
    labels, clusters = np.array(items).T
    matched = match_clusters(labels, clusters, 6)
    assert len(set(matched.values())) == len(matched) == min(6, len(np.unique(labels)))
    assert set(matched) <= set(range(6))
    assert set(matched.values()) <= set(labels.tolist())
    right = [matched.get(cluster) == label for label, cluster in items]
    assert accuracy(labels, clusters, 6) == pytest.approx(np.mean(right))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_many_to_one_is_the_majority_vote_and_never_below_one_to_one(items):
    labels, clusters = np.array(items).T
    votes = {c: np.bincount(labels[clusters == c]).argmax() for c in np.unique(clusters)}
    wanted = np.mean([votes[cluster] == label for label, cluster in items])
    assert many_to_one_accuracy(labels, clusters, 6) == pytest.approx(wanted)
    assert many_to_one_accuracy(labels, clusters, 6) >= accuracy(labels, clusters, 6) - 1e-12


@pytest.mark.parametrize(("num_clusters", "there"), [(2, False), (3, False), (4, True)])
def test_many_to_one_is_reported_where_clusters_outnumber_classes(num_clusters, there):
    labels = np.array([0, 0, 5, 5, 9, 9])  # three classes, whatever their numbers
    assert ("acc_many_to_one" in clustering_metrics(labels, np.array([0, 1] * 3), num_clusters)) is there


def test_information_scores_are_scikit_learns():
    labels, clusters = example(clusters=6)
    scores = clustering_metrics(labels, clusters, 6)
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))
    assert scores["ami"] == pytest.approx(adjusted_mutual_info_score(labels, clusters))
    assert len({round(value, 6) for value in scores.values()}) == 5
    assert all(type(value) is float for value in scores.values())


# --- Top k


def random_probabilities(count=60, clusters=8, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(clusters), size=count)


@pytest.mark.parametrize("clusters", [2, 3, 4, 6])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_the_loop_over_its_definition(clusters, k):
    labels, _ = example(60, classes=4)
    probabilities = random_probabilities(60, clusters)
    matched = match_clusters(labels, probabilities.argmax(axis=1), clusters)
    correct = 0
    for label, each in zip(labels, probabilities, strict=True):
        top = sorted(range(clusters), key=lambda cluster: -each[cluster])[:k]
        correct += any(matched.get(cluster) == label for cluster in top)
    assert top_accuracy(labels, rank_clusters(probabilities, k), clusters) == pytest.approx(correct / 60)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_ranks_in_blocks_are_those_of_one_stable_sort(monkeypatch, count):
    monkeypatch.setattr(metrics, "ROWS_SORTED", 2)
    probabilities = np.random.default_rng(0).integers(0, 3, (count, 5)).astype(np.float32)  # with equal values
    wanted = np.array([sorted(range(5), key=lambda cluster: -row[cluster])[:3] for row in probabilities])
    assert np.array_equal(rank_clusters(probabilities, 3), wanted.reshape(count, 3))


def test_a_cluster_without_a_class_is_never_correct():
    """Negative labels included: no label may be mistaken for "no class"."""
    probabilities = np.eye(5)[[0, 0, 1, 2]]
    # Cluster 0 and one of 1 and 2 are matched to -1 and -2; the cluster of one image has no class.
    assert top_accuracy(np.array([-1, -1, -2, -2]), rank_clusters(probabilities, 1), 5) == pytest.approx(0.75)
    assert top_accuracy(np.array([-1, -1, -1, -1]), rank_clusters(np.eye(5)[:4], 1), 5) == pytest.approx(0.25)


# --- Purity


def test_purity_is_the_loop_over_its_definition():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, size=30)
    neighbors = np.array([rng.permutation(30)[:6] for _ in range(30)])
    for k in (1, 3, 6):
        pairs = [(labels[i], labels[j]) for i in range(30) for j in neighbors[i, :k]]
        known = [one == other for one, other in pairs if one >= 0 and other >= 0]
        assert neighbor_purity(labels, neighbors, k) == pytest.approx(np.mean(known))


def test_purity_without_labels_is_not_a_number():
    assert np.isnan(neighbor_purity(np.array([-1, -1]), np.array([[1], [0]]), 1))
