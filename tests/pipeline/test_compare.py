"""Two runs beside each other: which images and groups are the same, where runs are read, words and picture."""

import contextlib
import hashlib
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import artifacts
from pipeline.comparing import picture, words
from pipeline.comparing.difference import (
    KEPT,
    MERGED,
    NEW,
    SCATTERED,
    SPLIT,
    changed_settings,
    common_rows,
    compare,
    fates,
    only_in,
)
from pipeline.comparing.outcome import Outcome, read_outcomes
from pipeline.comparing.places import Folder, Revision, find_place
from pipeline.groups import file
from pipeline.groups.apply import read_predictions
from pipeline.groups.numbering import numbered
from pipeline.groups.placed import add_placed
from pipeline.groups.suggestions import KEPT as SUGGESTED
from scan_core.errors import ScanError
from tests.pipeline.groups.conftest import CENTERS, write_run
from tests.pipeline.groups.test_placed import placed
from tests.project import run
from tests.tiny import refused


def outcome(group, title="a", **values):
    names = [f"{row}.jpg" for row in range(len(group))]
    base = {"source": names, "content": names, "names": {}, "reported": "train", "settings": {}, "metrics": {}}
    base |= {"verdict": {}, "number": {"number": 1, "given": True}, "notes": []}
    return Outcome(title=title, group=np.array(group), **{**base, **values})


def compared(counts, names=None):
    """Two runs of which ``counts[i][j]`` images are in groups i + 1 of A and j + 1 of B."""
    pairs = [(i + 1, j + 1) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)]
    a, b = zip(*pairs, strict=True)
    return compare(outcome(a, names=names or {}), outcome(b, "b"))


# --- Groups


@pytest.mark.parametrize(("counts", "said"), [
    ([[9, 1], [1, 9]], {1: (KEPT, [1]), 2: (KEPT, [2])}),
    ([[1, 9], [9, 1]], {1: (KEPT, [2]), 2: (KEPT, [1])}),
    ([[60, 0], [40, 0], [0, 50]], {1: (MERGED, [1]), 2: (MERGED, [1]), 3: (KEPT, [2])}),
    ([[99, 0], [1, 0], [0, 50]], {1: (KEPT, [1]), 2: (MERGED, [1]), 3: (KEPT, [2])}),  # a stray is no merger
    ([[60, 40]], {1: (SPLIT, [1, 2])}),
    ([[50, 50]], {1: (SPLIT, [1, 2])}),
    ([[95, 5]], {1: (KEPT, [1]), "new": [2]}),  # nor is it a split
    ([[5, 5], [6, 0], [0, 6]], {1: (SCATTERED, []), 2: (KEPT, [1]), 3: (KEPT, [2])}),  # half is not most
    ([[40, 30, 30], [0, 60, 0], [0, 0, 60]], {1: (SPLIT, [1]), 2: (KEPT, [2]), 3: (KEPT, [3])}),
    ([[5] * 20], {1: (SPLIT, list(range(1, 21)))}),
    ([[30, 30, 30], [31, 31, 31]], {1: (SCATTERED, []), 2: (SPLIT, [1, 2, 3])}),
    ([[40, 60, 0], [0, 100, 60]], {1: (MERGED, [2]), 2: (SPLIT, [2, 3]), "new": [1]}),
    ([[45, 0, 0, 55], [0, 40, 0, 50], [0, 0, 40, 50]], {1: (MERGED, [4]), 2: (MERGED, [4]), 3: (MERGED, [4])}),
    ([[4, 3, 3, 0], [3, 4, 3, 0], [3, 3, 4, 0], [0, 0, 0, 9]],
     {1: (SCATTERED, []), 2: (SCATTERED, []), 3: (SCATTERED, []), 4: (KEPT, [4]), "new": [1, 2, 3]}),
])  # fmt: skip
def test_what_became_of_each_group(counts, said):
    counts = np.array(counts)
    found = fates(counts, [*range(1, len(counts) + 1)], [*range(1, counts.shape[1] + 1)])
    of_a = {fate.group: (fate.word, sorted(group for group, _ in fate.parts)) for fate in found if fate.word != NEW}
    assert of_a == {group: each for group, each in said.items() if group != "new"}
    if "new" in said:
        assert sorted(fate.group for fate in found if fate.word == NEW) == said["new"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=60))
