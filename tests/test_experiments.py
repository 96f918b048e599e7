"""The paper's tables and figures as experiments: what is run, how labels are used, and what the ledger says."""

import contextlib
import json
import os
import re
import shutil
import time
from unittest import mock

import numpy as np
import pytest
from matplotlib.axes import Axes
from typer.testing import CliRunner

from experiments import labeled, runs, workers
from experiments.__main__ import EXPERIMENTS as ALL
from experiments.__main__ import app, select_experiments
from experiments.frozen import FROZEN_EXPERIMENTS, by_method
from experiments.labeled import without_false_positives
from experiments.ledger import replace_blocks, summary, write_ledger
from experiments.runs import Result, Run, _pretext_key, _result_file, deliver_to_mlflow, run_all
from experiments.superclass import confusion_by_superclass, hypernyms, superclasses
from experiments.tables import EXPERIMENTS, Experiment, Row, curve, line
from pipeline.presets import list_presets
from pipeline.tracking.spool import Tracker
from scan_core.errors import ScanError
from tests.project import ROOT, environment, make_dvc_project, make_project, run, run_stages

PAGE = ROOT / "docs" / "ledger.md"
FROZEN = {
    "photos",
    "photos_adapted",
    "photos_small",
    "cifar10_frozen",
    "tiny_imagenet_50_frozen",
}  # no experiment of the paper fits these
PRESETS = sorted(set(list_presets(ROOT / "presets")) - FROZEN)
TINY_CLASSES = ["n02085620", "n02106662", "n02124075", "n01443537", "n02002724", "n07753592", "n07720875", "n04465501"]


# --- What is run


@pytest.mark.parametrize("name", ALL)
def test_every_row_of_an_experiment_is_a_valid_set_of_parameters_of_its_own(name):
    experiment = ALL[name]
    seen = set()
    for row in experiment.rows:
        run = row.run(experiment.preset, 3)
        params = run.params()
        assert (params.seed, params.data.split_seed) == (3, 3)
        seen.add((json.dumps(params.model_dump(mode="json")), row.labeled, row.label))
    assert len(seen) == len(experiment.rows)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_every_experiment_can_be_run_on_every_preset(preset):
    own = Run(preset, 3).params()
    assert own.pretext.augmentation.kind == "simclr" and own.selflabel.augmentation.kind == "strong"
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            params = row.run(preset, 3).params()
            assert params.data == own.data and params.backbone == own.backbone
            for step in ("cluster", "selflabel"):
                views = getattr(params, step).augmentation
                assert views in (getattr(own, step).augmentation, own.pretext.augmentation, own.selflabel.augmentation)
        head, numbers = experiment.published(preset)
        assert bool(head) == any(numbers)
    doubled = EXPERIMENTS["tableS1"].rows[1].run(preset, 3).params()
    assert doubled.cluster.num_clusters == 2 * own.cluster.num_clusters


def test_published_numbers_are_those_of_the_preset_s_column():
    table = EXPERIMENTS["table3"]
    heading, numbers = table.published("stl10")
    assert heading == "STL-10, paper (ACC / NMI / ARI)"
    assert numbers[:2] == ["", "65.8 / 60.4 / 50.6 (c)"] and numbers[4] == "80.6 / 65.9 / 63.1"
    assert table.published("digits") == table.published("cifar10")
    assert EXPERIMENTS["table4"].published("tiny_imagenet_50")[0] == "ImageNet-50, paper (ACC / NMI / ARI)"
    assert EXPERIMENTS["table2"].published("cifar10")[0] == "CIFAR-10, paper (ACC)"
    assert EXPERIMENTS["table2"].published("stl10") == ("", [""] * 6)


def test_settings_that_a_preset_does_not_allow_are_one_line():
    with pytest.raises(ScanError, match=r"^preset cifar10 does not allow .*: embed\.features is projector; pretext\.m"):
        Run("cifar10", 0, (("pretext.method", "rotation"),)).params()


