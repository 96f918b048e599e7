"""The report's charts and tables: what they hold, in which order, and what is absent without data."""

import html
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.artifacts import STEPS
from pipeline.params import read_params
from pipeline.report import charts, drawing, group_charts
from pipeline.report.charts import PRETEXT_LOSSES, draw_charts
from pipeline.report.group_charts import confusion_order
from pipeline.report.samples import draw_samples
from pipeline.report.scores import score_rows, settings_text
from pipeline.report.tables import (
    PLOT_COLUMNS,
    QUALITY,
    candidate_table,
    plot_tables,
    quality_table,
    score_table,
)
from scan_core.evaluation.quality import quality_scores
from scan_core.evaluation.scores import Prediction
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from tests.project import ROOT

HISTORIES = ("pretext", "cluster", "selflabel")
EMPTY = {name: [] for name in (*HISTORIES, *PLOT_COLUMNS)}


def history(**columns):
    """Rows of a CSV file, whose values are text."""
    length = len(next(iter(columns.values())))
    return [
        {"epoch": str(epoch + 1), **{name: str(values[epoch]) for name, values in columns.items()}}
        for epoch in range(length)
    ]


def sizes(train, val):
    both = zip(train, val, strict=True)
    return [{"cluster": cluster, "train": one, "val": other} for cluster, (one, other) in enumerate(both)]


def drawn(method="simclr", names=None, clusters=3, number=None, **plots):
    groups = {"given": True, "number": clusters, **(number or {})}
    plots = {**EMPTY, "sizes": sizes([3] * clusters, [1] * clusters), **plots}
    found = draw_charts(plots, names or {}, groups, method, range(clusters))
    return {chart["title"]: chart for chart in found}


# --- Charts


def test_without_history_and_labels_only_the_sizes_are_drawn():
    assert list(drawn(method="none")) == ["Group sizes"]


@pytest.mark.parametrize("method", sorted(set(variants(Pretext)) - {"none", "frozen"}))
def test_the_pretext_loss_is_named_by_its_method(method):
    rows = history(loss=[3, 2], embedding_variance=[0.5, 0.6], effective_rank=[4, 5])
    text = drawn(method, pretext=rows)["Pretext loss"]["text"]
    assert text.startswith(PRETEXT_LOSSES[method])
    assert ("NT-Xent" in text) is (method == "simclr")


def test_a_chart_whose_data_is_absent_is_not_drawn():
    assert "Spread of the embeddings" not in drawn(pretext=history(loss=[1, 2]))
    assert "Spread of the embeddings" in drawn(pretext=history(loss=[1, 2], effective_rank=[3, 4]))
    rows = [{"coverage": percent, "cluster": 0.9, "selflabel": 0.95} for percent in (50, 100)]
    assert list(drawn(accuracy_at_coverage=rows)) == ["Accuracy at coverage", "Group sizes"]


@pytest.mark.parametrize(("used", "there"), [([3, 3], False), ([3, 2], True), ([2, 2], True)])
def test_clusters_in_use_are_drawn_if_one_was_empty(used, there):
    rows = history(confident=[1, 2], agreement=[0.5, 0.9], clusters_used=used)
    assert ("Clusters in use" in drawn(selflabel=rows)) is there
    assert "Stability of the clusters in self-labeling" in drawn(selflabel=rows)


def axis_limits(monkeypatch, draw):
    """The limits of the value axis of the figure that ``draw`` makes."""
    figures, chart = [], charts.chart_of
    monkeypatch.setattr(charts, "chart_of", lambda *given: figures.append(given[2]) or chart(*given))
    draw()
    return figures[0].axes[0].get_ylim()


@pytest.mark.parametrize(
    ("values", "low", "high"), [([0.78, 0.79], 76, 81), ([0.2, 0.9], 16.5, 93.5), ([0.99, 1.0], 97, 101)]
)
def test_an_axis_of_percentages_shows_at_least_five_points(monkeypatch, values, low, high):
    rows = history(acc=values)
    limits = axis_limits(monkeypatch, lambda: charts._lines("", "", rows, {"acc": ""}, percent=True))
    assert limits == pytest.approx((low, high), abs=0.01)


# --- Numbers and the tree


def texts_of(chart):
    return {text.strip() for text in labels_of(chart["svg"])}


def test_the_numbers_that_were_tried_are_drawn_if_the_number_was_estimated():
    rows = [{"groups": str(groups), "score": "0.5"} for groups in (2, 3, 4, 5)]
    charts = drawn(numbers=rows, number={"low": 2, "high": 4})
    assert {"taken: 3", "plausible: 2 to 4"} <= texts_of(charts["How many groups"])
    assert "How many groups" not in drawn()