def test_every_group_and_image_is_told_of_once(pairs):
    a, b = zip(*pairs, strict=True)
    found = compare(outcome(a), outcome(b, "b"))
    of_a = [fate for fate in found.fates if fate.word != NEW]
    assert sorted(fate.group for fate in of_a) == sorted(set(a))
    for fate in found.fates:
        own, other = (b, a) if fate.word == NEW else (a, b)
        assert fate.images == own.count(fate.group)
        assert dict(fate.parts + fate.others) == {
            group: [*zip(own, other, strict=True)].count((fate.group, group))
            for group in {two for one, two in zip(own, other, strict=True) if one == fate.group}
        }
    goes_on = {group for fate in of_a for group, _ in fate.parts}
    assert {fate.group for fate in found.fates if fate.word == NEW} == set(b) - goes_on


def test_changed_groups_come_first_and_what_is_merged_stands_together():
    counts = np.zeros((7, 6), int)
    counts[0, 0] = 20
    counts[range(1, 5), [1, 2, 1, 2]] = 8, 9, 7, 6
    counts[5, 3:5] = 5
    counts[6, 5] = 30
    found = [(fate.word, fate.group) for fate in compared(counts).fates]
    assert found == [(SPLIT, 6), (MERGED, 2), (MERGED, 4), (MERGED, 3), (MERGED, 5), (KEPT, 7), (KEPT, 1)]


def test_agreement_is_that_of_the_images_in_both_and_numbers_do_not_count():
    a = [1] * 5 + [2] * 5 + [3] * 5
    renamed = outcome([(7, 9, 4)[group - 1] for group in a], "b")
    assert compare(outcome(a), renamed).agreement == {"acc": 1, "ari": 1, "ami": 1}
    names = [*"xyz", *outcome(a).source]
    more = outcome([8, 8, 9, *a], "b", source=names, content=names)
    assert compare(outcome(a), more).agreement == {"acc": 1, "ari": 1, "ami": 1}
    other = compared([[3, 2], [1, 4]]).agreement
    assert other["acc"] == 0.7 and other["ari"] < 0.2 and other["ami"] < 0.2


# --- Images


def images(*pairs, content=True):
    names = [name for name, _ in pairs]
    return outcome([1] * len(pairs), source=names, content=[said for _, said in pairs] if content else None)


@pytest.mark.parametrize("content", [True, False])
def test_a_moved_image_is_known_by_its_content_and_of_an_older_run_by_its_name(content):
    a = images(("a.jpg", "1"), ("b.jpg", "2"), ("c.jpg", "3"), content=content)
    b = images(("c.jpg", "3"), ("x/b.jpg", "2"), ("a.jpg", "edited"))
    assert common_rows(a, b).tolist() == ([[1, 1], [2, 0]] if content else [[0, 2], [2, 0]])
    assert only_in(a, common_rows(a, b)[:, 0]) == (["a.jpg"] if content else ["b.jpg"])
    assert only_in(b, common_rows(a, b)[:, 1]) == (["a.jpg"] if content else ["x/b.jpg"])


def test_copies_are_matched_by_name_first_and_each_once():
    a = images(("a.jpg", "1"), ("b.jpg", "1"), ("c.jpg", "1"))
    b = images(("z.jpg", "1"), ("c.jpg", "1"))
    assert common_rows(a, b).tolist() == [[0, 0], [2, 1]]
    assert common_rows(b, a).tolist() == [[0, 0], [1, 2]]


def test_runs_without_a_common_image_cannot_be_compared():
    refused(lambda: compare(images(("a.jpg", "1")), images(("a.jpg", "2"))), "no image in common", "the same images")


# --- Words


def lines(counts, names=None):
    return [line.split(maxsplit=1) for line in words.groups(compared(counts, names))]