def test_a_change_is_what_differs_from_the_preset():
    base = Run("digits", 0).params().model_dump(mode="json")
    changed = Run("digits", 0, (("cluster.neighbors", 0), ("pretext.method", "byol"))).params().model_dump(mode="json")
    assert changed["cluster"].pop("neighbors") == 0 and base["cluster"].pop("neighbors") == 20
    before, after = base.pop("pretext"), changed.pop("pretext")
    assert before.keys() - after.keys() == {"temperature", "projector_norm"}, "which byol does not have"
    assert after == {**{key: before[key] for key in before if key in after}, "method": "byol", "encoder_momentum": 0.99}
    assert changed == base


@pytest.mark.parametrize("name", ["table1", "tableS1", "augmentation", "threshold", "neighbors", "oracle", "entropy"])
def test_the_runs_of_a_sweep_share_one_pretext_task_per_seed(name):
    keys = {_pretext_key(row.run("digits_quick", 1)) for row in EXPERIMENTS[name].rows}
    assert keys == {_pretext_key(Run("digits_quick", 1))} != {_pretext_key(Run("digits_quick", 2))}


def test_all_seeds_of_frozen_networks_are_one_worker_s_so_that_their_features_are_made_once():
    rows = FROZEN_EXPERIMENTS["frozen_cifar10"].rows
    keys = {_pretext_key(row.run("cifar10_frozen", seed)) for row in rows for seed in (1, 2)}
    assert len(keys) == len(rows) == 2


def test_all_are_all_experiments():
    assert list(select_experiments(["all"])) == list(ALL)


@pytest.mark.parametrize(("words", "said", "lines"), [
    (["table1", "table9"], "table9 is not an experiment; allowed: all, table1, table2, ", 1),
    (["table2", "--preset", "photos"], "--preset is photos, with cluster.method frozen;", 1),
    (["table2", "--preset", "cifr10"], "cifr10 is not a preset; did you mean cifar10? there are: cifar10, ", 1),
    (["table2", "--jobs", "0"], "Invalid value for '--jobs'", None),
    (["table2", "--seed", "0", "--seed", "-1"], "Invalid value for '--seed'", None),
])  # fmt: skip
def test_an_invalid_word_is_an_error_before_anything_runs(words, said, lines, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("experiments.__main__.run_all", lambda *_: pytest.fail("it ran"))
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit) and said in done.output
    assert lines in (None, done.output.count("\n"))