def tree(groups):
    """Merges one after the other: the first two, and then one more each time."""
    nodes = [(0, 1), *((groups + number, number + 2) for number in range(groups - 2))]
    return [
        {"first": first, "second": second, "similarity": 0.9 - 0.01 * number, "images": number + 2}
        for number, (first, second) in enumerate(nodes)
    ]


@pytest.mark.parametrize(("groups", "there"), [(2, False), (3, True), (50, True), (51, False)])
def test_the_tree_has_each_group_by_name_and_is_drawn_if_it_can_be_read(groups, there):
    charts = drawn(clusters=groups, names={1: "cat"}, tree=tree(groups))
    assert ("Which groups are alike" in charts) is there
    if there:
        labels = {"0", "1 cat", *(str(number) for number in range(2, groups))}
        assert labels <= texts_of(charts["Which groups are alike"])


# --- Confusion


def confusion(pairs):
    return [{"actual": actual, "predicted": predicted} for actual, predicted in pairs]


def test_matched_clusters_come_first_then_unmatched_ones_by_their_most_frequent_class():
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
    ("clusters", "classes", "said"), [(3, 3, None), (5, 3, "Right of the line"), (2, 3, "Below the line")]
)
def test_the_confusion_says_what_is_left_over(clusters, classes, said):
    names = {cluster: f"class {cluster}" for cluster in range(min(clusters, classes))}
    pairs = [(f"class {c % classes}", names.get(c % clusters, f"cluster {c % clusters}")) for c in range(30)]
    text = drawn(names=names, clusters=clusters, confusion=confusion(pairs))["Confusion matrix"]["text"]
    assert [part for part in ("Right of the line", "Below the line") if part in text] == ([said] if said else [])


def labels_of(svg):
    """The texts of a chart, which a browser draws in any script."""
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize(
    ("classes", "named", "blocks"),
    [(10, True, False), (25, True, False), (26, False, False), (200, False, False), (201, False, True)],
)
def test_a_large_confusion_matrix_is_drawn_without_names_and_a_very_large_one_in_blocks(classes, named, blocks):
    names = {cluster: f"kind{cluster:03d}" for cluster in range(classes)}
    rows = confusion([(name, name) for name in names.values()])
    chart = drawn(names=names, clusters=classes, confusion=rows)["Confusion matrix"]
    assert any("kind" in label for label in labels_of(chart["svg"])) is named
    assert any(f"{classes} classes" in label for label in labels_of(chart["svg"])) is not named
    assert ("2×2" in chart["text"]) is blocks


@pytest.mark.parametrize("name", ["$$", "$1-$5", r"$\frac$", "a_$_b$"])
def test_names_of_classes_are_not_read_as_formulas(tmp_path, name):
    svg = drawn(names={0: name}, clusters=1, confusion=confusion([(name, name)]))["Confusion matrix"]["svg"]
    assert labels_of(svg).count(name) == 2
    pixels, prediction = np.zeros((1, 8, 8, 1), np.uint8), Prediction.of(np.ones((1, 1)))
    draw_samples(tmp_path / "clusters.png", lambda rows: pixels[rows], prediction, {0: name}, [1])


def test_long_names_are_cut():
    assert drawing.short_name("n" * 16) == "n" * 16
    assert drawing.short_name("n" * 17) == "n" * 15 + "…"


def test_the_confusion_counts_its_pairs(monkeypatch):
    seen = {}
    original = drawing.plt.subplots

    def subplots(*args, **kwargs):
        figure, axis = original(*args, **kwargs)
        monkeypatch.setattr(axis, "imshow", lambda shares, **_: seen.update(shares=shares))
        return figure, axis

    monkeypatch.setattr(drawing.plt, "subplots", subplots)
    group_charts.confusion(
        confusion([("a", "a")] * 3 + [("a", "cluster 1")] + [("b", "b")] * 2), {0: "a", 2: "b"}, range(3)
    )
    np.testing.assert_allclose(seen["shares"], [[0.75, 0, 0.25], [0, 1, 0]])


# --- Sizes


def test_many_clusters_are_sorted_by_size():
    assert "sorted" not in drawn(clusters=50)["Group sizes"]["text"]
    assert "sorted" in drawn(clusters=51)["Group sizes"]["text"]


# --- Tables of the plots


