"""Parquet and .npy files: every layout is read, what is refused and why, and that files are never read whole."""

import base64
import json
import os
import struct
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scan_core.data import parquet as tables
from scan_core.data.npy import open_npy
from scan_core.data.parquet import open_parquet
from scan_core.data.types import Finding, Item
from scan_core.errors import ScanError
from tests.scan_core.data.little_files import DIGITS, Trap, put
from tests.tiny import change, refused

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PNG, JPEG = b"a png", b"a jpeg"  # no image is decoded here
REAL_PNG = b"\x89PNG\r\n\x1a\nrest"
ZEBRA_ANT = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
BINARY = pa.binary(), pa.large_binary()


def hub(*images):
    rows = [image if isinstance(image, dict | None) else {"bytes": image, "path": None} for image in images]
    return pa.array(rows, HUB)


def write(path, /, metadata=None, group=None, **columns):
    """A parquet file of ``columns``, lists being made arrays; ``metadata`` is the Hub's, as features or raw."""
    table = pa.table(columns)
    if metadata is not None:
        raw = metadata if isinstance(metadata, bytes) else json.dumps({"info": {"features": metadata}}).encode()
        table = table.replace_schema_metadata({b"huggingface": raw})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def opened(path, **values):
    return open_parquet(path, change(DIGITS, **values))


def read(path, **values):
    return list(opened(path, **values).read())


def only(path, **values):
    (thing,) = read(path, **values)
    return thing


def test_the_hubs_layout(tmp_path):
    source = opened(write(tmp_path / "a.parquet", image=hub(PNG, JPEG), label=[1, 0]))
    rows = ("a.parquet/0000000", PNG, "1"), ("a.parquet/0000001", JPEG, "0")
    assert list(source.read()) == list(source.read()) == [Item(*row, is_declared_image=True) for row in rows]
    assert (source.total, source.classes) == (2, None)