def test_a_group_is_told_of_in_one_line():
    counts = [[0, 118, 0, 24], [20, 0, 24, 200]]
    assert lines(counts, {1: "daisy"}) == [
        ["new", "3: 24 images; 24 came from 2"],
        ["new", "1: 20 images; 20 came from 2"],
        ["kept", "2 → 4: 200 of 244 images; 24 went to 3, 20 to 1"],
        ["kept", "1 daisy → 2: 118 of 142 images; 24 went to 4"],
    ]
    assert lines([[6, 6]])[0] == ["split", "1 → 1, 2: 6 and 6 of 12 images"]
    assert lines([[6, 6, 6]])[0] == ["split", "1 → 1, 2, 3: 6, 6 and 6 of 18 images"]
    assert lines([[5] * 20])[0] == ["split", "1 → 1, 2, 3 and 17 more: together 100 of 100 images"]
    assert lines([[1], [1]])[1] == ["merged", "2 → 1: 1 of 1 image"]
    assert ["scattered", "1: 10 images; 4 went to 1, 3 to 2, 3 to 3"] in lines([[4, 3, 3], [6, 6, 6]])
    few = [[*np.full(12, 1), 90], *(np.diag(np.full(13, 50))[:12].tolist())]
    assert ["kept", "1 → 13: 90 of 102 images; 12 went to 12 groups"] in lines(few)
    few[0][0] = 20
    assert ["kept", "1 → 13: 90 of 121 images; 20 went to 1, 11 to 11 others"] in lines(few)


def test_groups_that_have_lost_nothing_take_one_line_and_long_lists_end():
    assert lines(np.diag([5, 6, 7]).tolist()) == [["whole", "3 → 3, 2 → 2, 1 → 1"]]
    whole = lines(np.diag([5] * 25).tolist())
    assert len(whole) == 1 and whole[0][1].endswith("20 → 20 and 5 more")
    counts = np.diag([9] * 25) + np.eye(25, k=1, dtype=int)
    said = list(words.groups(compared(counts.tolist())))
    assert len(said) == words.LISTED + 2 and said[-2].strip() == "and 4 more" and said[-1].startswith("whole")


def test_the_heading_names_both_runs_and_the_images_of_only_one():
    a = outcome([1] * 1200, notes=["a note"])
    names = [*a.source[:1198], "new.jpg"]
    said = list(words.heading(compare(a, outcome([1] * 1199, "b", source=names, content=names))))
    assert said == [
        "A         a", "          a note", "B         b",
        "images    1,198 in both; 2 only in A, such as 1198.jpg; 1 only in B, such as new.jpg",
    ]  # fmt: skip
    said = list(words.heading(compare(a, outcome([1] * 1200, "b", content=None))))
    assert said[-2] == "images    1,200 in both" and "matched by their names" in said[-1]


def test_only_settings_that_differ_are_listed():
    a = {"seed": 0, "cluster.neighbors": 20, "data.mean": [0.5], "data.path": "/a/" + 40 * "x", "old": 1}
    b = {"seed": 0, "cluster.neighbors": 5, "data.mean": None, "data.path": "y", **dict.fromkeys("pqrs", 2)}
    found = compare(outcome([1], settings=a), outcome([1], "b", settings=b))
    assert list(changed_settings(found.a, found.b)) == ["cluster.neighbors", "data.mean", "data.path"]
    rows, alone = words.settings(found)
    assert rows == [
        ("cluster.neighbors", "20", "5"), ("data.mean", "[0.5]", "null"), ("data.path", "…" + 29 * "x", "y"),
    ]  # fmt: skip
    assert alone == ["only in A: old", "only in B: p, q, r and 1 more"]


VERDICT = {"word": "weak", "groups": [], "images": {"sure": 1200, "to check": 3}}
QUALITY = {"neighbor_agreement": 0.928, "silhouette": 0.361}


