"""Labels from folders, from a file or from nowhere, complete or not; the numbers of their classes."""

from unittest import mock

import numpy as np
import pytest

from scan_core.data.folder import tree_layout
from scan_core.data.labels import images_of, labels_and_splits, numbered, read_labels
from scan_core.data.types import Source
from tests.tiny import change, data_settings, refused

DATA = data_settings(name="folder", path="images")
NAMES = ["set/b/1.png", "set/a/2.png", "set/3.png", "set/unlabelled/4.png", "set/b/5.png"]
LABELS = ["x", None, "y", "x", None]
SPLITS = ["train", "val", "extra", None, "train"]
SOURCE = Source(read=lambda: iter([]))


def found(csv_labels=None, source=SOURCE, **values):
    """``labels_and_splits`` of five images."""
    catalog = mock.Mock(names=NAMES, labels=LABELS, splits=SPLITS)
    return labels_and_splits(source, catalog, change(DATA, **values), csv_labels or {})


def test_labels_and_splits_are_the_sources_own():
    assert (found(), found(labels="none")) == ((LABELS, SPLITS), ([None] * 5, SPLITS))


def test_a_layout_of_all_names_decides_if_the_source_has_one():
    assert found(source=Source(read=lambda: iter([]), layout=tree_layout)) == (["b", "a", None, None, "b"], [None] * 5)


@pytest.mark.parametrize(("csv_labels", "wanted"), [
    ({"set/3.png": "c", "set/b/1.png": "d", "elsewhere.png": "e"}, ["d", None, "c", None, None]),
    ({" set/3.png": "c"}, [None, None, "c", None, None]),
    ({}, [None] * 5),
])  # fmt: skip
def test_a_file_replaces_the_sources_labels_and_may_be_partial(csv_labels, wanted):
    assert found(csv_labels, labels="labels.csv") == (wanted, SPLITS)


def test_a_file_of_another_source_is_an_error_that_shows_both():
    said = (
        "data.labels is labels.csv, which names no image of the source; it has 'b/1.png', the source has 'set/b/1.png'"
    )
    refused(lambda: found({"b/1.png": "c"}, labels="labels.csv"), said)


@pytest.mark.parametrize(("sources", "wanted"), [
    (["a.png", "b.png"], {"a.png": "a.png"}),
    ([" a.png", "b.png"], {" a.png": "a.png"}),
    (["a.png ", "a.png", " a.png"], {"a.png": "a.png"}),
    ([" a.png", "a.png "], {" a.png": "a.png"}),
    ([" c.png", "c.png"], {" c.png": " c.png"}),
    (["a\\1.png", ""], {"a\\1.png": "a/1.png"}),
    (["./a/1.png", "A.png"], {"./a/1.png": "a/1.png"}),
])  # fmt: skip
def test_spaces_around_a_source_count_where_a_name_has_them(sources, wanted):
    assert images_of(sources, ["a.png", " c.png", "a/1.png"]) == wanted


def test_names_match_however_unicode_writes_them_unless_two_are_alike():
    apart, joined = "Mu\u0308ller.png", "M\u00fcller.png"
    assert images_of([joined], [apart]) == {joined: apart}
    assert images_of([joined, apart], [apart, joined]) == {joined: joined, apart: apart}
    assert images_of(["x\\" + apart], ["x/" + joined, "x/" + apart]) == {}


@pytest.mark.parametrize(("labels", "own", "classes", "numbers"), [
    (["10", "9", None, "10"], None, ["9", "10"], [1, 0, -1, 1]),
    (["cat", "dog", None], ["dog", "bird", "cat"], ["dog", "bird", "cat"], [2, 0, -1]),
    (["pet", "dog"], ["dog", "bird", "cat"], ["dog", "pet"], [1, 0]),  # labels that the set does not have
    ([None] * 3, ["a", "b"], [], [-1] * 3),
    ([None] * 3, None, [], [-1] * 3),
    ([], ["a", "b"], [], []),
])  # fmt: skip
def test_classes_have_the_sets_order_or_are_sorted(labels, own, classes, numbers):
    found, positions = numbered(labels, Source(read=lambda: iter([]), classes=own))
    assert (found, positions.tolist(), positions.dtype) == (classes, numbers, np.int64)


# --- read_labels


def labels_of(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


@pytest.mark.parametrize(("content", "wanted"), [
    ("source,label\na.png,cat\nb.png,dog\n", {"a.png": "cat", "b.png": "dog"}),
    ("﻿source,label\r\na.png,cat\r\n", {"a.png": "cat"}),
    ("when,label,source\n1,cat,a.png\n2,dog,b.png", {"a.png": "cat", "b.png": "dog"}),
    ('source,label\n"a, b.png","big\ncat"\n', {"a, b.png": "big\\ncat"}),
    ("source;label\na,b.png;cat\n", {"a,b.png": "cat"}),
    ("source\tlabel\na.png\tcat\n", {"a.png": "cat"}),
    ("source,label\nä.png,Käfer\n".encode("utf-16"), {"ä.png": "Käfer"}),
    ("source,label\na.png,Ka\u0308fer\n", {"a.png": "K\u00e4fer"}),
    ("source,label\na.png,\x1b[31mcat\n", {"a.png": "\\x1b[31mcat"}),
    ("source,label\na.png,\nb.png,  \nc.png\n\nd.png,dog", {"d.png": "dog"}),
    ("source, label\na.png, cat\n", {"a.png": "cat"}),
    ("source,label\n a.png,cat\n", {" a.png": "cat"}),
    ("source,label\na.png,cat\na.png,cat\na.png,\n", {"a.png": "cat"}),
    ("source,label\nä/é.png,köter\n", {"ä/é.png": "köter"}),
    ("source,label\n,\n", {}),
    ("source,label\n", {}),
])  # fmt: skip
def test_labels_are_read(tmp_path, content, wanted):
    assert labels_of(tmp_path, content) == wanted


@pytest.mark.parametrize(("content", "said"), [
    ('source,label\na.png,"big\ncat"\nb.png,cat\n\nb.png,dog\n', 'line 6: b.png is "dog" here and "cat" above'),
    ("source,label\na.png,cat\n,dog\n", 'line 3: the label "dog" has no source'),
    ("file,label\na,b\n", "its columns are file, label"),
    ("Source,Label\n", "its columns are Source, Label"),
    ("source,label,label\n", '2 columns named "label"'),
    ("", "its columns are none"),
    ("source,label\na,é\n".encode("latin-1"), "is not UTF-8"),
    ('source,label\na.png,cat\n"a"b,cat\n', "line 3"),
    ('source,label\na.png,cat\n"a.png,cat\n', "line 3"),
    ("source,label\na.png,cat\na," + "x" * 200_000, "line 3"),
])  # fmt: skip
def test_a_mistake_is_an_error_with_its_place(tmp_path, content, said):
    refused(lambda: labels_of(tmp_path, content), "labels.csv", said)


def test_a_missing_file_of_labels_is_an_error(tmp_path):
    refused(lambda: read_labels(tmp_path / "gone.csv"), tmp_path / "gone.csv", "No such file", "data.labels")
    refused(lambda: read_labels(tmp_path), tmp_path, "cannot be read")