def test_the_pipeline_knows_nothing_of_experiments():
    for folder in ("scan_core", "pipeline", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(import|from) experiments\b", path.read_text(encoding="utf-8"), re.M), path


# --- Which numbers of a result are shown


def scored(first):
    """Scores that are different for each ``first``."""
    return {"acc": first, "nmi": first + 1, "ari": first + 2}


def plotted(names, *rows):
    """Rows of a CSV file, whose values are text."""
    return [dict(zip(names.split(), map(str, row), strict=True)) for row in rows]


PIXELS, EMBEDDINGS, CLUSTER, SELFLABEL, LABELS = (scored(first) for first in (10, 20, 30, 40, 50))
DISTINCT = Result(
    {
        "val": {
            "kmeans_pixels": PIXELS, "kmeans_embeddings": EMBEDDINGS, "cluster": CLUSTER,
            "selflabel": {**SELFLABEL, "acc_many_to_one": 43}, "neighbors": {"purity_20": 62},
        },
        "train": {
            "kmeans_pixels": scored(110), "kmeans_embeddings": scored(120), "cluster": scored(130),
            "selflabel": {**scored(140), "acc_many_to_one": 143},
            "neighbors": {"purity_5": 74, "purity_20": 75, "purity_50": 76},
        },
    },
    {
        "accuracy_cluster": plotted("epoch acc", (1, 77), (2, 78)),
        "accuracy_selflabel": plotted("epoch acc", (0, 80), (1, 81), (2, 82)),
        "cluster": plotted("epoch loss", (1, 83), (2, 84)),
        "selflabel": plotted("epoch loss confident_share agreement", (1, 85, 86, 87), (2, 88, 89, 90)),
        "accuracy_at_coverage": plotted("coverage cluster selflabel", (5, 91, 92), (50, 93, 94), (100, 95, 96)),
        "purity": plotted(
            "k split purity",
            (1, "train", 71), (20, "train", 72), (50, "train", 73), (1, "val", 61), (20, "val", 62), (50, "val", 63),
        ),
    },
    clusters=[],
    labeled=LABELS,
)  # fmt: skip
LAST, EPOCHS = {"acc": 82}, {"first epoch": 80, "last epoch": 82}
ACCURACY = [(0, 80), (1, 81), (2, 82)]
TRAIN, NEAREST_TRAIN = [(1, 71), (20, 72), (50, 73)], {"nearest one": 71, "50 nearest": 73}
SMOOTHED = {"20 nearest of the class, train": 75, **SELFLABEL}
READ = {  # the label, the numbers and, in a figure of lines, the points
    "table1": [
        ("pretext + k-means", EMBEDDINGS), ("SCAN loss, SimCLR's augmentation", CLUSTER),
        ("… and self-labeling with the same, no guard", LAST),
        ("… and self-labeling with the strong one, no guard", LAST),
        ("SCAN loss, strong augmentation", CLUSTER), ("… and self-labeling with the same, no guard", LAST),
    ],
    "table2": [
        ("rotation (RotNet)", SELFLABEL), ("instance discrimination (NCE)", SELFLABEL), ("SimCLR", SELFLABEL),
        ("MoCo v2", SELFLABEL), ("BYOL", SELFLABEL), ("none: a network at its random start", SELFLABEL),
    ],
    "table3": [
        ("k-means on pixels", PIXELS), ("pretext + k-means", EMBEDDINGS), ("SCAN loss", CLUSTER),
        ("SCAN loss + self-label", SELFLABEL), ("supervised (uses labels)", LABELS),
    ],
    "table4": [("pretext + k-means", EMBEDDINGS), ("SCAN loss", CLUSTER), ("SCAN loss + self-label", SELFLABEL)],
    "tableS1": [
        ("as many clusters as classes", SELFLABEL), ("twice as many, many-to-one", {**SELFLABEL, "acc": 43}),
        ("twice as many, one-to-one", SELFLABEL),
    ],
    "purity": [
        ("SimCLR, train", NEAREST_TRAIN, TRAIN),
        ("SimCLR, validation", {"nearest one": 61, "50 nearest": 63}, [(1, 61), (20, 62), (50, 63)]),
        ("instance discrimination, train", NEAREST_TRAIN, TRAIN), ("rotation, train", NEAREST_TRAIN, TRAIN),
    ],
    "confident": [
        ("ACC, validation", EPOCHS, ACCURACY),
        ("confident, share of train", {"first epoch": 86, "last epoch": 89}, [(1, 86), (2, 89)]),
    ],
    "accuracy_at_coverage": [
        ("SCAN loss", {"5 % coverage": 91, "100 %": 95}, [(5, 91), (50, 93), (100, 95)]),
        ("SCAN loss + self-label", {"5 % coverage": 92, "100 %": 96}, [(5, 92), (50, 94), (100, 96)]),
    ],
    "augmentation": [("SimCLR's", EPOCHS, ACCURACY), ("strong", EPOCHS, ACCURACY)],
    "threshold": [(value, LAST) for value in ("0.5", "0.8", "0.9", "0.95", "0.99")],
    "neighbors": [(k, SELFLABEL) for k in ("0", "5", "10", "20", "50")],
    "smoothing": [(label, SMOOTHED) for label in ("as they are", "with 5", "with 20", "with 50")],
    "oracle": [(k, LABELS) for k in ("5", "20", "50")],
    "entropy": [(value, CLUSTER) for value in ("1", "2", "5", "7", "10")],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_row_reads_the_numbers_that_its_label_says(name):
    rows = EXPERIMENTS[name].rows
    assert READ[name] == [
        (row.label, row.value(DISTINCT), *([row.curve(DISTINCT)] if row.curve else [])) for row in rows
    ]


def test_the_methods_on_frozen_networks_are_means_over_heads_beside_what_was_kept_and_the_best():
    heads = [("graph", 0.9, "1", 0.5), ("SCAN loss", 0.6, "0", 0.4), ("SCAN loss", 0.8, "0", 0.7)]
    rows = [dict(zip(("method", "agreement", "kept", "acc"), map(str, row), strict=True)) for row in heads]
    result = Result({"val": {"kmeans_embeddings": {"acc": 0.3}}}, {"candidates": rows}, [])
    assert by_method(result) == pytest.approx({
        "k-means, one start": 0.3, "graph": 0.5, "SCAN loss": 0.55, "kept": 0.5, "best": 0.7, "rank correlation": 0.5,
    })  # fmt: skip


# --- What uses labels


def test_without_false_positives_only_true_neighbors_are_left_in_their_order():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    neighbors = np.stack([rng.permutation(np.delete(np.arange(40), row))[:6] for row in range(40)])
    left = without_false_positives(neighbors, labels)
    assert left.shape == neighbors.shape
    for row in range(40):
        true = [neighbor for neighbor in neighbors[row] if labels[neighbor] == labels[row]] or [row]
        assert left[row].tolist() == [true[column % len(true)] for column in range(6)]
    assert any(labels[neighbors[row]].tolist().count(labels[row]) in (0, 6) for row in range(40))


def supervised(folder):
    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment(), clear=True):
        done = CliRunner().invoke(labeled.app, ["supervised"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_supervised_bound_learns_the_labels_of_train_and_no_others(tmp_path):
    folder = make_project(tmp_path / "project", {"cluster": {"epochs": 20, "batch_size": 64}})
    run_stages(folder, "source", "prepare")
    scores = supervised(folder)
    assert set(scores) == {"acc", "nmi", "ari"} and scores["acc"] > 0.7
    path, train = folder / "data" / "labels" / "labels.npy", np.load(folder / "data" / "images" / "train.npy")
    labels = np.load(path)
    labels[train] = np.random.default_rng(0).permutation(labels[train])
    np.save(path, labels)
    assert supervised(folder)["acc"] < 0.4


# --- Superclasses


def test_every_imagenet_class_has_a_path_to_the_root():
    tree = hypernyms()
    assert len(tree) > 1000
    for wordnet_id in tree:
        path = [wordnet_id]
        while tree[path[-1]][0]:
            path.append(tree[path[-1]][0])
            assert len(path) == len(set(path))
        assert tree[path[-1]][1] == "entity"


def test_superclasses_hold_what_belongs_together():
    group = superclasses(TINY_CLASSES, 4)
    assert set(group) == set(TINY_CLASSES)
    dogs, cat, banana, pepper, tractor = "n02085620", "n02124075", "n07753592", "n07720875", "n04465501"
    assert group[dogs] == group["n02106662"] == group[cat]
    assert group[banana] == group[pepper] != group[dogs]
    assert group[tractor] not in (group[dogs], group[banana])


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 50])
def test_the_tree_is_cut_into_as_many_parts_as_are_wanted_if_classes_allow_it(groups):
    count = len(set(superclasses(TINY_CLASSES, groups).values()))
    assert count >= min(groups, 5)
    assert count <= len(TINY_CLASSES)


def result(acc, **others):
    steps = ("kmeans_pixels", "kmeans_embeddings", "cluster", "selflabel")
    each = {name: {"acc": acc, "nmi": acc / 2, "ari": acc / 4} for name in steps}
    quality = {"silhouette": acc / 3, "neighbor_agreement": acc}
    curves, clusters = others.get("curves", {}), others.get("clusters", [0, 1, 1, 0])
    return Result({"val": {**each, "quality": quality}}, curves, clusters, machine=others.get("machine", {}))


def confusion(rows):
    curves = {"confusion": [{"actual": actual, "predicted": predicted} for actual, predicted in rows]}
    return "\n".join(confusion_by_superclass([result(0.5, curves=curves)]))


def test_confusion_by_superclass_counts_errors_inside_one():
    dog, other_dog, banana = "n02085620", "n02106662", "n07753592"
    rows = [(dog, dog)] * 5 + [(dog, other_dog)] * 3 + [(dog, banana)] + [(banana, banana)] * 4 + [(other_dog, dog)] * 2
    assert "83 % of the images in a wrong" in confusion(rows)  # 5 of 6


def test_a_random_error_is_equally_likely_in_each_other_class():
    """Of 8 · 7 ordered pairs of classes, four are in one superclass: two of the dogs and two of the fruit."""
    text = confusion([(name, TINY_CLASSES[0]) for name in TINY_CLASSES] + [(TINY_CLASSES[1], TINY_CLASSES[1])] * 20)
    assert "at random it would be 7 %." in text  # 4 of 56
    assert "14 % of the images in a wrong" in text  # 1 of 7


def test_classes_without_wordnet_ids_have_no_superclasses():
    assert confusion([("3", "3")]) == ""


# --- The ledger


@pytest.mark.parametrize(("values", "shown"), [([0.9, 0.92, 0.94], "92.0 ± 2.0"), ([0.5], "50.0"), ([], "–")])
def test_a_summary_is_mean_and_standard_deviation_in_percent(values, shown):
    assert summary(values) == shown


def test_the_page_has_a_place_for_every_experiment():
    text = PAGE.read_text(encoding="utf-8")
    for name in [*ALL, "quality"]:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1, name


def test_a_block_takes_the_place_of_the_one_before_and_nothing_else(tmp_path):
    page = tmp_path / "ledger.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nbelow\n")
    replace_blocks(page, {"a": "new"})
    assert page.read_text() == "above\n<!-- a -->\n\nnew\n\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nbelow\n"
    with pytest.raises(ScanError, match="has no place for c"):
        replace_blocks(page, {"c": "x"})


