"""The report's tables and charts: what is there, in which order, and nothing where there is nothing."""

from collections import Counter

import numpy as np
import pytest

from pipeline.artifacts import STEPS
from pipeline.params import read_params
from pipeline.report import charts
from pipeline.report.charts import PRETEXT_LOSSES, confusion_order, draw_charts
from pipeline.report.page import QUALITY, quality_cell, quality_table, write_report
from pipeline.report.samples import draw_samples
from scan_core.evaluation.quality import quality_scores
from scan_core.settings import Pretext, variants
from tests.project import ROOT

HISTORIES = ("pretext", "cluster", "selflabel")
EMPTY = {name: [] for name in (*HISTORIES, "accuracy_cluster", "accuracy_selflabel", "confusion", "purity", "surest")}


def history(**columns):
    """Rows as they come from a CSV file: text."""
    length = len(next(iter(columns.values())))
    return [
        {"epoch": str(epoch + 1), **{name: str(values[epoch]) for name, values in columns.items()}}
        for epoch in range(length)
    ]


def sizes(train, val):
    return [
        {"cluster": cluster, "split": split, "images": images}
        for split, counts in (("train", train), ("val", val))
        for cluster, images in enumerate(counts)
    ]


def drawn(method="simclr", names=None, clusters=3, **plots):
    found = draw_charts(
        {**EMPTY, "sizes": sizes([3] * clusters, [1] * clusters), **plots}, names or {}, clusters, method
    )
    return {chart["title"]: chart for chart in found}


# --- Charts


def test_without_history_and_labels_only_the_sizes_are_drawn():
    assert list(drawn(method="none")) == ["Cluster sizes"]


@pytest.mark.parametrize("method", sorted(set(variants(Pretext)) - {"none"}))
def test_the_pretext_loss_is_named_by_its_method(method):
    rows = history(loss=[3, 2], embedding_variance=[0.5, 0.6], effective_rank=[4, 5])
    text = drawn(method, pretext=rows)["Pretext loss"]["text"]
    assert text.startswith(PRETEXT_LOSSES[method])
    assert ("NT-Xent" in text) is (method == "simclr")


def test_what_a_history_does_not_hold_is_not_drawn():
    assert "Spread of the embeddings" not in drawn(pretext=history(loss=[1, 2]))
    assert "Spread of the embeddings" in drawn(pretext=history(loss=[1, 2], effective_rank=[3, 4]))


def test_the_surest_images_are_drawn_where_there_are_labels():
    rows = [{"percent": percent, "cluster": 0.9, "selflabel": 0.95} for percent in (50, 100)]
    assert list(drawn(surest=rows)) == ["Accuracy of the surest images", "Cluster sizes"]


@pytest.mark.parametrize(("alive", "there"), [([3, 3], False), ([3, 2], True), ([2, 2], True)])
def test_clusters_in_use_are_drawn_where_one_was_empty(alive, there):
    rows = history(confident=[1, 2], agreement=[0.5, 0.9], clusters_alive=alive)
    assert ("Clusters in use" in drawn(selflabel=rows)) is there
    assert "Stability of the clusters in self-labelling" in drawn(selflabel=rows)


def test_charts_have_the_same_bytes_again():
    plots = {"pretext": history(loss=[3, 2], effective_rank=[4, 5]), "confusion": confusion([("a", "a"), ("b", "a")])}
    assert drawn(names={0: "a"}, **plots) == drawn(names={0: "a"}, **plots)


# --- Confusion


def confusion(pairs):
    return [{"actual": actual, "predicted": predicted} for actual, predicted in pairs]


def test_matched_clusters_come_first_and_then_those_left_over_by_their_commonest_class():
    pairs = Counter({
        ("b", "b"): 5, ("a", "a"): 4, ("c", "c"): 3, ("c", "cluster 0"): 2, ("a", "cluster 0"): 1,
        ("a", "cluster 5"): 2, ("b", "cluster 1"): 1,
    })  # fmt: skip
    actual, predicted, matched = confusion_order(pairs, {2: "b", 3: "a", 6: "c"}, 7)
    assert actual == ["a", "b", "c"] and matched == 3
    assert predicted == ["a", "b", "c", "cluster 5", "cluster 1", "cluster 0", "cluster 4"]  # 4 is empty


def test_classes_without_a_cluster_come_last():
    pairs = Counter({("a", "d"): 2, ("d", "d"): 3, ("b", "b"): 3, ("c", "b"): 1})
    assert confusion_order(pairs, {0: "d", 1: "b"}, 2) == (["b", "d", "a", "c"], ["b", "d"], 2)


@pytest.mark.parametrize(
    ("clusters", "classes", "said"),
    [(3, 3, None), (5, 3, "Right of the line"), (2, 3, "Below the line")],
)
def test_the_confusion_says_what_is_left_over(clusters, classes, said):
    names = {cluster: f"class {cluster}" for cluster in range(min(clusters, classes))}
    pairs = [(f"class {c % classes}", names.get(c % clusters, f"cluster {c % clusters}")) for c in range(30)]
    text = drawn(names=names, clusters=clusters, confusion=confusion(pairs))["Confusion"]["text"]
    assert [part for part in ("Right of the line", "Below the line") if part in text] == ([said] if said else [])


def labels_of(svg):
    """Numbers, class names and axis titles are written as comments beside their outlines."""
    return [line[5:-4] for line in svg.splitlines() if line.startswith("    <!-- ") or "<!-- " in line]


