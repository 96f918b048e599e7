"""Scores of a split: what is there with labels, without, and with some."""

import numpy as np
import pytest

from scan_core.evaluation.metrics import accuracy, clustering_metrics, neighbor_purity, top_accuracy
from scan_core.evaluation.scores import (
    accuracy_by_epoch,
    accuracy_of_surest,
    kmeans_scores,
    model_scores,
    predicted_classes,
    purity_scores,
)


def example(count=40, clusters=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(4, size=count), rng.dirichlet(np.ones(clusters), size=count)


def blobs(labels, seed=0, spread=0.05):
    """Features (N,2) around a corner of a square for each class."""
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, spread, (len(labels), 2))
    return (corners[labels] + noise).astype(np.float32)


# --- model_scores


def test_a_models_scores_are_those_of_its_likeliest_clusters():
    labels, probabilities = example()
    scores = model_scores(labels, probabilities, 0.5)
    clusters = probabilities.argmax(axis=1)
    wanted = clustering_metrics(labels, clusters, 6) | {"top5": top_accuracy(labels, probabilities, 5)}
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value), name
    assert scores.keys() == wanted.keys() | {"clusters_alive", "confident_share"}
    assert "acc_many_to_one" in scores


def test_without_labels_there_is_what_needs_none():
    _, probabilities = example()
    assert model_scores(np.full(40, -1), probabilities, 0.5).keys() == {"clusters_alive", "confident_share"}


def test_items_without_a_label_count_only_where_none_is_needed():
    labels, probabilities = example(clusters=16)  # so many that five of them do not say everything
    half = np.where(np.arange(40) % 2 == 0, labels, -1)
    scores, known = model_scores(half, probabilities, 0.5), model_scores(labels[::2], probabilities[::2], 0.5)
    for name in ("acc", "nmi", "ari", "ami", "acc_many_to_one", "top5"):
        assert scores[name] == pytest.approx(known[name]), name
    whole = model_scores(labels, probabilities, 0.5)
    assert scores["clusters_alive"] == whole["clusters_alive"]
    assert scores["confident_share"] == whole["confident_share"]


def test_clusters_alive_and_confident_share_are_counted():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.75, 0.25, 0.0], [0.1, 0.0, 0.9]])
    scores = model_scores(np.full(4, -1), probabilities, 0.75)
    assert scores == {"clusters_alive": 2, "confident_share": 0.5}  # 0.75 itself is not above the threshold


@pytest.mark.parametrize(("clusters", "there"), [(2, False), (4, False), (5, True), (6, True)])
def test_top_5_is_there_from_five_clusters_on(clusters, there):
    labels, probabilities = example(clusters=clusters)
    assert ("top5" in model_scores(labels, probabilities, 0.5)) is there


# --- kmeans_scores


def test_kmeans_finds_what_is_apart():
    labels, others = (np.arange(count) % 4 for count in (60, 20))
    splits = {"train": (blobs(labels), labels), "val": (blobs(others, seed=1), others)}
    scores = kmeans_scores(blobs(labels), splits, clusters=4, runs=4)
    assert scores.keys() == {"train", "val"}
    for split in scores.values():
        assert split["acc"] > 0.7  # a bad start may join two corners in some runs
        assert split["clusters_alive"] == 4
        assert {f"{name}_std" for name in split if not name.endswith("_std")} <= split.keys()