def test_a_table_has_each_row_over_its_seeds_and_the_published_number(tmp_path):
    experiment = Experiment(
        "A sweep",
        (Row("1", (("cluster.neighbors", 1),), published={"cifar10": "50.0"}), Row("2", (("cluster.neighbors", 2),))),
        x_label="x",
    )
    runs = {"sweep": [[Run("digits", seed, row.changes) for seed in range(5)] for row in experiment.rows]}
    results = {
        run: result(0.5 + 0.1 * number + 0.01 * run.seed, clusters=[0, 1, 1, run.seed % 2])
        for number, seeds in enumerate(runs["sweep"])
        for run in seeds
    }
    page = tmp_path / "ledger.md"
    page.write_text("<!-- sweep -->\n<!-- /sweep -->\n<!-- quality -->\n<!-- /quality -->\n")
    assert "Quality" not in write_ledger({"sweep": experiment}, runs, results, None)
    text = write_ledger({"sweep": experiment}, runs, results, page, whole=True)
    assert "| 1 | 52.0 ± 1.6 | 26.0 ± 0.8 | 13.0 ± 0.4 | 50.0 |" in text
    assert "| 2 | 62.0 ± 1.6 |" in text
    assert "| neighbor agreement | 1.00 |" in text  # it is the accuracy itself here
    assert text.split("\n\n")[0] in page.read_text()
    assert (tmp_path / "ledger" / "sweep.png").is_file() and (tmp_path / "ledger" / "quality.png").is_file()


