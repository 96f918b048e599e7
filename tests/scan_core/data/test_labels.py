"""Labels from folders, from a file or from nowhere, complete or not; the numbers of their classes."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.presets import read_preset
from scan_core.data.chunks import decode_chunk
from scan_core.data.decode import target_of
from scan_core.data.folder import tree_layout
from scan_core.data.ingest import load_chunks
from scan_core.data.labels import images_of, labels_and_splits, numbered, read_labels
from scan_core.data.sources import Item, Source
from scan_core.errors import ScanError
from tests.tiny import change, pixels, refused

ALL = read_preset(Path(__file__).parents[2] / "presets" / "digits.yaml").data
DATA = change(ALL, name="folder", path="images", size=8)
NAMES = ["set/b/1.png", "set/a/2.png", "set/3.png", "set/unlabelled/4.png", "set/b/5.png"]
LABELS = ["x", None, "y", "x", None]
SPLITS = ["train", "val", "extra", None, "train"]


def source(layout=None, classes=None):
    return Source(read=lambda: iter([]), layout=layout, classes=classes)


@pytest.fixture
def known(tmp_path):
    images = pixels(5)
    items = [Item(*values) for values in zip(NAMES, images, LABELS, SPLITS, strict=True)]
    decode_chunk(items, [], target_of(DATA), tmp_path, 0)
    return load_chunks(tmp_path, 1)[0]


def table(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return change(DATA, labels="labels.csv")


def test_labels_and_splits_are_the_sources_own(tmp_path, known):
    assert labels_and_splits(source(), known, DATA, tmp_path) == (LABELS, SPLITS)


def test_where_only_all_names_can_tell_they_do(tmp_path, known):
    labels, splits = labels_and_splits(source(tree_layout), known, DATA, tmp_path)
    assert labels == ["b", "a", None, None, "b"] and splits == [None] * 5


def test_without_labels_the_splits_stay(tmp_path, known):
    settings = change(DATA, labels="none")
    assert labels_and_splits(source(), known, settings, tmp_path) == ([None] * 5, SPLITS)


def test_a_file_replaces_the_sources_labels_and_may_be_partial(tmp_path, known):
    settings = table(tmp_path, "source,label\nset/3.png,c\nset/b/1.png,d\nset/a/2.png,\nelsewhere.png,e\n")
    labels, splits = labels_and_splits(source(), known, settings, tmp_path)
    assert labels == ["d", None, "c", None, None] and splits == SPLITS
    classes, numbers = numbered(labels, source())
    assert classes == ["c", "d"] and numbers.tolist() == [1, -1, 0, -1, -1]


def test_a_file_without_any_label_is_no_labels(tmp_path, known):
    labels, _ = labels_and_splits(source(), known, table(tmp_path, "source,label\n"), tmp_path)
    assert labels == [None] * 5


def test_a_file_of_another_source_is_an_error_that_shows_both(tmp_path, known):
    settings = table(tmp_path, "source,label\nb/1.png,c\n")
    with pytest.raises(ScanError) as error:
        labels_and_splits(source(), known, settings, tmp_path)
    wanted = "data.labels is labels.csv: it names no image of the source; it has 'b/1.png', the source 'set/b/1.png'"
    assert str(error.value) == wanted


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        (["a.png", "b.png"], {"a.png": "a.png"}),
        ([" a.png", "b.png"], {" a.png": "a.png"}),
        (["a.png ", "a.png", " a.png"], {"a.png": "a.png"}),
        ([" a.png", "a.png "], {" a.png": "a.png"}),
        ([" c.png", "c.png"], {" c.png": " c.png"}),
        (["a\\1.png", ""], {}),
    ],
)
def test_spaces_around_a_source_count_where_a_name_has_them(sources, wanted):
    assert images_of(sources, ["a.png", " c.png", "a/1.png"]) == wanted


def test_a_file_with_spaces_after_its_commas_is_of_its_images(tmp_path, known):
    settings = table(tmp_path, "label, source\nc, set/3.png\nd, set/b/1.png\ne, elsewhere.png\n")
    assert labels_and_splits(source(), known, settings, tmp_path)[0] == ["d", None, "c", None, None]


def test_classes_are_sorted_and_numbered():
    classes, numbers = numbered(["10", "9", None, "10"], source())
    assert classes == ["9", "10"] and numbers.tolist() == [1, 0, -1, 1] and numbers.dtype == np.int64


def test_a_set_that_knows_its_classes_decides_their_order_and_has_them_all():
    classes, numbers = numbered(["cat", "dog", None], source(classes=["dog", "bird", "cat"]))
    assert classes == ["dog", "bird", "cat"] and numbers.tolist() == [2, 0, -1]


def test_other_labels_than_the_sets_have_an_order_of_their_own():
    classes, numbers = numbered(["pet", "dog"], source(classes=["dog", "bird", "cat"]))
    assert classes == ["dog", "pet"] and numbers.tolist() == [1, 0]


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
@pytest.mark.parametrize("count", [0, 3])
def test_without_labels_there_are_no_classes(count, classes):
    found, numbers = numbered([None] * count, source(classes=classes))
    assert found == [] and numbers.tolist() == [-1] * count and numbers.dtype == np.int64


# --- read_labels


def labels_of(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("source,label\na.png,cat\nb.png,dog\n", {"a.png": "cat", "b.png": "dog"}),
        ("﻿source,label\r\na.png,cat\r\n", {"a.png": "cat"}),
        ("when,label,source\n1,cat,a.png\n2,dog,b.png", {"a.png": "cat", "b.png": "dog"}),
        ('source,label\n"a, b.png","big\ncat"\n', {"a, b.png": "big\ncat"}),
        ("source,label\na.png,\nb.png,  \nc.png\n\nd.png,dog", {"d.png": "dog"}),
        ("source, label\na.png, cat\n", {"a.png": "cat"}),
        ("source,label\n a.png,cat\n", {" a.png": "cat"}),
        ("source,label\na.png,cat\na.png,cat\na.png,\n", {"a.png": "cat"}),
        ("source,label\nä/é.png,köter\n", {"ä/é.png": "köter"}),
        ("source,label\n,\n", {}),
        ("source,label\n", {}),
    ],
)
def test_labels_are_read(tmp_path, content, wanted):
    assert labels_of(tmp_path, content) == wanted


def test_two_labels_of_one_source_are_an_error_with_its_line(tmp_path):
    content = 'source,label\na.png,"big\ncat"\nb.png,cat\n\nb.png,dog\n'
    refused(lambda: labels_of(tmp_path, content), "line 6", "b.png", '"dog" here and "cat" above')


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("file,label\na,b\n", "its columns are file, label"),
        ("source;label\na;b\n", "its columns are source;label"),
        ("Source,Label\n", "its columns are Source, Label"),
        ("source,label,label\n", '2 columns named "label"'),
        ("", "its columns are none"),
    ],
)
def test_a_missing_column_is_an_error_that_names_those_found(tmp_path, content, found):
    refused(lambda: labels_of(tmp_path, content), "labels.csv", found)


def test_a_label_of_nothing_is_an_error_with_its_line(tmp_path):
    refused(lambda: labels_of(tmp_path, "source,label\na.png,cat\n,dog\n"), "line 3", '"dog" has no source')


@pytest.mark.parametrize("content", ["source,label\na,é\n".encode("latin-1"), "source,label\na,b\n".encode("utf-16")])
def test_what_is_not_utf8_is_an_error(tmp_path, content):
    refused(lambda: labels_of(tmp_path, content), "labels.csv is not UTF-8")


@pytest.mark.parametrize("row", ['"a"b,cat', '"a.png,cat', "a," + "x" * 200_000])
def test_a_broken_line_is_an_error_with_its_number(tmp_path, row):
    refused(lambda: labels_of(tmp_path, f"source,label\na.png,cat\n{row}\n"), "labels.csv, line 3")


def test_a_missing_file_of_labels_is_an_error(tmp_path):
    refused(lambda: read_labels(tmp_path / "gone.csv"), tmp_path / "gone.csv", "No such file", "data.labels")
    refused(lambda: read_labels(tmp_path), tmp_path, "cannot be read")
