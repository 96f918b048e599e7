"""Scores of a split: with labels, without labels, and with some of them."""

from dataclasses import replace

import numpy as np
import pytest

from scan_core.evaluation.metrics import accuracy, clustering_metrics, neighbor_purity, top_accuracy
from scan_core.evaluation.probes import probe_scores
from scan_core.evaluation.quality import quality_scores
from scan_core.evaluation.scores import (
    COVERAGES,
    Prediction,
    SplitData,
    accuracy_at_coverage,
    accuracy_by_epoch,
    fit_kmeans,
    kmeans_scores,
    model_scores,
    predicted_classes,
    purity_scores,
    score_splits,
)

WITHOUT_LABELS = {"clusters_used", "confident_share"}


def example(count=40, clusters=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(4, size=count), rng.dirichlet(np.ones(clusters), size=count)


def blobs(labels, seed=0, spread=0.05):
    """Features (N,2) around a corner of a square for each class."""
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, spread, (len(labels), 2))
    return (corners[labels] + noise).astype(np.float32)


def one_hot(clusters, count):
    return Prediction.of(np.eye(count)[clusters])


# --- All scores of a run


def split(rows, seed, heads=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=len(rows))
    predictions = {
        name: Prediction.of(rng.dirichlet(np.ones(6), size=len(rows)).astype(np.float32))
        for name in ("cluster", "selflabel")
    }
    neighbors = rng.integers(len(rows), size=(len(rows), 12))
    pixels = rng.random((len(rows), 3)).astype(np.float32)
    return SplitData(np.array(rows), labels, pixels, blobs(labels, seed), neighbors, predictions, heads)


TRAIN, VAL = split(range(60), 0), split(range(50, 90), 1, heads=np.random.default_rng(0).integers(6, size=(3, 40)))


def test_the_scores_of_both_splits_are_those_of_their_parts():
    metrics = score_splits({"train": TRAIN, "val": VAL}, 6, 0.5, 5, 3, probes=False)
    for name, data in {"train": TRAIN, "val": VAL}.items():
        assert metrics[name] == {
            "kmeans_pixels": kmeans_scores(fit_kmeans(TRAIN.pixels, 6, 3), data.pixels, data.labels, 6),
            "kmeans_embeddings": kmeans_scores(fit_kmeans(TRAIN.embeddings, 6, 3), data.embeddings, data.labels, 6),
            "cluster": model_scores(data.labels, data.predictions["cluster"], 6, 0.5),
            "selflabel": model_scores(data.labels, data.predictions["selflabel"], 6, 0.5),
            "neighbors": purity_scores(data.labels, data.neighbors),
            "quality": quality_scores(
                data.predictions["selflabel"].cluster, data.embeddings, data.neighbors[:, :5], data.heads
            ),
        }
    assert "heads_ari" in metrics["val"]["quality"] and metrics["val"]["cluster"] != metrics["val"]["selflabel"]


def test_probes_are_added_to_val_and_are_not_fitted_on_its_images():
    def score(train, val):
        return score_splits({"train": train, "val": val}, 6, 0.5, 5, 2, probes=True)

    metrics = score(TRAIN, VAL)
    wanted = probe_scores(TRAIN.embeddings[:50], TRAIN.labels[:50], VAL.embeddings, VAL.labels)
    assert metrics["val"]["uses_labels"] == wanted
    assert "uses_labels" not in metrics["train"]
    assert "uses_labels" not in score(TRAIN, replace(VAL, labels=np.full(40, -1)))["val"]


# --- Models


def test_a_prediction_is_the_most_probable_clusters():
    prediction = Prediction.of(np.float32([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4]]))
    assert prediction.clusters.tolist() == [[1, 2, 0], [2, 0, 1]]
    assert prediction.probabilities.tolist() == np.float32([[0.5, 0.4, 0.1], [0.4, 0.3, 0.3]]).tolist()
    assert prediction.cluster.tolist() == [1, 2] and prediction.confidence.dtype == np.float32
    assert Prediction.of(np.eye(9)).clusters.shape == (9, 5)


@pytest.mark.parametrize("clusters", [4, 5, 6, 16])
def test_a_models_scores_are_those_of_its_most_probable_clusters(clusters):
    labels, probabilities = example(clusters=clusters)
    prediction = Prediction.of(probabilities)
    wanted = clustering_metrics(labels, probabilities.argmax(axis=1), clusters)
    if clusters >= 5:
        wanted["top5"] = top_accuracy(labels, prediction.clusters, clusters)
    scores = model_scores(labels, prediction, clusters, 0.5)
    assert {name: scores[name] for name in scores.keys() - WITHOUT_LABELS} == pytest.approx(wanted)
    # Unlabeled images count only for the scores that need no label.
    some = model_scores(np.where(np.arange(40) % 2 == 0, labels, -1), prediction, clusters, 0.5)
    known = model_scores(labels[::2], Prediction.of(probabilities[::2]), clusters, 0.5)
    assert some == known | {name: scores[name] for name in WITHOUT_LABELS}


def test_clusters_used_and_confident_share_need_no_labels():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.75, 0.25, 0.0], [0.1, 0.0, 0.9]])
    scores = model_scores(np.full(4, -1), Prediction.of(probabilities), 3, 0.75)
    assert scores == {"clusters_used": 2, "confident_share": 0.5}  # 0.75 itself is not above the threshold


# --- k-means