def test_a_line_is_the_mean_over_seeds_and_ends_where_the_shortest_ends(tmp_path):
    points = curve("purity", "k", "purity", "val")
    experiment = Experiment("Lines", (line("here", (), points, ("first", "last")),), x_label="k", y_label="%")
    runs = {"lines": [[Run("digits", seed) for seed in range(2)]]}
    results = {}
    for seed, line_run in enumerate(runs["lines"][0]):
        rows = [{"k": str(k), "purity": str(0.9 - 0.1 * k - 0.02 * seed), "split": "val"} for k in range(3 + seed)]
        results[line_run] = result(0.5, curves={"purity": [*rows, {"k": "1", "purity": "0", "split": "train"}]})
    page = tmp_path / "ledger.md"
    page.write_text("<!-- lines -->\n<!-- /lines -->\n")
    with mock.patch.object(Axes, "plot", autospec=True, side_effect=Axes.plot) as plot:
        text = write_ledger({"lines": experiment}, runs, results, page)
    assert "|  | first | last |\n" in text  # no column of published numbers without any
    assert "| here | 89.0 ± 1.4 | 64.0 ± 8.5 |" in text
    (_, x, mean), _ = plot.call_args
    assert x == [0, 1, 2] and mean == pytest.approx([89, 79, 69])
    assert "![Lines](ledger/lines.png)" in page.read_text()