def test_plot_tables_have_their_columns_and_are_empty_without_labels():
    """Their values are tested in test_stages, against the artifacts of a run."""
    params = read_params(ROOT / "params.yaml")
    labels, prediction = np.array([0, 1, -1]), Prediction.of(np.eye(10)[[3, 4, 3]])
    tried = dict.fromkeys(PLOT_COLUMNS["numbers"], 0.5)
    groups = {"given": False, "number": 10, "low": 8, "high": 16, "tried": [tried]}
    data = SimpleNamespace(
        embeddings=np.eye(3, dtype=np.float32),
        labels=labels,
        final=prediction,
        predictions={"cluster": prediction, "selflabel": prediction},
        heads=np.array([[3, 4, 3], [3, 3, 3]]),
    )
    assignments = dict.fromkeys(("cluster", "selflabel"), np.array([[3, 4, 3], [3, 3, 3]]))
    metrics = {"train": {"neighbors": {}}, "val": {"neighbors": {"purity_1": 0.5}}}
    heads = [
        {"head": str(head), "method": "graph", "agreement": "0.5", "kept": kept} for head, kept in enumerate(("0", "1"))
    ]
    tables = plot_tables(
        params, groups, {"train": data, "val": data}, assignments, metrics, {3: "cat"}, ["cat", "dog"], heads
    )
    assert {name: list(rows[0]) for name, rows in tables.items()} == PLOT_COLUMNS
    assert tables["accuracy_cluster"] == [{"epoch": 1, "acc": 1.0}, {"epoch": 2, "acc": 0.5}]
    assert [row["epoch"] for row in tables["accuracy_selflabel"]] == [0, 1]
    assert tables["confusion"] == confusion([("cat", "cat"), ("dog", "cluster 4")])
    assert [(row["kept"], row["acc"]) for row in tables["candidates"]] == [("0", 1.0), ("1", 0.5)]
    assert tables["purity"] == [{"k": 1, "train": "", "val": 0.5}]
    data.labels = np.full(3, -1)
    metrics["val"]["neighbors"] = {}
    tables = plot_tables(params, groups, {"train": data, "val": data}, assignments, metrics, {}, [], heads)
    assert [name for name, rows in tables.items() if rows] == ["candidates", "tree", "numbers", "sizes"]
    assert [row["acc"] for row in tables["candidates"]] == ["", ""]
    groups = {"given": True, "number": 10}
    tables = plot_tables(params, groups, {"train": data, "val": data}, assignments, metrics, {}, [], [])
    assert tables["candidates"] == []


def test_candidates_are_a_row_per_method_with_means_over_its_heads():
    rows = [
        {"head": "0", "method": "graph", "agreement": "0.5", "kept": "0", "acc": 0.25},
        {"head": "1", "method": "SCAN loss", "agreement": "0.5", "kept": "0", "acc": 0.2},
        {"head": "2", "method": "SCAN loss", "agreement": "0.7", "kept": "1", "acc": 0.4},
    ]
    found = candidate_table(rows)
    assert found == [("graph", False, ["50.0", "25.0"]), ("SCAN loss (2 heads)", True, ["60.0 ± 14.1", "30.0 ± 14.1"])]
    without = candidate_table([row | {"acc": ""} for row in rows])
    assert without == [(name, kept, cells[:1]) for name, kept, cells in found]


# --- Scores


def test_scores_are_percentages_with_the_spread_of_kmeans():
    kmeans = {"acc": 0.77, "acc_std": 0.0654, "clusters_used": 9.5, "clusters_used_std": 0.5}
    model = {"acc": 0.7944, "clusters_used": 10, "confident_share": 0.333}
    scores = {"kmeans_pixels": kmeans, "kmeans_embeddings": kmeans | {"clusters_used_std": 0.0}}
    columns, rows = score_table(scores | {"cluster": model, "selflabel": model}, STEPS)
    assert columns == ["ACC", "clusters in use", "confident"]
    assert dict(rows) == {
        "k-means on pixels": ["77.0 ± 6.5", "9.5 ± 0.5", "–"],
        "k-means on embeddings": ["77.0 ± 6.5", "9.5", "–"],
        "SCAN loss": ["79.4", "10", "33.3"],
        "SCAN loss + self-label": ["79.4", "10", "33.3"],
    }


# --- Quality