def test_kmeans_adds_the_sums_of_two_threads_at_most(monkeypatch):
    """Of more the order, and so the last bits, would be that in which they end."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_info, threadpool_limits

    seen, fit = [], KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, *args: (
        seen.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"), fit(self, *args)
    )[1])  # fmt: skip
    labels = np.arange(40) % 4
    with threadpool_limits(5, "openmp"):
        kmeans_scores(blobs(labels), {"train": (blobs(labels), labels)}, clusters=4, runs=2)
    assert set(seen) == {2}


def test_kmeans_scores_are_mean_and_sample_deviation_of_runs_that_differ():
    rng = np.random.default_rng(0)
    labels, train = rng.integers(4, size=50), rng.normal(size=(50, 3)).astype(np.float32)
    splits = {"train": (train, labels)}
    three = kmeans_scores(train, splits, clusters=4, runs=3)["train"]
    two = kmeans_scores(train, splits, clusters=4, runs=2)["train"]
    # The first two runs are the same in both, so each run's value can be told from means and deviations.
    middle, spread = two["acc"], two["acc_std"] / 2**0.5
    runs = [middle - spread, middle + spread, 3 * three["acc"] - 2 * middle]
    assert three["acc_std"] == pytest.approx(np.std(runs, ddof=1))
    assert three["acc_std"] > 1e-3
    assert kmeans_scores(train, splits, clusters=4, runs=3)["train"] == three


def test_kmeans_is_fitted_on_train_alone():
    """Val lies far away: all of it is nearest to one cluster."""
    labels = np.arange(40) % 4
    splits = {"val": (blobs(labels, spread=0.001) / 100 + 50, labels)}
    assert kmeans_scores(blobs(labels), splits, clusters=4, runs=2)["val"]["clusters_alive"] == 1


def test_kmeans_without_labels_counts_clusters():
    scores = kmeans_scores(blobs(np.arange(40) % 4), {"train": (blobs(np.arange(40) % 4), np.full(40, -1))}, 4, 2)
    assert scores["train"].keys() == {"clusters_alive", "clusters_alive_std"}


@pytest.mark.filterwarnings("error")
def test_kmeans_of_fewer_images_than_clusters_is_no_error():
    labels = np.array([0, 1, 2])
    scores = kmeans_scores(blobs(labels), {"train": (blobs(labels), labels)}, clusters=10, runs=2)["train"]
    assert scores["acc"] == 1
    same = np.zeros((12, 2), dtype=np.float32)
    assert kmeans_scores(same, {"train": (same, np.zeros(12, int))}, clusters=4, runs=2)["train"]["clusters_alive"] == 1


# --- The rest


def test_purity_is_scored_as_far_as_neighbors_were_mined():
    rng = np.random.default_rng(0)
    labels, neighbors = rng.integers(3, size=30), rng.integers(30, size=(30, 12))
    scores = purity_scores(labels, neighbors)
    assert scores == {f"purity_{k}": neighbor_purity(labels, neighbors, k) for k in (1, 5, 10)}
    assert purity_scores(np.full(30, -1), neighbors) == {}


def test_there_is_no_purity_where_no_two_labelled_images_are_neighbors():
    nearest = np.array([[1, 2], [0, 2], [3, 1], [2, 0]])
    assert purity_scores(np.array([5, -1, -1, 7]), nearest) == {}
    assert purity_scores(np.array([5, -1, -1, -1]), nearest) == {}
    assert purity_scores(np.array([-1, -1, 5, 5]), nearest) == {"purity_1": 1.0}


def test_accuracy_by_epoch_is_that_of_each():
    rng = np.random.default_rng(0)
    labels, assignments = rng.integers(-1, 3, size=30), rng.integers(4, size=(5, 30))
    known = labels >= 0
    wanted = [(epoch, accuracy(labels[known], each[known], 4)) for epoch, each in enumerate(assignments)]
    assert list(accuracy_by_epoch(labels, assignments, 4)) == wanted
    assert list(accuracy_by_epoch(np.full(30, -1), assignments, 4)) == []


def test_the_surest_come_first_and_are_right_as_often_as_they_are():
    """40 items of 4 equal classes, each a cluster; the half that is less sure is one cluster too far."""
    labels = np.tile(np.arange(4), 10) + 5
    wrong = np.arange(40) >= 32  # the last 8: 20 %
    clusters = (labels - 5 + wrong) % 4
    probabilities = np.full((40, 4), 0.0)
    probabilities[np.arange(40), clusters] = np.where(wrong, 0.5, 0.6) + np.arange(40) / 1000
    order = np.random.default_rng(0).permutation(40)
    found = dict(accuracy_of_surest(labels[order], probabilities[order]))
    assert list(found) == list(range(5, 101, 5))
    assert [found[percent] for percent in (5, 50, 80)] == [1, 1, 1]
    assert found[90] == 32 / 36
    assert found[100] == accuracy(labels, clusters, 4) == 32 / 40


def test_a_cluster_without_a_class_is_never_right():
    labels = np.array([3, 3, 3, 3])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.0, 1.0]])
    assert dict(accuracy_of_surest(labels, probabilities))[25] == 0
    assert dict(accuracy_of_surest(labels, probabilities))[100] == 0.75


def test_of_few_items_the_surest_are_at_least_one():
    found = list(accuracy_of_surest(np.array([0, 1, -1]), np.array([[0.6, 0.4], [0.1, 0.9], [0.0, 1.0]])))
    assert len(found) == 20
    assert {acc for _, acc in found} == {1.0}
    assert list(accuracy_of_surest(np.full(3, -1), np.eye(3))) == []


def test_predicted_classes_are_matched_on_the_items_that_have_a_label():
    labels, clusters = np.array([5, 5, -1, -1, -1, 8]), np.array([2, 2, 0, 0, 0, 0])
    assert predicted_classes(labels, clusters, 3) == {2: 5, 0: 8}
    assert predicted_classes(np.full(6, -1), clusters, 3) == {}


def test_a_cluster_gets_no_class_of_which_it_holds_nothing():
    """The matching pairs what is left over, with nothing in common."""
    assert predicted_classes(np.array([5, 6, 7]), np.array([2, 2, 2]), 4) in ({2: 5}, {2: 6}, {2: 7})