@pytest.mark.parametrize(("classes", "named"), [(10, True), (25, True), (26, False), (200, False)])
def test_a_confusion_of_many_classes_is_a_picture_alone(classes, named):
    names = {cluster: f"kind{cluster:03d}" for cluster in range(classes)}
    rows = confusion([(name, name) for name in names.values()])
    svg = drawn(names=names, clusters=classes, confusion=rows)["Confusion"]["svg"]
    assert any("kind" in label for label in labels_of(svg)) is named
    assert any(f"{classes} classes" in label for label in labels_of(svg)) is not named


def test_a_matrix_beyond_what_can_be_seen_is_drawn_in_blocks():
    for classes, said in ((200, False), (201, True)):
        names = {cluster: f"kind{cluster:03d}" for cluster in range(classes)}
        rows = confusion([(name, name) for name in names.values()])
        assert ("2×2" in drawn(names=names, clusters=classes, confusion=rows)["Confusion"]["text"]) is said


@pytest.mark.parametrize("name", ["$$", "$1-$5", r"$\frac$", "a_$_b$"])
def test_names_of_classes_are_no_mathematics(tmp_path, name):
    """Of price classes, say."""
    svg = drawn(names={0: name}, clusters=1, confusion=confusion([(name, name)]))["Confusion"]["svg"]
    assert sum(label.endswith(f" {name}") for label in labels_of(svg)) == 2
    draw_samples(
        tmp_path / "clusters.png", lambda rows: np.zeros((len(rows), 8, 8, 1), np.uint8), np.ones((1, 1)), {0: name}
    )


def test_long_names_are_cut():
    assert charts.short_name("n" * 16) == "n" * 16
    assert charts.short_name("n" * 17) == "n" * 15 + "…"


def test_the_confusion_counts_its_pairs(monkeypatch):
    seen = {}
    original = charts.plt.subplots

    def subplots(*args, **kwargs):
        figure, axis = original(*args, **kwargs)
        monkeypatch.setattr(axis, "imshow", lambda shares, **_: seen.update(shares=shares))
        return figure, axis

    monkeypatch.setattr(charts.plt, "subplots", subplots)
    charts._confusion(confusion([("a", "a")] * 3 + [("a", "cluster 1")] + [("b", "b")] * 2), {0: "a", 2: "b"}, 3)
    np.testing.assert_allclose(seen["shares"], [[0.75, 0, 0.25], [0, 1, 0]])


# --- Sizes


def test_many_clusters_are_sorted_by_size():
    assert "sorted" not in drawn(clusters=50)["Cluster sizes"]["text"]
    assert "sorted" in drawn(clusters=51)["Cluster sizes"]["text"]


# --- Headline


@pytest.mark.parametrize(
    ("protocol", "reported", "figures"),
    [
        ("split", "val", ("94.0 %</b>validation accuracy", "84.0</b>NMI", "91.0 %</b>k-means on pixels")),
        ("all", "train", ("74.0 %</b>accuracy on all images", "64.0</b>NMI", "71.0 %</b>k-means on pixels")),
    ],
)
def test_the_headline_is_the_kept_model_s_on_the_images_reported(tmp_path, protocol, reported, figures):
    params = read_params(ROOT / "params.yaml")
    params = params.model_copy(update={"data": params.data.model_copy(update={"protocol": protocol})})
    others = {"clusters_alive": 10, "confident_share": 0.5}
    metrics = {
        split: {
            "quality": {},
            **{
                step: {"acc": (first + number) / 100, "nmi": (first + number - 10) / 100, **others}
                for number, step in enumerate(STEPS, 1)
            },
        }
        for split, first in (("val", 90), ("train", 70))
    }
    plots, picture, page = {**EMPTY, "sizes": sizes([3] * 10, [1] * 10)}, tmp_path / "picture.png", tmp_path / "page"
    picture.touch()
    stats, kept = {"count": 40, "view": 8}, {"kept": "after", "reason": ""}
    write_report(page, params, stats, metrics, reported, kept, {}, plots, picture, picture)
    text = page.read_text()
    assert [figure for figure in figures if f"<b>{figure}" not in text] == []


# --- Quality


def test_every_measure_has_a_name_and_a_meaning():
    rng = np.random.default_rng(0)
    clusters, rows = rng.integers(3, size=60), rng.normal(size=(60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = quality_scores(clusters, rows, rng.integers(60, size=(60, 5)), np.stack([clusters, clusters]))
    assert list(scores) == list(QUALITY)


def test_quality_stands_beside_what_chance_would_give():
    metrics = {
        "val": {"quality": {"heads_ari": 0.5, "neighbor_consistency": 0.931, "linear_predictability": 0.9}},
        "train": {"quality": {"neighbor_consistency": 0.95, "silhouette": -0.1234, "linear_predictability": 0.8}},
    }
    table = quality_table(metrics, ("val", "train"), sizes([1, 1, 2], [6, 3, 1]))
    assert {name: cells for name, _, cells in table} == {
        "Agreement of the heads, ARI": ["0.500", "–", "0"],
        "Neighbours together": ["93.1 %", "95.0 %", "46.0 %"],  # .36 + .09 + .01
        "Silhouette": ["–", "-0.123", "0"],
        "Told by a linear model": ["90.0 %", "80.0 %", "60.0 %"],
    }
    for split in metrics.values():
        split["quality"].pop("heads_ari", None)
    assert "Agreement of the heads, ARI" not in [
        row[0] for row in quality_table(metrics, ("val", "train"), sizes([1], [1]))
    ]


def test_cells_are_read_at_a_glance():
    assert [quality_cell(value, True) for value in (0.5, 1.0, None)] == ["50.0 %", "100.0 %", "–"]
    assert [quality_cell(value, False) for value in (0.5, 0.0, None)] == ["0.500", "0", "–"]