def test_kmeans_finds_separate_blobs_and_is_fitted_on_train_alone():
    labels, others = (np.arange(count) % 4 for count in (60, 20))
    fits = fit_kmeans(blobs(labels), 4, runs=4)
    scores = kmeans_scores(fits, blobs(others, seed=1), others, 4)
    assert scores["acc"] > 0.7  # some runs may start badly and join two corners
    assert scores["clusters_used"] == 4
    far = blobs(others, spread=0.001) / 100 + 50  # all of them are nearest to one center
    assert kmeans_scores(fits, far, others, 4)["clusters_used"] == 1
    assert kmeans_scores(fits, far, np.full(20, -1), 4).keys() == {"clusters_used", "clusters_used_std"}


def test_kmeans_adds_the_sums_of_two_threads_at_most(monkeypatch):
    """With more threads the order of the sums, and so the last bits, would depend on which thread ends first."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_info, threadpool_limits

    seen, fit = [], KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, *args: (
        seen.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"), fit(self, *args)
    )[1])  # fmt: skip
    with threadpool_limits(5, "openmp"):
        fit_kmeans(blobs(np.arange(40) % 4), 4, runs=2)
    assert set(seen) == {2}


def test_kmeans_scores_are_mean_and_sample_deviation_of_runs_that_differ():
    rng = np.random.default_rng(0)
    labels, train = rng.integers(4, size=50), rng.normal(size=(50, 3)).astype(np.float32)
    fits = fit_kmeans(train, 4, runs=3)
    scores = kmeans_scores(fits, train, labels, 4)
    runs = [accuracy(labels, fit.labels_, 4) for fit in fits]
    assert len(set(runs)) > 1
    assert (scores["acc"], scores["acc_std"]) == pytest.approx((np.mean(runs), np.std(runs, ddof=1)))
    assert {name for name in scores if name.endswith("_std")} == {f"{n}_std" for n in scores if not n.endswith("_std")}
    assert kmeans_scores(fit_kmeans(train, 4, runs=3), train, labels, 4) == scores


@pytest.mark.filterwarnings("error")
def test_kmeans_with_fewer_images_than_clusters_is_no_error():
    three, same = blobs(np.arange(3)), np.zeros((12, 2), dtype=np.float32)
    assert kmeans_scores(fit_kmeans(three, 10, 2), three, np.arange(3), 10)["acc"] == 1
    assert kmeans_scores(fit_kmeans(same, 4, 2), same, np.zeros(12, int), 4)["clusters_used"] == 1


# --- Purity, accuracy by epoch and at coverage, classes


def test_purity_is_scored_up_to_the_number_of_mined_neighbors():
    rng = np.random.default_rng(0)
    labels, neighbors = rng.integers(3, size=30), rng.integers(30, size=(30, 12))
    assert purity_scores(labels, neighbors) == {
        f"purity_{k}": neighbor_purity(labels, neighbors, k) for k in (1, 5, 10)
    }


@pytest.mark.parametrize(
    ("labels", "wanted"), [([5, -1, -1, 7], {}), ([-1] * 4, {}), ([-1, -1, 5, 5], {"purity_1": 1.0})]
)
def test_purity_is_absent_if_no_two_labeled_images_are_neighbors(labels, wanted):
    assert purity_scores(np.array(labels), np.array([[1, 2], [0, 2], [3, 1], [2, 0]])) == wanted


def test_accuracy_by_epoch_is_that_of_each_epoch():
    rng = np.random.default_rng(0)
    labels, assignments = rng.integers(-1, 3, size=30), rng.integers(4, size=(5, 30))
    known = labels >= 0
    wanted = [accuracy(labels[known], each[known], 4) for each in assignments]
    assert accuracy_by_epoch(labels, assignments, 4) == wanted
    assert accuracy_by_epoch(np.full(30, -1), assignments, 4) == []


def test_accuracy_at_coverage_is_that_of_the_most_confident_images():
    """40 images of 4 classes, each class a cluster; the 8 least confident images are in a wrong cluster."""
    labels = np.tile(np.arange(4), 10) + 5
    wrong = np.arange(40) >= 32
    clusters = (labels - 5 + wrong) % 4
    probabilities = np.zeros((40, 4))
    probabilities[np.arange(40), clusters] = np.where(wrong, 0.5, 0.6) + np.arange(40) / 1000
    order = np.random.default_rng(0).permutation(40)
    curve = accuracy_at_coverage(labels[order], Prediction.of(probabilities[order]), 4)
    at = dict(zip(COVERAGES, curve, strict=True))
    assert list(at) == list(range(5, 101, 5))
    assert (at[5], at[50], at[80], at[90]) == (1, 1, 1, 32 / 36)
    assert at[100] == accuracy(labels, clusters, 4) == 32 / 40


def test_at_coverage_a_cluster_without_a_class_is_wrong_and_at_least_one_image_counts():
    labels = np.array([3, 3, 3, 3])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.0, 1.0]])
    curve = accuracy_at_coverage(labels, Prediction.of(probabilities), 2)
    assert (curve[0], curve[4], curve[-1]) == (0, 0, 0.75)  # at 5, 25 and 100 %
    assert accuracy_at_coverage(np.array([0, 1, -1]), Prediction.of(np.eye(3)), 3) == [1.0] * 20
    assert accuracy_at_coverage(np.full(3, -1), Prediction.of(np.eye(3)), 3) == []


@pytest.mark.parametrize(
    ("labels", "clusters", "wanted"),
    [
        ([5, 5, -1, -1, -1, 8], [2, 2, 0, 0, 0, 0], [{2: 5, 0: 8}]),  # matched on labeled images alone
        ([-1] * 6, [2, 2, 0, 0, 0, 0], [{}]),
        ([5, 6, 7], [2, 2, 2], [{2: 5}, {2: 6}, {2: 7}]),  # a cluster gets no class of which it holds no image
    ],
)
def test_predicted_classes_are_matched_one_to_one(labels, clusters, wanted):
    assert predicted_classes(np.array(labels), one_hot(clusters, 4), 4) in wanted