@pytest.mark.parametrize("name", tables.PATH_COLUMNS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_column_of_paths_starts_at_the_folder_of_its_file(tmp_path, name, kind):
    put(tmp_path, {"x.png": JPEG, "sub/x.png": PNG})
    write(tmp_path / "sub" / "a.parquet", **{name: pa.array(["x.png"]).cast(kind)})
    assert Path(only(tmp_path).data).read_bytes() == PNG


@pytest.mark.parametrize(("columns", "taken"), [
    ({"image": ["x.png"], "raw": [JPEG], "photo": hub(PNG)}, PNG),  # the struct before bytes
    ({"image": ["x.png"], "raw": [PNG]}, PNG),  # bytes before paths
    *(({"any name": pa.array([PNG], kind)}, PNG) for kind in BINARY),
    *(({"any name": pa.array([{"bytes": PNG}], pa.struct([("bytes", kind)]))}, PNG) for kind in BINARY),
    *(({a: hub(JPEG), b: hub(PNG)}, PNG) for a, b in (("mask", "image"), ("img", "image"), ("mask", "img"))),
    ({"image": hub(PNG), "img": hub(JPEG)}, PNG),
    ({"front": hub(PNG), "back": hub(JPEG)}, PNG),
    ({"front": [PNG], "back": [JPEG]}, PNG),
    ({"image": [base64.b64encode(REAL_PNG).decode()]}, REAL_PNG),
    ({"path": ["data:image/png;base64," + base64.encodebytes(PNG).decode()]}, PNG),
    ({"picture_base64": [base64.b64encode(REAL_PNG).decode()]}, REAL_PNG),
    ({"caption": ["a"], "image": [1], "pair": [{"x": 1}]}, ["caption (string), image (int64), pair (struct<x: int"]),
    ({f"column{number}": [1] for number in range(40)}, ["column4 (int64) and 35 more"]),
])  # fmt: skip
def test_which_column_is_the_image(tmp_path, columns, taken):
    path = write(tmp_path / "a.parquet", **columns)
    if isinstance(taken, bytes):
        assert only(path).data == taken
    else:
        refused(lambda: opened(path), path, *taken)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_name_that_two_columns_have_is_an_error(tmp_path, name):
    path = tmp_path / "a.parquet"
    columns = {"image": hub(PNG), "label": pa.array([1])}
    pq.write_table(pa.table([*columns.values(), columns[name]], [*columns, name]), path)
    refused(lambda: opened(path), path, f"2 columns named {name}")


@pytest.mark.parametrize(("empty", "image"), [
    (hub(None), hub(PNG)), (hub({}), hub(PNG)), (pa.array([None], pa.binary()), pa.array([PNG])),
    (pa.array([None], pa.string()), pa.array(["x.png"])),
])  # fmt: skip
def test_a_null_is_rejected_and_the_next_row_keeps_its_number(tmp_path, empty, image):
    put(tmp_path, {"x.png": PNG})
    first, second = read(write(tmp_path / "a.parquet", image=pa.concat_arrays([empty, image])))
    assert first == Finding("a.parquet/0000000", "rejected", "no image in this row")
    assert isinstance(second, Item) and second.name == "a.parquet/0000001"


def test_a_structs_path_is_read_only_if_its_bytes_are_null(tmp_path):
    put(tmp_path, {"x.png": JPEG})
    rows = hub({"bytes": None, "path": "x.png"}, {"bytes": PNG, "path": "/gone.png"})
    first, second = read(write(tmp_path / "a.parquet", image=rows))
    assert Path(first.data).read_bytes() == JPEG and second.data == PNG


@pytest.mark.parametrize(("path", "reason"), [
    *((path, "leads out of the parquet file's folder") for path in (
        "../secret.png", "sub/../../secret.png", "{outside}/secret.png", "link.png", "linked/secret.png",
        "../inside2/x.png",
    )),
    *((path, f"there is no file at path {path}") for path in ("gone.png", "", "sub", "https://example.org/x.png")),
    *((path, "cannot be followed") for path in ("x\0.png", "loop", "x" * 5000)),
])  # fmt: skip
def test_a_path_that_is_not_a_file_inside_the_folder_is_rejected(tmp_path, path, reason):
    put(tmp_path, {"secret.png": PNG, "inside2/x.png": PNG, "inside/sub/y.png": PNG})
    for name, target in {"link.png": tmp_path / "secret.png", "linked": tmp_path, "loop": "loop"}.items():
        (tmp_path / "inside" / name).symlink_to(target)
    finding = only(write(tmp_path / "inside" / "a.parquet", image=[path.format(outside=tmp_path)]))
    assert isinstance(finding, Finding) and finding.kind == "rejected"
    assert reason in finding.reason and "\0" not in finding.reason


def test_a_folder_and_a_file_reached_through_links_inside_are_read(tmp_path):
    put(tmp_path, {"real/x.png": PNG})
    (tmp_path / "real" / "y.png").symlink_to("x.png")
    write(tmp_path / "real" / "a.parquet", image=["y.png"])
    (tmp_path / "link").symlink_to("real")
    assert Path(only(tmp_path / "link" / "a.parquet").data).read_bytes() == PNG


# --- labels


@pytest.mark.parametrize(("values", "labels"), [
    (pa.array([9, 10, -1, None], pa.int8()), ["9", "10", None, None]),
    (pa.array([3, 0], pa.uint64()), ["3", "0"]),
    (pa.array(["cat", "", None]), ["cat", None, None]),
    (pa.array(["-1"]), ["-1"]),
    (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ["cat", "dog", "cat"]),
    (pa.array([True, False, None]), ["True", "False", None]),
    (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
    (pa.nulls(2), [None, None]),
], ids=lambda value: str(getattr(value, "type", "")))  # fmt: skip
def test_labels_of_every_type(tmp_path, values, labels):
    path = write(tmp_path / "a.parquet", image=hub(*[PNG] * len(values)), label=values)
    assert [item.label for item in read(path)] == labels


def test_text_that_is_not_utf8_is_rejected(tmp_path):
    broken = pa.array([b"\xff\xfe", b"ok"]).view(pa.string())
    first, second = read(write(tmp_path / "a.parquet", image=hub(PNG, PNG), label=broken))
    assert first == Finding("a.parquet/0000000", "rejected", "text in this row is not UTF-8")
    assert second.label == "ok"


@pytest.mark.parametrize(("labels", "classes", "wanted"), [
    ("folders", ["zebra", "ant"], ["ant", "zebra", None, None]),
    *((labels, None, [None] * 4) for labels in ("none", "labels.csv")),
])  # fmt: skip
def test_the_hubs_class_names_are_read_if_labels_are_asked_for(tmp_path, labels, classes, wanted):
    path = write(tmp_path / "a.parquet", ZEBRA_ANT, image=hub(*[PNG] * 4), label=[1, 0, -1, None])
    source = opened(path, labels=labels)
    assert (source.classes, [item.label for item in source.read()]) == (classes, wanted)


@pytest.mark.parametrize(("metadata", "label"), [
    *((metadata, 1) for metadata in (b"{", b"\xff", b"[]", b"null", b'{"info": null}', {})),
    ({"label": {"dtype": "int64", "_type": "Value"}}, 1), ({"label": {"names": ["a", "b"], "_type": "Value"}}, 1),
    ({"label": {"names": None, "_type": "ClassLabel"}}, 1), ({"other": ZEBRA_ANT["label"]}, 1), (ZEBRA_ANT, "1"),
])  # fmt: skip
def test_without_class_names_for_numbers_labels_stay_as_they_are(tmp_path, metadata, label):
    source = opened(write(tmp_path / "a.parquet", metadata, image=hub(PNG), label=[label]))
    assert source.classes is None and next(source.read()).label == "1"


def test_of_several_image_columns_the_one_that_is_read_is_said(tmp_path):
    source = opened(write(tmp_path / "a.parquet", front=hub(PNG), back=hub(JPEG)))
    assert source.notes == {"of the columns front, back, front is read": 0}
    list(source.read())
    assert source.notes == {"of the columns front, back, front is read": 0}


def test_a_label_without_a_class_counts_as_none_and_is_said(tmp_path):
    path = write(tmp_path / "a.parquet", ZEBRA_ANT, image=hub(*[PNG] * 5), label=[1, 255, 255, -100, 0])
    source = opened(path)
    for _ in range(2):  # a second reading does not count twice
        assert [item.label for item in source.read()] == ["ant", None, None, None, "zebra"]
        assert source.notes == {"label 255 in column label, which has 2 classes: it counts as none": 2}


def test_of_lists_those_with_one_label_have_it_and_others_are_said(tmp_path):
    values = pa.array([[1], [0, 1], [], None, [None, 0], [-1]], pa.list_(pa.int64()))
    source = opened(write(tmp_path / "a.parquet", image=hub(*[PNG] * 6), labels=values))
    assert [item.label for item in source.read()] == ["1", None, None, None, "0", None]
    assert source.notes == {"several labels in column labels, which count as none": 1}


def test_a_broken_base64_is_rejected(tmp_path):
    (finding,) = read(write(tmp_path / "a.parquet", image=["/9j/%%%"]))
    assert finding == Finding("a.parquet/0000000", "rejected", "text in this row is no base64")


def test_label_columns_are_taken_in_order_and_one_of_lists_gives_way_or_is_an_error(tmp_path):
    names = ["label", "labels", "fine_label", "class", "target"]
    for start in range(len(names) + 1):
        columns = {name: [name] for name in reversed(names[start:])}
        path = write(tmp_path / "a.parquet", image=hub(PNG), coarse_label=[1], **columns)
        assert only(path).label == [*names, None][start]
    path = write(tmp_path / "a.parquet", image=hub(PNG), labels=[[1, 2]])
    assert only(path).label is None and only(path, labels="none").label is None
    path = write(tmp_path / "a.parquet", image=hub(PNG), labels=[{"x": 1}])
    refused(lambda: opened(path), "labels", path, "struct<", "set data.labels")
    assert only(write(path, image=hub(PNG), labels=[[1, 2]], target=["cat"])).label == "cat"


# --- folders


def splits(folder, *names):
    for name in names:
        write(folder / name, image=hub(PNG))
    return {item.name.rsplit("/", 1)[0]: item.split for item in read(folder)}


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
@pytest.mark.parametrize(
    "form", ["{}.parquet", "{}-00000-of-00001.parquet", "{}_0.PARQUET", "{}/0000.parquet", "default/{}/part/0.parquet"]
)
def test_names_of_files_and_folders_give_the_split(tmp_path, name, form):
    file = form.format(name)
    expected = {file: "val", "train/0.parquet": "train", "z.parquet": None}
    assert splits(tmp_path, *expected) == expected


@pytest.mark.parametrize("expected", [
    {"data/test-00000-of-00001.parquet": "val", "data/train-00000-of-00002.parquet": "train",
     "data/train-00001-of-00002.parquet": "train", "data/validation-00000-of-00001.parquet": "val"},
    {"test/train/0.parquet": "train", "train/0.parquet": "train", "train/test-0.parquet": "val"},  # own name first
    {"a-train.parquet": None, "test.parquet": "val", "testimonials.parquet": None, "train.parquet": "train",
     "trainable.parquet": None, "values.parquet": None},
    {"other.parquet": None, "train-0.parquet": None, "train-1.parquet": None},  # one split alone is none
    {"test-0.parquet": None, "test-1.parquet": None},
])  # fmt: skip
def test_files_in_a_folder_come_by_name_with_their_split(tmp_path, expected):
    assert list(splits(tmp_path, *reversed(expected)).items()) == list(expected.items())
    assert opened(tmp_path).total == len(expected)
    assert only(tmp_path / next(iter(expected))).split is None  # a file by itself


def test_hidden_files_and_others_are_left_alone(tmp_path):
    root = put(tmp_path / ".root", {"README.md": b"text", "._a.parquet": b"\0", ".cache/a.parquet": b"\0"})
    refused(lambda: opened(root), root, "no .parquet file")
    expected = ["a.parquet", "spark.parquet/part-0.parquet"]
    assert list(splits(root, *expected)) == expected  # and the root itself may be hidden


def test_files_of_one_folder_may_differ_in_type_and_place_and_one_may_lack_labels(tmp_path):
    write(tmp_path / "a.parquet", image=hub(PNG), label=pa.array([1], pa.int8()))
    large = pa.array([{"bytes": JPEG}], pa.struct([("bytes", pa.large_binary())]))
    write(tmp_path / "b.parquet", label=[2], image=large)
    assert [(item.data, item.label) for item in read(tmp_path)] == [(PNG, "1"), (JPEG, "2")]
    write(tmp_path / "a.parquet", image=hub(PNG))
    write(tmp_path / "b.parquet", ZEBRA_ANT, image=hub(PNG), label=[0])
    source = opened(tmp_path)
    assert (source.classes, [item.label for item in source.read()]) == (["zebra", "ant"], [None, "zebra"])


@pytest.mark.parametrize(("columns", "said"), [
    ({"img": hub(PNG), "label": [0]}, ["img", "image"]),
    ({"image": [PNG], "label": [0]}, ["binary", "struct"]),
    ({"text": ["a"]}, ["no image column"]),
    ({"image": hub(PNG), "target": [0]}, ["(target)", "(label)"]),
    ({"image": hub(PNG), "label": [0], "metadata": {"label": {"names": ["ant"], "_type": "ClassLabel"}}},
     ["class names", "data.labels"]),
    ({"image": hub(PNG), "label": [0], "metadata": {}}, ["class names", "data.labels"]),
])  # fmt: skip
def test_a_file_unlike_the_first_is_an_error_that_names_it(tmp_path, columns, said):
    write(tmp_path / "a.parquet", ZEBRA_ANT, image=hub(PNG), label=[0])
    other = write(tmp_path / "b.parquet", **columns)
    refused(lambda: opened(tmp_path), other, *said)
    if "label" in said[0]:
        assert [item.label for item in read(tmp_path, labels="none")] == [None, None]


def test_a_file_name_that_is_not_utf8_is_printable(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub(PNG))
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
    assert only(tmp_path).name.encode("utf-8")


@pytest.mark.parametrize("content", [b"", b"not a table", b"PAR1", b"\x89PNG" * 99, 0.1, 0.5, 0.99, None])
def test_what_is_not_a_whole_parquet_file_is_an_error_when_opened(tmp_path, content):
    path = write(tmp_path / "a.parquet", image=hub(*[PNG] * 50))
    source, whole = opened(path), path.read_bytes()
    if content is None:
        path.unlink()
        refused(lambda: list(source.read()), path, "cannot be read")
    else:
        path.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    refused(lambda: opened(path), path, "cannot be read as a parquet file")


def test_a_file_damaged_inside_is_an_error_when_read(tmp_path):
    path = write(tmp_path / "a.parquet", image=[os.urandom(99), os.urandom(99)])
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    source = opened(path)
    refused(lambda: list(source.read()), path, "cannot be read as a parquet file")


def test_a_table_without_rows_is_an_error_but_one_file_may_be_empty(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub())
    refused(lambda: opened(path), path, "no rows")
    write(tmp_path / "b.parquet", image=hub(PNG))
    assert only(tmp_path).name == "b.parquet/0000000"


@pytest.mark.parametrize("group", [None, 100])
def test_a_file_is_read_in_small_batches_of_the_needed_columns_when_asked_for(tmp_path, monkeypatch, group):
    batches, iter_batches = [], pq.ParquetFile.iter_batches

    def spy(self, *args, **options):
        for batch in iter_batches(self, *args, **options):
            batches.append((batch.schema.names, batch.num_rows))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    for name in ("read", "read_row_group", "read_row_groups"):
        monkeypatch.setattr(pq.ParquetFile, name, None)
    columns = {"image": hub(*[PNG] * 1000), "label": range(1000), "caption": ["long"] * 1000}
    reader = opened(write(tmp_path / "a.parquet", group=group, **columns)).read()
    assert not batches
    next(reader)
    assert len(batches) == 1 and len(list(reader)) == 999
    assert max(count for _, count in batches) <= 64 and sum(count for _, count in batches) == 1000
    assert all(names == ["image", "label"] for names, _ in batches)


def test_memory_is_bounded_by_a_group_and_not_by_the_file(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.parquet", group=8, image=[rng.bytes(100_000) for _ in range(400)])
    before = pa.total_allocated_bytes()
    tracemalloc.start()  # because rows pass through Python's bytes
    try:
        largest = max(pa.total_allocated_bytes() for _ in opened(path).read()) - before
        largest += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < 10_000_000  # of 40 MB; a group has 0.8


@given(rows=st.integers(1, 200), group=st.integers(1, 250), page=st.integers(1, 4000), seed=st.integers(0, 9))
@hypothesis_settings(max_examples=40, deadline=None)
def test_rows_come_in_order_whatever_the_row_groups(tmp_path_factory, rows, group, page, seed):
    rng = np.random.default_rng(seed)
    images = [None if rng.random() < 0.2 else struct.pack("<I", row) for row in range(rows)]
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    table = pa.table({"image": hub(*images), "label": pa.array(range(rows))})
    pq.write_table(table, path, row_group_size=group, data_page_size=page)
    source = opened(path)
    assert source.total == rows
    for row, (thing, image) in enumerate(zip(source.read(), images, strict=True)):
        assert thing.name == f"a.parquet/{row:07d}"
        assert isinstance(thing, Finding) if image is None else (thing.data, thing.label) == (image, str(row))


# --- .npy


def saved(path, array):
    with path.open("wb") as file:
        np.save(file, array)
    return path


def npy(path):
    return open_npy(path, DIGITS)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 6, 1), (5, 4, 6, 3), (5, 4, 6, 4), (1, 1, 1), (2, 4, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_rows_of_an_array_are_mapped_and_copied(tmp_path, monkeypatch, shape, order, dtype, version):
    memmap = mock.Mock(side_effect=np.memmap.__new__)
    monkeypatch.setattr(np.memmap, "__new__", memmap)
    array = np.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), order=order)
    if dtype is np.bool_:
        array = array < 128
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    source, before = npy(path), path.read_bytes()
    assert (source.total, source.classes) == (shape[0], None)
    expected = array.astype(np.uint8) * (255 if dtype is np.bool_ else 1)
    for _ in range(2):
        for row, (item, pixels) in enumerate(zip(source.read(), expected, strict=True)):
            assert item[:1] + item[2:] == (f"a.npy/{row:07d}", None, None, False, None)
            assert type(item.data) is np.ndarray and item.data.dtype == np.uint8 and item.data.flags.c_contiguous
            assert np.array_equal(item.data, pixels[..., 0] if shape[3:] == (1,) else pixels)
            item.data[:] = 7
    assert path.read_bytes() == before and {call.kwargs["mode"] for call in memmap.call_args_list} == {"r"}


@pytest.mark.parametrize("array", [
    np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int8), np.zeros((2, 4, 4), np.uint16),
    np.zeros((4, 4), np.uint8), np.zeros((), np.uint8), np.zeros((2, 5, 5, 2), np.uint8),
    np.zeros((2, 4, 4, 3, 1), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros((2, 0, 4), np.uint8),
    np.zeros((2, 4, 4), "U3"), np.zeros((2, 4, 4), [("name", "u1")]),
    *(np.zeros((2, channels, 8, 8), dtype) for channels in (1, 3, 4) for dtype in (np.uint8, np.float32)),
], ids=lambda array: f"{array.dtype}{array.shape}")  # fmt: skip
def test_another_dtype_or_shape_is_an_error_that_says_it(tmp_path, array):
    path = saved(tmp_path / "a.npy", array)
    advice = ["move the channels last"] if array.shape[2:] == (8, 8) else []
    refused(lambda: npy(path), path, f"is {array.dtype} of shape {array.shape}", "1, 3 or 4 channels", "uint8", *advice)


def test_objects_are_an_error_and_never_unpickled(tmp_path):
    array = np.empty((2, 4, 4), object)
    array[:] = Trap(tmp_path / "harm")
    path = saved(tmp_path / "a.npy", array)
    refused(lambda: npy(path), path, "object", (2, 4, 4))
    assert not (tmp_path / "harm").exists()


MIXED = b"\x93NUMPY\x01\x00\x10\x00" + b"{1: 2, 'a': 3}".ljust(15) + b"\n"  # keys that cannot be sorted
NO_NPY = b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00" + b"{" * 16, MIXED, b"PK\3\4" + bytes(200), None


@pytest.mark.parametrize("content", NO_NPY, ids=["empty", "start", "braces", "mixed", "zip", "missing"])
def test_what_is_not_an_npy_file_is_an_error_that_says_what_is_allowed(tmp_path, content):
    path = tmp_path / "a.npy" if content is None else put(tmp_path, {"a.npy": content}) / "a.npy"
    refused(lambda: npy(path), path, "is not a .npy file", "(N,height,width[,channels])", "numpy.save")
    refused(lambda: npy(tmp_path), tmp_path, "is not a .npy file")


@given(at=st.integers(0, 127), value=st.integers(0, 255))
@hypothesis_settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
def test_a_damaged_header_is_read_or_an_error(tmp_path_factory, at, value):
    path = saved(tmp_path_factory.mktemp("npy") / "a.npy", np.zeros((2, 4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    try:
        list(npy(path).read())
    except ScanError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("missing", [1, 32])
def test_a_truncated_array_is_an_error_when_opened(tmp_path, missing):
    path = saved(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    os.truncate(path, path.stat().st_size - missing)
    refused(lambda: npy(path), path, "cannot be read")