def test_quality_counts_a_setting_once_and_leaves_out_runs_that_used_labels():
    changes = [(), (("cluster.neighbors", 20),), (("cluster.neighbors", 5),)]  # 20 is the preset's own value
    rows = [*(Row("", change) for change in changes), Row("bound", (), labeled=("supervised",))]
    runs = {"all": [[Run("digits", seed, row.changes, row.labeled) for seed in range(3)] for row in rows]}
    results = {run: result(0.5 + 0.01 * run.seed) for seeds in runs["all"] for run in seeds}
    text = write_ledger({"all": Experiment("All", tuple(rows))}, runs, results, None, whole=True)
    assert "| over 6 runs of `digits` |" in text
    assert "`python -m experiments all`; validation images. unknown, commit unknown" in text


HERE = {"processor": "a processor", "cores": "2", "packages": "torch 1"}


@pytest.mark.parametrize(("machines", "shown"), [
    ([{**HERE, "date": "2026-02-02", "commit": "bbbbbbb"}, {**HERE, "date": "2026-02-01", "commit": "aaaaaaa"}] * 2,
     "2026-02-01, 2026-02-02, commit aaaaaaa, bbbbbbb, a processor, 2 cores; torch 1."),
    ([{}], "unknown, commit unknown, unknown, unknown cores; unknown."),  # an older version's result
])  # fmt: skip
def test_a_table_says_where_and_when_its_runs_were_made(machines, shown):
    runs = [Run("digits", seed) for seed in range(len(machines))]
    results = {run: result(0.5, machine=machine) for run, machine in zip(runs, machines, strict=True)}
    text = write_ledger({"one": Experiment("One", (Row("", ()),))}, {"one": [runs]}, results, None)
    assert text.endswith(f" {shown}")


# --- The runs


@pytest.mark.parametrize("what", ["source", "labels", "weights"])
def test_a_result_is_kept_for_the_files_it_was_made_from_but_not_for_their_times(tmp_path, monkeypatch, what):
    monkeypatch.chdir(ROOT)
    files = {"source": tmp_path / "a.zip", "labels": tmp_path / "a.csv", "weights": tmp_path / "a.safetensors"}
    for path in files.values():
        path.write_text("a")
    changes = (
        ("data.name", "archive"), ("data.path", str(files["source"])), ("data.labels", str(files["labels"])),
        ("backbone.weights", str(files["weights"])),
    )  # fmt: skip
    first = _result_file(Run("digits", 0, changes))
    os.utime(files[what], (1, 1))
    assert _result_file(Run("digits", 0, changes)) == first
    files[what].write_text("ab")
    assert _result_file(Run("digits", 0, changes)) != first


def test_a_result_is_kept_for_the_package_versions_it_was_made_with(monkeypatch):
    monkeypatch.chdir(ROOT)
    first = _result_file(Run("digits", 0))
    monkeypatch.setattr(runs, "packages", lambda: "torch 99")
    assert _result_file(Run("digits", 0)) != first


def test_a_worker_finds_the_project_s_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_DATA", "mine")
    assert workers.worker_environment(2)["SCAN_DATA"] == str(tmp_path / "mine")