def test_scores_are_those_of_the_reported_split_and_labels_are_not_needed():
    metrics = {"val": {"selflabel": {"acc": 0.988, "ari": 0.9731, "ami": 0.5}, "quality": QUALITY}, "train": {}}
    number = {"number": 9, "given": False, "low": 2, "high": 15}
    a = outcome([1, 4], metrics=metrics, verdict=VERDICT, number=number, reported="val")
    b = outcome([1, 1], "b", metrics={"val": {"quality": {"heads_ari": 0.99}}, "train": {"quality": QUALITY}})
    rows = {name: (one, other) for name, one, other in words.scores(compare(a, b))}
    assert rows == {
        "groups": ("2 (2 to 15 plausible)", "1"), "verdict": ("WEAK", "–"), "sure": ("1,200", "–"),
        "to check": ("3", "–"), "fits nowhere": ("0", "–"), "neighbor agreement": ("92.8%", "92.8%"),
        "silhouette": ("0.36", "0.36"), "head agreement (ARI)": ("–", "0.99"), "ACC, with labels": ("98.8%", "–"),
        "AMI, with labels": ("50.0%", "–"), "ARI, with labels": ("97.3%", "–"),
    }  # fmt: skip
    assert words.scored(compare(a, b)) == "scores of A's validation images, B's all images"
    assert words.scored(compare(b, b)) == "scores of all images"


def test_fates_are_counted_and_groups_without_a_common_image_are_named():
    a = outcome([1, 1, 2, 7, 7, 8], names={7: "cat"})
    b = outcome([5, 5, 5], "b")
    said = list(words.agreement(compare(a, b)))
    assert said[0].startswith("agreement 66.7% of the images") and "ARI 0.00, AMI 0.00" in said[1]
    assert said[2:] == ["groups    2 merged", "          without an image that is in both: 7 cat, 8 of A"]
    assert "groups    1 kept, 1 split" in words.agreement(compared([[5, 5, 0], [0, 0, 9]]))


# --- The picture