def test_every_score_has_a_name_and_a_meaning():
    rng = np.random.default_rng(0)
    clusters, rows = rng.integers(3, size=60), rng.normal(size=(60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = quality_scores(clusters, rows, rng.integers(60, size=(60, 5)), np.stack([clusters, clusters]))
    assert list(scores) == list(QUALITY)


def test_quality_is_shown_beside_chance_and_without_scores_that_neither_split_has():
    metrics = {
        "val": {"quality": {"neighbor_agreement": 0.931, "linear_predictability": 1.0}},
        "train": {"quality": {"neighbor_agreement": 0.95, "silhouette": -0.1234, "linear_predictability": 0.8}},
    }
    table = quality_table(metrics, ("val", "train"), sizes([1, 1, 2], [6, 3, 1]))
    wanted = {
        "Neighbor agreement": ["93.1%", "95.0%", "46.0%"],  # .36 + .09 + .01
        "Silhouette": ["–", "-0.123", "0"],
        "Linear predictability": ["100.0%", "80.0%", "60.0%"],
    }
    assert {name: cells for name, _, cells in table} == wanted
    metrics["val"]["quality"]["heads_ari"] = 0.5
    table = quality_table(metrics, ("val", "train"), sizes([1, 1, 2], [6, 3, 1]))
    assert {name: cells for name, _, cells in table} == wanted | {"Head agreement (ARI)": ["0.500", "–", "0"]}


# --- Rows of measures and values


def rows_of(protocol="split", labels=True):
    params = read_params(ROOT / "params.yaml")
    params = params.model_copy(update={"data": params.data.model_copy(update={"protocol": protocol})})
    others = {"clusters_used": 2, "confident_share": 0.5}
    metrics = {
        split: {
            "quality": {"neighbor_agreement": 0.931},
            **{
                step: others | ({"acc": (first + number) / 100, "nmi": 0.25} if labels else {})
                for number, step in enumerate(STEPS, 1)
            },
        }
        for split, first in (("val", 90), ("train", 70))
    }
    plots = {**EMPTY, "sizes": sizes([6, 4], [1, 1])}
    plots["confusion"] = confusion([("cat", "cat"), ("dog", "cluster 1"), ("cow", "cluster 1")]) if labels else []
    strong = {"word": "strong", "figures": {"purity": 0.9, "agreement": 0.8, "stability": 0.7}}
    verdict = {"word": "strong", "groups": [strong, {"word": "none", "figures": {}}]}
    kept = {"kept": "before", "reason": "clusters died"}
    return score_rows(params, {"count": 1234, "view": 8}, metrics, kept, verdict, plots, (7, 3))


@pytest.mark.parametrize(("protocol", "first", "second"), [
    ("split", ("Validation images, in %: SCAN loss + self-label: ACC", "94.0"), "Training images"),
    ("all", ("All images, in %: SCAN loss + self-label: ACC", "74.0"), "The tenth"),
])  # fmt: skip
def test_the_reported_images_come_first_and_each_step_has_a_row(protocol, first, second):
    rows = rows_of(protocol)
    (title, value) = next(row for row in rows if "self-label:" in row[0])
    assert title.startswith(first[0]) and "NMI 25.0 · clusters in use 2 · confident 50.0" in title and value == first[1]
    assert [title.startswith(second) for title, _ in rows if "k-means on pixels" in title] == [False, True]


def test_rows_say_what_was_run_how_to_read_it_and_how_far_to_trust_groups():
    rows = dict(rows_of())
    assert rows["Images of 8×8 pixels"] == "1,234"
    assert next(row for row in rows if "before self-labeling, chosen without labels: clusters died" in row)
    assert next(row for row in rows if "With 2 groups for 3 classes, images of unmatched classes count as wrong" in row)
    (quality,) = [row for row in rows if row.startswith("Neighbor agreement (training 93.1% · chance 50.0%).")]
    assert rows[quality] == "93.1%"
    assert rows["Group 7, strong: expected purity (neighbors in it 80 % · found again 70 %)"] == "90 %"
    assert list(rows)[-2].startswith("Group 3, none: too few images"), "in the order of their numbers"


def test_without_labels_no_row_speaks_of_them():
    rows = rows_of(labels=False)
    assert not [row for row in rows if "ACC" in row[0] or "accuracy" in row[0]]
    assert "Validation images, in %: SCAN loss: clusters in use (confident 50.0)" in [title for title, _ in rows]


def test_settings_are_all_there_and_no_place_of_this_computer_is():
    params = read_params(ROOT / "params.yaml")
    text = settings_text(params)
    assert "path: null" in text and "class_weights: true" in text and "  augmentation:\n    kind: simclr" in text
    params = params.model_copy(
        update={"backbone": params.backbone.model_copy(update={"weights": "/home/me/a.safetensors"})}
    )
    assert "weights: …/a.safetensors" in settings_text(params)


def test_names_in_any_script_are_text_and_cause_no_warning(recwarn):
    names = {0: "猫", 1: "강아지", 2: "🦊 <b>"}
    chart = drawn(names=names, confusion=confusion([(name, name) for name in names.values()]))["Confusion matrix"]
    assert set(names.values()) <= texts_of(chart)
    assert "🦊 &lt;b&gt;" in chart["svg"] and not [each for each in recwarn if "Glyph" in str(each.message)]