@pytest.mark.slow
def test_mlflow_keeps_artifacts_in_the_project_and_not_in_a_worker(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_TRACKING", "spool")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    tracker = Tracker(tmp_path / workers.FOLDER / "worker-0", "pretext")
    tracker.event("start", stage="pretext", key="run", name="digits", params={}, own={}, tags={})
    tracker.close("FINISHED")
    said = []
    deliver_to_mlflow(said.append)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert said == [] and not tracker.folder.exists()
    assert client.get_experiment_by_name(tmp_path.name).artifact_location == (tmp_path / "mlartifacts").as_uri()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small project under git and DVC with the code of the experiments and one tiny preset."""
    folder = make_dvc_project(tmp_path_factory.mktemp("experiments") / "project")
    for name in ("experiments", "bench", "presets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "params.yaml", folder / "presets" / "tiny.yaml")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "experiments")
    return folder


def executed(project, runs):
    said = []
    with contextlib.chdir(project), mock.patch.dict(os.environ, environment(), clear=True):
        return run_all(runs, 2, said.append), said


@pytest.mark.slow
def test_runs_become_dvc_experiments_and_an_interrupted_ledger_continues(project):
    default, other = Run("tiny", 0), Run("tiny", 1, (("cluster.neighbors", 2),))
    bound = Run("tiny", 0, (), ("oracle", "--neighbors", "5"))
    first, said = executed(project, [default])
    assert said == ["1 of 1 runs, about 0 min left"]
    found, said = executed(project, [default, other, bound])
    assert len(said) == 2 and found[default] == first[default]
    assert found[bound].metrics == found[default].metrics and set(found[bound].labeled) == {"acc", "nmi", "ari"}
    assert found[other].metrics != found[default].metrics
    assert len(found[default].clusters) == 1797
    assert executed(project, [default, other, bound])[1] == []
    listed = run(project, "dvc", "exp", "list", "--name-only").stdout.split()
    assert len([name for name in listed if name.startswith("scan-")]) == 3
    assert run(project, "git", "status", "--porcelain").stdout == ""
    workers = project / ".scan" / "experiments"
    assert len(list(workers.glob("worker-*/.scan/tracking/*/events.jsonl"))) > 7


def test_after_a_failure_no_other_run_is_started(monkeypatch, tmp_path):
    started = []

    def execute(run, *_):
        started.append(run.seed)
        if run.seed == 1000:
            raise ScanError("it failed")
        time.sleep(0.5)

    monkeypatch.setattr(runs, "_execute", execute)
    monkeypatch.setattr(runs, "make_worker", lambda number: tmp_path)
    monkeypatch.setattr(runs, "check_committed", lambda: None)
    with pytest.raises(ScanError, match="it failed"):
        run_all([Run("digits", seed) for seed in range(1000, 1008)], 2, lambda _: None)
    assert len(started) <= 2


@pytest.mark.slow
def test_other_package_versions_compute_everything_again_and_the_same_versions_nothing(project, monkeypatch):
    """DVC does not track versions: from dvc.lock or the run cache it would restore what older versions made."""
    one = Run("tiny", 0)
    executed(project, [one])
    locks = sorted(project.glob(".scan/experiments/worker-*/dvc.lock"), key=lambda path: path.stat().st_mtime)
    shutil.copy(locks[-1], project)
    run(project, "git", "add", "dvc.lock")
    run(project, "git", "commit", "-qm", "a lock that names what older versions made")
    for versions, made in (("torch 98", True), ("torch 99", True), ("torch 98", False)):
        before = trained(project)
        for module in (runs, workers):
            monkeypatch.setattr(module, "packages", lambda versions=versions: versions)
        with contextlib.chdir(project):
            _result_file(one).unlink(missing_ok=True)
        found, _ = executed(project, [one])
        assert (trained(project) > before) is made
    assert run(project, "git", "rev-parse", "HEAD").stdout.startswith(found[one].machine["commit"])


def trained(project):
    """How many pretext tasks the workers have trained."""
    return len(list(project.glob(".scan/experiments/worker-*/.scan/tracking/*-pretext-*")))


@pytest.mark.slow
def test_code_that_is_not_committed_is_not_run(project):
    with (project / "scan_core" / "clustering" / "losses.py").open("a") as file:
        file.write("\n")
    try:
        with pytest.raises(ScanError, match=r"scan_core/clustering/losses\.py differ from the last commit"):
            executed(project, [Run("tiny", 7)])
    finally:
        run(project, "git", "checkout", "-q", "scan_core")


@pytest.mark.slow
def test_a_run_that_fails_is_an_error_and_leaves_no_result(project):
    too_large = Run("tiny", 3, (("cluster.batch_size", 5000),))
    with pytest.raises(ScanError, match=r"dvc repro.*failed in .*batch_size is 5000"):
        executed(project, [too_large])
    with contextlib.chdir(project):
        assert not _result_file(too_large).exists()