def many(groups, noise, images=4000):
    """A run of many groups beside one in which a share of the images is elsewhere, two are merged and one is split."""
    rng = np.random.default_rng(0)
    a = rng.choice(groups, images, p=np.arange(groups, 0, -1) / (groups * (groups + 1) / 2)) + 1
    b = np.where(rng.random(images) < noise, rng.integers(1, groups + 1, images), a)
    b[b == 2] = 1
    b[(b == 3) & (rng.random(images) < 0.5)] = groups + 1
    names = {1: "daisy", 2: "a dog that runs on the beach at dawn", 3: "$$"}
    return compare(outcome(a, "v1 (20d5c57)", names=names), outcome(b, "/home/me/photos" + 60 * "x", names={1: "sea"}))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []
    for name in ("flow", "matrix"):
        draw = getattr(picture, name)
        monkeypatch.setattr(picture, name, lambda *given, draw=draw: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(picture.plt, "close", lambda figure: None)
    yield drawn
    monkeypatch.undo()
    picture.plt.close("all")


@pytest.mark.parametrize(("groups", "noise"), [(1, 0), (3, 0.1), (12, 0.2), (24, 0.5), (60, 0.2), (99, 0.1), (150, 0)])
def test_no_text_of_the_picture_overlaps_another(tmp_path, figures, groups, noise):
    found = many(groups, noise)
    picture.draw_picture(found, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"] and Image.open(tmp_path / "x.png").size[0] > 400
    (axis,) = figures[0].axes
    legend = axis.get_legend().get_texts() if axis.get_legend() else []
    ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()] if axis.axison else []
    texts = [*axis.texts, *legend, *ticks, axis.xaxis.label, axis.yaxis.label, axis.title, axis._left_title]
    texts = [each for each in texts if each.get_text() and (each in axis.texts or each in legend or axis.axison)]
    named = len(texts) > groups
    assert named is (groups <= picture.MAX_DRAWN)
    figures[0].canvas.draw()
    boxes = [each.get_window_extent() for each in texts]
    for (one, first), (other, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not first.overlaps(second), (one.get_text(), other.get_text())


def test_bars_and_bands_are_as_high_as_groups_have_images(tmp_path, figures):
    found = compared([[30, 10, 0], [5, 0, 55]], {2: "dog"})
    picture.draw_picture(found, tmp_path / "x.png")
    (axis,) = figures[0].axes
    per_image = picture.BARS / 100
    bars = [bar for bar in axis.patches if hasattr(bar, "get_height")]
    assert sorted(bar.get_height() / per_image for bar in bars) == pytest.approx([10, 35, 40, 55, 60])
    bands = [each.get_path().vertices for each in axis.patches if not hasattr(each, "get_height")]
    assert sorted((band[7, 1] - band[0, 1]) / per_image for band in bands) == pytest.approx([5, 10, 30, 55])
    for x, corners in ((0, [0, 7]), (1 - picture.BAR, [3, 4])):  # at each side the bands fill the bars
        ends = sorted(tuple(band[corners, 1]) for band in bands)
        covered = np.concatenate([np.linspace(low + 1e-6, high - 1e-6, 20) for low, high in ends])
        assert (np.diff(covered) > 0).all()
        sides = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars if bar.get_x() == x]
        assert all(any(low <= y <= high for low, high in sides) for y in covered)
    assert {each.get_text() for each in axis.texts} >= {"1  (40)", "2 dog  (60)", "1  (35)", "A: a", "B: b"}


def test_where_a_group_went_on_has_the_color_that_the_legend_says(tmp_path, figures):
    picture.draw_picture(compared([[30, 3], [0, 60]]), tmp_path / "x.png")
    (axis,) = figures[0].axes
    bands = [each for each in axis.patches if not hasattr(each, "get_height")]
    heights = {
        each.get_facecolor()[:3]: each.get_path().vertices[7, 1] - each.get_path().vertices[0, 1] for each in bands
    }
    legend = axis.get_legend()
    pairs = zip(legend.get_texts(), legend.get_patches(), strict=True)
    colors = {text.get_text(): handle.get_facecolor()[:3] for text, handle in pairs}
    assert len(bands) == 3 and heights[colors[picture.OTHERS]] == pytest.approx(3 * picture.BARS / 93)


def test_in_the_order_of_the_picture_same_groups_are_on_the_diagonal():
    rng = np.random.default_rng(0)
    counts = np.diag(np.arange(40, 0, -1)) * 9 + 40  # the largest group has most images in each of the smaller ones
    counts[0] += 60
    shuffled = counts[rng.permutation(40)][:, rng.permutation(40)]
    rows, columns = picture.order(shuffled)
    assert (shuffled[np.ix_(rows, columns)].argmax(axis=1)[:20] == np.arange(20)).all()
    merged = np.array([[5, 0, 0], [0, 9, 0], [7, 0, 0], [0, 1, 8]])
    assert [*picture.order(merged)[0]] in ([2, 0, 1, 3], [1, 2, 0, 3], [2, 0, 3, 1], [3, 2, 0, 1], [1, 3, 2, 0])


# --- Folders

RUN = {"cluster": {"neighbors": 5, "heads": 2}, "seed": 0}


def make_run(folder, clusters, settings=None, **values):
    """A finished run in a folder, of which only the files exist that are read."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        write_run(clusters, **values)
        artifacts.save_json(artifacts.VERDICT, {"word": "weak", "groups": [], "images": {"sure": len(clusters)}})
        artifacts.save_json(artifacts.METRICS, {"train": {"quality": QUALITY}, "val": {}})
        (folder / "params.yaml").write_text(json.dumps(settings or RUN))
        if not (folder / "dvc.yaml").exists():
            (folder / "dvc.yaml").write_text("stages: {}\n")
    return folder


def read(one, other):
    return read_outcomes(Folder(one, "one"), Folder(other, "other"))


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def test_folders_are_read_as_scan_show_reads_them_and_not_changed(tmp_path, monkeypatch):
    one = make_run(tmp_path / "one", [0] * 2 + [1] * 5 + [2] * 3 + [None])
    other = make_run(
        tmp_path / "other", [0] * 4 + [1] * 6, model=b"2", points=np.repeat(CENTERS[[0, 1, 2]], [4, 2, 4], 0)
    )
    with contextlib.chdir(other):
        numbers = numbered().clusters
        file.save(file.changed(file.load(), split={numbers[1]: (3, 4)}, next=5, names={3: "cat"}))
        file.save_answers({f"{0:032x}": (3, "a/0.jpg")})
        wanted = read_predictions()["group"].to_pylist()
    before = files_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    a, b = read(one, other)
    assert a.group.tolist() == [3, 3, 1, 1, 1, 1, 1, 2, 2, 2], "the file that is no image has no group"
    assert b.group.tolist() == wanted == [3, 2, 2, 2, 4, 4, 3, 3, 3, 3]
    assert b.titled(3) == "3 cat" and b.titled(2) == "2" and a.names == {}
    assert a.verdict["word"] == "weak" and a.metrics["train"]["quality"] == QUALITY and a.notes == b.notes == []
    assert a.settings == {"seed": 0, "cluster.neighbors": 5, "cluster.heads": 2}
    assert files_of(tmp_path) == before


def test_photos_that_came_later_and_suggested_names_are_read_and_not_changed(tmp_path):
    one, other = (make_run(tmp_path / name, [0] * 5 + [1] * 3) for name in ("one", "other"))
    with contextlib.chdir(one):
        SUGGESTED.parent.mkdir()
        numbered()
        file.save(file.changed(file.load(), names={2: "cat"}))
        add_placed([placed("a/8.jpg", cluster=1)])
        corrections = [file.load().model_dump_json(exclude={"names"}), []]
        key = hashlib.sha256(json.dumps(corrections).encode()).hexdigest()
        SUGGESTED.write_text(json.dumps({"key": key, "words": {"1": "daisy", "2": "tulip"}}))
    before = files_of(tmp_path)
    a, b = read(one, other)
    assert a.source[-1] == "a/8.jpg" and a.group.tolist() == [1] * 5 + [2] * 4 and len(b.source) == 8
    assert a.names == {1: "daisy?", 2: "cat"} and b.names == {}
    (one / "groups.yaml").unlink()
    assert len(read(one, other)[0].source) == 9, "the photos are of the model, and not of groups.yaml"
    del before[one / "groups.yaml"]
    assert files_of(tmp_path) == before


def test_a_run_of_an_older_program_is_read(tmp_path):
    old = make_run(tmp_path / "old", [0] * 2 + [1] * 5)
    table = pq.read_table(old / artifacts.PREDICTIONS)
    pq.write_table(
        table.drop_columns(["content", "state", "runner_up", "runner_up_probability"]), old / artifacts.PREDICTIONS
    )
    for path in (artifacts.VERDICT, artifacts.METRICS, artifacts.GROUPS):
        (old / path).unlink()
    a, b = read(old, make_run(tmp_path / "new", [0] * 3 + [1] * 5, first=1))
    assert a.content is None and b.content is not None and a.group.tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert (a.verdict, a.metrics) == ({}, {})
    found = compare(a, b)
    assert len(found.rows) == 6 and dict((row[0], row[1:]) for row in words.scores(found))["groups"] == ("2", "2")


def lock(settings, *outs):
    """A dvc.lock."""
    stages = {"prepare": {"params": {"params.yaml": {"seed": 7}}}, "evaluate": {"params": {"params.yaml": settings}}}
    stages["evaluate"]["outs"] = [{"path": path, "md5": "0"} for path in outs]
    return json.dumps({"schema": "2.0", "stages": stages})


def test_settings_are_those_of_the_run_and_a_later_change_is_noted(tmp_path):
    one, other = (make_run(tmp_path / name, [0, 1]) for name in ("one", "other"))
    (one / "dvc.lock").write_text(lock({**RUN, "cluster": {"neighbors": 3, "heads": 2}}))
    a, b = read(one, other)
    assert changed_settings(a, b) == {"cluster.neighbors": (3, 5)}
    assert a.notes == ["not yet run with the params.yaml that is there: cluster.neighbors"] and b.notes == []


def test_what_is_missing_is_said_with_what_to_do(tmp_path):
    one, other = (make_run(tmp_path / name, [0, 1]) for name in ("one", "other"))
    (one / artifacts.VERDICT).unlink()
    assert read(one, other)[0].verdict == {}
    (one / "dvc.lock").write_text(lock(RUN, "reports/verdict.json"))
    refused(
        lambda: read(one, other), "one: reports/verdict.json is in dvc.lock", "dvc checkout reports/verdict.json", one
    )
    (one / "dvc.lock").unlink()
    (other / artifacts.PREDICTIONS).unlink()
    refused(lambda: read(one, other), "other: there is no reports/predictions.parquet", "run dvc repro there")
    (other / "groups.yaml").write_text("names: 3\n")
    make_run(other, [0, 1])
    refused(lambda: read(one, other), "other: groups.yaml")


def test_groups_of_a_new_model_get_the_numbers_that_scan_show_will_give_them(tmp_path):
    one, other = (make_run(tmp_path / name, [0] * 5 + [1] * 3) for name in ("one", "other"))
    for folder in (one, other):
        with contextlib.chdir(folder):
            (folder / ".scan").mkdir()
            numbered()
            file.save(file.changed(file.load(), names={2: "cat"}))
    make_run(one, [1] * 2 + [2] * 3 + [0] * 3, model=b"new")
    a, b = read(one, other)
    assert a.group.tolist() == [3, 3, 1, 1, 1, 2, 2, 2] and a.names == b.names == {2: "cat"}
    assert read(one, one)[0].group.tolist() == a.group.tolist(), "it knows itself what was in which group"
    (one / ".scan" / "members.parquet").unlink()  # not there in another's clone: the other run is its model's
    assert read(one, other)[0].group.tolist() == a.group.tolist()
    assert read(other, one)[1].group.tolist() == a.group.tolist()
    make_run(other, [0] * 5 + [1] * 3, model=b"third")
    lost, _ = read(one, other)
    assert lost.group.tolist() == [3, 3, 2, 2, 2, 1, 1, 1] and lost.names == {}
    assert "groups are numbered by size" in lost.notes[0]


def test_a_place_is_a_folder_or_a_revision(tmp_path, monkeypatch):
    here, other = (make_run(tmp_path / name, [0, 1]) for name in ("here", "other"))
    monkeypatch.setattr("pipeline.comparing.places.Revision", lambda name, here: SimpleNamespace(title=f"rev {name}"))
    titles = [find_place(name, here).title for name in (None, str(here), str(other), "v1", str(tmp_path))]
    assert titles == ["the workspace", "the workspace", str(other), "rev v1", f"rev {tmp_path}"]
    refused(lambda: find_place(None, tmp_path), f"{tmp_path} is no project")


def test_without_a_project_or_git_there_are_no_revisions(tmp_path):
    refused(lambda: find_place("v1", tmp_path), "v1 is no folder of a project", "run this in a project's folder")
    here = make_run(tmp_path / "here", [0, 1])
    refused(lambda: find_place("v1", here), "v1 is no folder", "is not under git")


# --- Revisions

DVC_YAML = """\
stages:
  evaluate:
    cmd: "true"
    params: [seed, cluster]
    outs: [reports/predictions.parquet, reports/verdict.json, data/groups.json, models/selflabel.safetensors]
    metrics: [reports/metrics.json]
"""


def commit(folder, tag=None):
    """What stages would have written is put into DVC's cache, without running them."""
    run(folder, "dvc", "commit", "-f", "-q")
    if tag:
        run(folder, "git", "add", "-A")
        run(folder, "git", "commit", "-qm", tag)
        run(folder, "git", "tag", tag)


@pytest.fixture(scope="module")
def revisions(tmp_path_factory):
    """A project in a folder of a git repository: an empty start, two runs, an experiment, and a workspace after it."""
    top = tmp_path_factory.mktemp("git")
    folder = top / "photos"
    folder.mkdir()
    for line in ("git init -q", "git config user.name test", "git config user.email test@example.org"):
        run(top, *line.split())
    run(folder, "dvc", "init", "-q", "--subdir")
    (folder / ".gitignore").write_text("/reports\n/models\n/data\n/.scan\n")
    run(top, "git", "add", "-A")
    run(top, "git", "commit", "-qm", "start")
    run(top, "git", "tag", "start")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    make_run(folder, [0] * 4 + [1] * 6, model=b"1")
    commit(folder, "v1")
    make_run(folder, [0] * 6 + [1] * 4, {**RUN, "seed": 1}, model=b"2")
    with contextlib.chdir(folder):
        (folder / ".scan").mkdir()
        numbered()
        file.save(file.changed(file.load(), names={1: "daisy"}))
    commit(folder, "v2")
    make_run(folder, [1] * 6 + [0] * 2 + [2] * 2, {**RUN, "seed": 2}, model=b"3")  # groups.yaml is still of v2
    commit(folder)
    run(folder, "dvc", "exp", "save", "-n", "three")
    make_run(folder, [0] * 10 + [1] * 2, {**RUN, "seed": 3}, model=b"4")
    return folder


@pytest.fixture
def inside(revisions, monkeypatch):
    monkeypatch.chdir(revisions)
    return revisions


@pytest.mark.slow
def test_revisions_experiments_and_the_workspace_are_read(inside):
    before = files_of(inside)
    a, b = read_outcomes(find_place("v1", inside), find_place("v2", inside))
    head = run(inside, "git", "rev-parse", "HEAD").stdout.strip()
    assert a.title.startswith("v1 (") and b.title == f"v2 ({head[:7]})"
    assert find_place(head[:9], inside).title == head[:9]
    assert a.group.tolist() == [2] * 4 + [1] * 6 and "numbered by size" in a.notes[0]
    assert b.group.tolist() == [1] * 6 + [2] * 4 and b.names == {1: "daisy"} and b.notes == []
    assert changed_settings(a, b) == {"seed": (0, 1)} and b.verdict["word"] == "weak"
    # An experiment has the groups.yaml of the run that it starts from: its groups are numbered as after that run.
    for other in ("v2", "v1"):
        three, _ = read_outcomes(find_place("three", inside), find_place(other, inside))
        assert three.group.tolist() == [1] * 6 + [2] * 2 + [3] * 2 and three.names == {1: "daisy"}
    workspace, _ = read_outcomes(find_place(None, inside), find_place("v2", inside))
    assert len(workspace.group) == 12 and workspace.settings["seed"] == 2, "of the last dvc.lock"
    assert "not yet run with the params.yaml that is there: seed" in workspace.notes[0]
    assert files_of(inside) == before


@pytest.mark.slow
def test_a_revision_that_cannot_be_read_is_one_line(inside):
    refused(lambda: find_place("nothing", inside), "nothing is no folder of a project, and no revision", "dvc exp list")
    refused(lambda: find_place("start", inside), "start has no dvc.lock")


@pytest.mark.slow
def test_an_output_that_is_not_in_the_cache_is_named_and_not_downloaded(inside, tmp_path):
    run(inside, "dvc", "remote", "add", "-q", "-d", "--local", "far", str(tmp_path / "far"))
    run(inside, "dvc", "push", "-q", "--all-commits")
    shutil.rmtree(inside / ".dvc" / "cache" / "files")
    what = "reports/predictions.parquet"
    with pytest.raises(ScanError) as error:
        read_outcomes(find_place("v1", inside), find_place("v2", inside))
    said = str(error.value)
    assert said.startswith("v1 (") and f"{what} is in dvc.lock, but not in the local cache; run dvc fetch" in said
    command = said.split("run ")[1].split(", or")[0]
    assert command == f"dvc fetch --all-commits {what}"
    run(inside, *command.split())
    refused(lambda: read_outcomes(find_place("v1", inside), find_place("v2", inside)), "reports/metrics.json is in")
    run(inside, "dvc", "fetch", "-q", "--all-commits")
    assert len(read_outcomes(find_place("v1", inside), find_place("v2", inside))[0].group) == 10
    assert isinstance(find_place("v1", inside), Revision)
