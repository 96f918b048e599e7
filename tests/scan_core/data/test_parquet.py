"""Tables: every layout of real parquet and .npy files, what is refused and why, and that files are never read whole."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.presets import read_preset
from scan_core.data import parquet as tables
from scan_core.data.npy import open_npy
from scan_core.data.parquet import open_parquet
from scan_core.data.sources import Finding, Item
from scan_core.errors import ScanError
from tests.project import ROOT
from tests.tiny import refused

SETTINGS = read_preset(ROOT / "presets" / "digits.yaml").data
HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def data(**values):
    return type(SETTINGS)(**{**dict(SETTINGS), **values})


def encoded(value=0, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 5), (value, 10, 200)).save(file, kind)
    return file.getvalue()


PNG, JPEG = encoded(), encoded(kind="JPEG")


def hub(*images):
    return pa.array(
        [image if isinstance(image, dict | None) else {"bytes": image, "path": None} for image in images], HUB
    )


def write(path, /, metadata=None, group=None, **columns):
    """A parquet file of ``columns``; ``metadata`` is the Hub's, of features or raw."""
    table = pa.table(columns)
    if metadata is not None:
        raw = metadata if isinstance(metadata, bytes) else json.dumps({"info": {"features": metadata}}).encode()
        table = table.replace_schema_metadata({b"huggingface": raw})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def read(path, **values):
    return list(open_parquet(path, data(**values)).read())


def only(path, **values):
    (found,) = read(path, **values)
    return found


# Image columns


def test_the_hubs_layout(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub(PNG, JPEG), label=pa.array([1, 0]))
    source = open_parquet(path, data())
    items = list(source.read())
    assert items == [
        Item("a.parquet/0000000", PNG, "1", meant=True),
        Item("a.parquet/0000001", JPEG, "0", meant=True),
    ]
    assert list(source.read()) == items
    assert (source.total, source.classes) == (2, None)
    with Image.open(io.BytesIO(items[1].data)) as image:
        assert (image.format, image.size) == ("JPEG", (4, 5))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_binary_column_of_any_name(tmp_path, kind):
    assert only(write(tmp_path / "a.parquet", photo=pa.array([PNG], kind))).data == PNG


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_struct_of_any_name_and_without_a_path(tmp_path, kind):
    column = pa.array([{"bytes": PNG}, {"bytes": None}], pa.struct([("bytes", kind)]))
    item, finding = read(write(tmp_path / "a.parquet", photo=column))
    assert item.data == PNG
    assert finding == Finding("a.parquet/0000001", "rejected", "no image in this row")


@pytest.mark.parametrize("name", tables.PATH_COLUMNS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_column_of_paths(tmp_path, name, kind):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.png").write_bytes(PNG)
    path = write(tmp_path / "a.parquet", **{name: pa.array(["sub/x.png"]).cast(kind)})
    assert Path(only(path).data).read_bytes() == PNG


def test_the_struct_comes_before_bytes_and_those_before_paths(tmp_path):
    columns = {"image": pa.array(["x.png"]), "raw": pa.array([JPEG]), "photo": hub(PNG)}
    assert only(write(tmp_path / "a.parquet", **columns)).data == PNG
    del columns["photo"]
    assert only(write(tmp_path / "b.parquet", **columns)).data == JPEG
    (tmp_path / "x.png").write_bytes(PNG)
    del columns["raw"]
    assert only(write(tmp_path / "c.parquet", **columns)).data == str((tmp_path / "x.png").resolve())


@pytest.mark.parametrize("names", [("mask", "image"), ("image", "img"), ("img", "image"), ("mask", "img")])
def test_of_several_that_named_image_or_else_img_is_taken(tmp_path, names):
    wanted = "image" if "image" in names else "img"
    path = write(tmp_path / "a.parquet", **{name: hub(PNG if name == wanted else JPEG) for name in names})
    assert only(path).data == PNG


@pytest.mark.parametrize("column", [hub(PNG), pa.array([PNG])], ids=["struct", "binary"])
def test_several_of_other_names_are_an_error_that_names_them(tmp_path, column):
    path = write(tmp_path / "a.parquet", front=column, back=column)
    refused(lambda: open_parquet(path, data()), path, "front, back", "named image or img")


def test_several_columns_of_paths_are_an_error(tmp_path):
    path = write(tmp_path / "a.parquet", path=pa.array(["a"]), file=pa.array(["b"]))
    refused(lambda: open_parquet(path, data()), "path, file")


def test_without_an_image_column_the_columns_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", caption=pa.array(["a"]), image=pa.array([1]), pair=pa.array([{"x": 1}]))
    refused(lambda: open_parquet(path, data()), path, "caption (string), image (int64), pair (struct<x: int64>)")


def test_of_many_columns_some_are_named_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "a.parquet", **{f"column{number}": pa.array([1]) for number in range(40)})
    refused(lambda: open_parquet(path, data()), "column11 (int64) and 28 more")


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_name_that_stands_twice_is_an_error(tmp_path, name):
    path = tmp_path / "a.parquet"
    columns = {"image": hub(PNG), "label": pa.array([1])}
    pq.write_table(pa.table([*columns.values(), columns[name]], [*columns, name]), path)
    refused(lambda: open_parquet(path, data()), path, f"2 columns named {name}")


# Rows


@pytest.mark.parametrize("column", [hub(None), hub({}), pa.array([None], pa.binary()), pa.array([None], pa.string())])
def test_a_null_is_rejected_and_the_next_row_keeps_its_number(tmp_path, column):
    value = {HUB: hub(PNG), pa.binary(): pa.array([PNG]), pa.string(): pa.array(["x.png"])}[column.type]
    (tmp_path / "x.png").write_bytes(PNG)
    first, second = read(write(tmp_path / "a.parquet", image=pa.concat_arrays([column, value])))
    assert first == Finding("a.parquet/0000000", "rejected", "no image in this row")
    assert isinstance(second, Item) and second.name == "a.parquet/0000001"


def test_where_bytes_are_null_the_path_is_read_and_else_it_is_not(tmp_path):
    (tmp_path / "x.png").write_bytes(JPEG)
    path = write(
        tmp_path / "a.parquet", image=hub({"bytes": None, "path": "x.png"}, {"bytes": PNG, "path": "/gone.png"})
    )
    first, second = read(path)
    assert Path(first.data).read_bytes() == JPEG
    assert second.data == PNG


def test_paths_start_at_the_folder_of_their_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.png").write_bytes(JPEG)
    (tmp_path / "sub" / "x.png").write_bytes(PNG)
    write(tmp_path / "sub" / "a.parquet", image=pa.array(["x.png"]))
    assert Path(only(tmp_path).data).read_bytes() == PNG


@pytest.mark.parametrize(
    "path", ["../secret.png", "sub/../../secret.png", "{outside}/secret.png", "link.png", "linked/secret.png"]
)
def test_a_path_that_leads_out_of_the_folder_is_rejected(tmp_path, path):
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked").symlink_to(tmp_path)
    file = write(inside / "a.parquet", image=pa.array([path.format(outside=tmp_path)]))
    found = only(file)
    assert isinstance(found, Finding) and found.kind == "rejected"
    assert "leads out of the parquet file's folder" in found.reason


def test_a_folder_whose_name_only_begins_alike_is_outside(tmp_path):
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2" / "x.png").write_bytes(PNG)
    file = write(tmp_path / "images" / "a.parquet", image=pa.array(["../images2/x.png"]))
    assert "leads out" in only(file).reason


def test_a_folder_and_a_file_reached_through_links_inside_are_read(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "x.png").write_bytes(PNG)
    (real / "y.png").symlink_to("x.png")
    write(real / "a.parquet", image=pa.array(["y.png"]))
    (tmp_path / "link").symlink_to(real)
    assert Path(only(tmp_path / "link" / "a.parquet").data).read_bytes() == PNG


@pytest.mark.parametrize("path", ["gone.png", "", "sub", "https://example.org/x.png"])
def test_a_path_without_a_file_is_rejected(tmp_path, path):
    (tmp_path / "sub").mkdir()
    found = only(write(tmp_path / "a.parquet", image=pa.array([path])))
    assert found == Finding("a.parquet/0000000", "rejected", f"there is no file at path {path}")


@pytest.mark.parametrize("path", ["x\0.png", "loop", "x" * 5000])
def test_a_path_that_no_system_follows_is_rejected(tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    found = only(write(tmp_path / "a.parquet", image=pa.array([path])))
    assert isinstance(found, Finding) and found.kind == "rejected" and "\0" not in found.reason


def test_text_that_is_not_utf8_is_rejected(tmp_path):
    broken = pa.array([b"\xff\xfe", b"ok"]).view(pa.string())
    first, second = read(write(tmp_path / "a.parquet", image=hub(PNG, PNG), label=broken))
    assert first == Finding("a.parquet/0000000", "rejected", "text in this row is not UTF-8")
    assert second.label == "ok"


# Labels


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([9, 10, -1, None], pa.int8()), ["9", "10", None, None]),
        (pa.array([3, 0], pa.uint64()), ["3", "0"]),
        (pa.array(["cat", "", None]), ["cat", None, None]),
        (pa.array(["-1"]), ["-1"]),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ["cat", "dog", "cat"]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_labels_of_every_type(tmp_path, values, wanted):
    path = write(tmp_path / "a.parquet", image=hub(*[PNG] * len(values)), label=values)
    assert [item.label for item in read(path)] == wanted


def test_the_hubs_names_of_classes(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", features, image=hub(*[PNG] * 4), label=pa.array([1, 0, -1, None]))
    source = open_parquet(path, data())
    assert source.classes == ["zebra", "ant"]
    assert [item.label for item in source.read()] == ["ant", "zebra", None, None]


@pytest.mark.parametrize(
    "metadata",
    [
        b"{", b"\xff", b"[]", b"null", b'{"info": null}', {}, {"label": {"dtype": "int64", "_type": "Value"}},
        {"label": {"names": ["a", "b"], "_type": "Value"}}, {"label": {"names": None, "_type": "ClassLabel"}},
        {"other": {"names": ["a", "b"], "_type": "ClassLabel"}},
    ],
)  # fmt: skip
def test_metadata_without_names_leave_the_numbers(tmp_path, metadata):
    path = write(tmp_path / "a.parquet", metadata, image=hub(PNG), label=pa.array([1]))
    source = open_parquet(path, data())
    assert source.classes is None
    assert next(source.read()).label == "1"


def test_names_are_not_for_labels_that_are_text(tmp_path):
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", features, image=hub(PNG), label=pa.array(["1"]))
    source = open_parquet(path, data())
    assert source.classes is None
    assert next(source.read()).label == "1"


@pytest.mark.parametrize("value", [2, -2])
def test_a_label_without_a_name_is_an_error_that_names_the_row(tmp_path, value):
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", features, image=hub(PNG, PNG), label=pa.array([1, value]))
    refused(lambda: read(path), "label", "a.parquet/0000001", f"is {value}", "2 classes", "data.labels")


def test_label_columns_are_taken_in_order(tmp_path):
    names = list(tables.LABEL_COLUMNS)
    assert names == ["label", "labels", "fine_label", "class", "target"]
    for start in range(len(names)):
        columns = {name: pa.array([name]) for name in reversed(names[start:])}
        path = write(tmp_path / f"{start}.parquet", image=hub(PNG), coarse_label=pa.array([1]), **columns)
        assert only(path).label == names[start]
    assert only(write(tmp_path / "none.parquet", image=hub(PNG), coarse_label=pa.array([1]))).label is None


def test_a_label_column_of_lists_gives_way_or_is_an_error(tmp_path):
    columns = {"image": hub(PNG), "labels": pa.array([[1, 2]])}
    path = write(tmp_path / "a.parquet", **columns)
    refused(lambda: open_parquet(path, data()), "labels", path, "list<", "set data.labels")
    assert only(path, labels="none").label is None
    assert only(write(tmp_path / "b.parquet", **columns, target=pa.array(["cat"]))).label == "cat"


@pytest.mark.parametrize("labels", ["none", "labels.csv"])
def test_labels_are_not_read_unless_they_are_asked_for(tmp_path, labels):
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", features, image=hub(PNG), label=pa.array([7]))
    source = open_parquet(path, data(labels=labels))
    assert source.classes is None
    assert next(source.read()).label is None


# Folders


def splits(folder, *names):
    for name in names:
        write(folder / name, image=hub(PNG))
    return {item.name.rsplit("/", 1)[0]: item.split for item in read(folder)}


def test_a_folder_in_the_hubs_layout(tmp_path):
    names = [
        "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    ]  # fmt: skip
    found = splits(tmp_path, *names)
    assert list(found) == sorted(names)
    assert [found[name] for name in names] == ["train", "train", "val", "val"]
    assert open_parquet(tmp_path, data()).total == 4


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
@pytest.mark.parametrize("form", ["{}.parquet", "{}-00000-of-00001.parquet", "{}_0.PARQUET", "{}/0000.parquet",
                                  "default/{}/part/0.parquet"])  # fmt: skip
def test_names_of_files_and_folders_give_the_split(tmp_path, name, form):
    file = form.format(name)
    assert splits(tmp_path, file, "train/0.parquet", "z.parquet") == {
        file: "val", "train/0.parquet": "train", "z.parquet": None
    }  # fmt: skip


def test_a_files_own_name_comes_before_its_folders(tmp_path):
    assert splits(tmp_path, "train/test-0.parquet", "train/0.parquet", "test/train/0.parquet") == {
        "train/test-0.parquet": "val", "train/0.parquet": "train", "test/train/0.parquet": "train"
    }  # fmt: skip


def test_words_that_begin_alike_are_no_split(tmp_path):
    names = ["testimonials.parquet", "trainable.parquet", "values.parquet", "a-train.parquet"]
    assert splits(tmp_path, "train.parquet", "test.parquet", *names) == {
        "train.parquet": "train", "test.parquet": "val", **dict.fromkeys(names)
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["train", "test"])
def test_files_of_one_split_alone_have_none(tmp_path, kind):
    names = [f"{kind}-0.parquet", f"{kind}-1.parquet", "other.parquet"]
    assert splits(tmp_path, *names) == dict.fromkeys(names)


def test_a_file_by_itself_has_no_split(tmp_path):
    splits(tmp_path, "test-0.parquet", "train-0.parquet")
    assert only(tmp_path / "test-0.parquet") == Item("test-0.parquet/0000000", PNG, meant=True)


def test_hidden_files_and_others_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "._a.parquet").write_bytes(b"\0")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.parquet").write_bytes(b"\0")
    assert list(splits(tmp_path, "spark.parquet/part-0.parquet", "a.parquet")) == [
        "a.parquet", "spark.parquet/part-0.parquet"
    ]  # fmt: skip


def test_a_hidden_folder_may_be_named_itself(tmp_path):
    assert list(splits(tmp_path / ".cache", "a.parquet")) == ["a.parquet"]


def test_a_folder_without_parquet_files_is_an_error(tmp_path):
    refused(lambda: open_parquet(tmp_path, data()), tmp_path, "no .parquet file")


@pytest.mark.parametrize("columns", [{"img": hub(PNG)}, {"image": pa.array([PNG])}, {"text": pa.array(["a"])}])
def test_a_file_with_another_image_column_is_an_error_that_names_it(tmp_path, columns):
    write(tmp_path / "a.parquet", image=hub(PNG))
    other = write(tmp_path / "b.parquet", **columns)
    refused(lambda: open_parquet(tmp_path, data()), other)


def test_columns_that_hold_the_same_may_differ_in_type_and_place(tmp_path):
    write(tmp_path / "a.parquet", image=hub(PNG), label=pa.array([1], pa.int8()))
    write(
        tmp_path / "b.parquet", label=pa.array([2]),
        image=pa.array([{"bytes": JPEG}], pa.struct([("bytes", pa.large_binary())])),
    )  # fmt: skip
    assert [(item.data, item.label) for item in read(tmp_path)] == [(PNG, "1"), (JPEG, "2")]


def test_one_file_may_be_without_labels(tmp_path):
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    write(tmp_path / "test.parquet", image=hub(PNG))
    write(tmp_path / "train.parquet", features, image=hub(PNG), label=pa.array([0]))
    assert [item.label for item in read(tmp_path)] == [None, "zebra"]
    assert open_parquet(tmp_path, data()).classes == ["zebra", "ant"]


@pytest.mark.parametrize("names", [["ant", "zebra"], None])
def test_files_with_other_class_names_are_an_error(tmp_path, names):
    for file, classes in (("a", ["zebra", "ant"]), ("b", names)):
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        write(tmp_path / f"{file}.parquet", features, image=hub(PNG), label=pa.array([0]))
    refused(lambda: open_parquet(tmp_path, data()), tmp_path / "b.parquet", "class names", "data.labels")
    assert [item.label for item in read(tmp_path, labels="none")] == [None, None]


def test_files_with_other_label_columns_are_an_error(tmp_path):
    write(tmp_path / "a.parquet", image=hub(PNG), label=pa.array([0]))
    other = write(tmp_path / "b.parquet", image=hub(PNG), target=pa.array([0]))
    refused(lambda: open_parquet(tmp_path, data()), other, "(target)", "(label)")


def test_a_name_that_is_not_utf8_is_printable(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub(PNG))
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
    assert only(tmp_path).name.encode("utf-8")


# Damage


@pytest.mark.parametrize("content", [b"", b"not a table", b"PAR1", PNG * 10])
def test_what_is_no_parquet_file_is_an_error(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    refused(lambda: open_parquet(path, data()), path, "no parquet file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error_when_opened(tmp_path, share):
    path = write(tmp_path / "a.parquet", image=hub(*[PNG] * 50))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: open_parquet(path, data()), path, "no parquet file")


def test_a_file_damaged_inside_is_an_error_when_read(tmp_path):
    path = write(tmp_path / "a.parquet", image=pa.array([PNG, JPEG]))
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    source = open_parquet(path, data())
    refused(lambda: list(source.read()), path, "no parquet file")


def test_a_file_that_is_gone_is_an_error(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub(PNG))
    source = open_parquet(path, data())
    path.unlink()
    refused(lambda: list(source.read()), path)
    refused(lambda: open_parquet(path, data()), path)


def test_a_table_without_rows_is_an_error_but_one_file_may_be_empty(tmp_path):
    path = write(tmp_path / "a.parquet", image=hub())
    refused(lambda: open_parquet(path, data()), path, "no rows")
    write(tmp_path / "b.parquet", image=hub(PNG))
    assert only(tmp_path).name == "b.parquet/0000000"


# Memory and order


@pytest.fixture
def batches(monkeypatch):
    """(columns, rows) of each batch that is read."""
    seen = []
    original = pq.ParquetFile.iter_batches

    def spy(self, *args, **kwargs):
        for batch in original(self, *args, **kwargs):
            seen.append((batch.schema.names, batch.num_rows))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    for name in ("read", "read_row_group", "read_row_groups"):
        monkeypatch.setattr(pq.ParquetFile, name, None)
    return seen


@pytest.mark.parametrize("group", [None, 100])
def test_a_file_is_read_in_small_batches_of_the_needed_columns_when_asked_for(tmp_path, batches, group):
    rows = 1000
    path = write(
        tmp_path / "a.parquet", group=group, image=hub(*[PNG] * rows), label=pa.array(range(rows)),
        caption=pa.array(["long"] * rows),
    )  # fmt: skip
    source = open_parquet(path, data())
    assert not batches
    reader = source.read()
    next(reader)
    assert len(batches) == 1
    assert len(list(reader)) == rows - 1
    assert max(count for _, count in batches) <= 64
    assert sum(count for _, count in batches) == rows
    assert all(names == ["image", "label"] for names, _ in batches)


def test_memory_is_bounded_by_a_group_and_not_by_the_file(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.parquet", group=8, image=pa.array([rng.bytes(100_000) for _ in range(400)]))
    before = pa.total_allocated_bytes()
    tracemalloc.start()  # what is read passes through Python's bytes
    try:
        largest = max(pa.total_allocated_bytes() for _ in open_parquet(path, data()).read()) - before
        largest += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < 10_000_000  # of 40 MB; a group has 0.8


def test_a_reader_that_is_given_up_closes_its_file(tmp_path):
    reader = open_parquet(write(tmp_path / "a.parquet", image=hub(PNG, PNG)), data()).read()
    next(reader)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    reader.close()
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) == opened - 1


@given(rows=st.integers(1, 200), group=st.integers(1, 250), page=st.integers(1, 4000), seed=st.integers(0, 9))
@hypothesis_settings(max_examples=40, deadline=None)
def test_rows_come_in_order_whatever_the_row_groups(tmp_path_factory, rows, group, page, seed):
    rng = np.random.default_rng(seed)
    images = [None if rng.random() < 0.2 else struct.pack("<I", row) for row in range(rows)]
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    table = pa.table({"image": hub(*images), "label": pa.array(range(rows))})
    pq.write_table(table, path, row_group_size=group, data_page_size=page)
    source = open_parquet(path, data())
    assert source.total == rows
    for row, (found, image) in enumerate(zip(source.read(), images, strict=True)):
        assert found.name == f"a.parquet/{row:07d}"
        if image is None:
            assert isinstance(found, Finding)
        else:
            assert (found.data, found.label) == (image, str(row))


# .npy


def saved(path, array):
    with path.open("wb") as file:
        np.save(file, array)
    return path


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 6, 1), (5, 4, 6, 3), (5, 4, 6, 4), (1, 1, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_an_array(tmp_path, shape, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), order=order)
    source = open_npy(saved(tmp_path / "a.npy", array), data())
    assert (source.total, source.classes) == (shape[0], None)
    for _ in range(2):
        items = list(source.read())
        assert [item.name for item in items] == [f"a.npy/{row:07d}" for row in range(shape[0])]
        for item, pixels in zip(items, array, strict=True):
            assert type(item.data) is np.ndarray and item.data.dtype == np.uint8 and item.data.flags.c_contiguous
            assert np.array_equal(item.data, pixels[..., 0] if shape[3:] == (1,) else pixels)
            assert (item.label, item.split) == (None, None)


def test_an_image_three_pixels_wide_is_not_taken_for_colours(tmp_path):
    source = open_npy(saved(tmp_path / "a.npy", np.zeros((2, 4, 1), np.uint8)), data())
    assert [item.data.shape for item in source.read()] == [(4, 1), (4, 1)]


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 2, 1)])
def test_bool_becomes_black_and_white(tmp_path, shape):
    array = np.random.default_rng(0).random(shape) < 0.5
    items = list(open_npy(saved(tmp_path / "a.npy", array), data()).read())
    assert np.array_equal([item.data for item in items], 255 * array.reshape(2, 2, 2).astype(np.uint8))
    assert items[0].data.dtype == np.uint8


def test_an_array_is_mapped_and_what_is_handed_on_is_a_copy(tmp_path, monkeypatch):
    modes = []
    original = np.memmap.__new__

    def spy(cls, *args, **kwargs):
        modes.append(kwargs["mode"])
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(np.memmap, "__new__", spy)
    path = saved(tmp_path / "a.npy", np.zeros((3, 2, 2), np.uint8))
    before = path.read_bytes()
    for item in open_npy(path, data()).read():
        item.data[:] = 7
    assert path.read_bytes() == before
    assert set(modes) == {"r"}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int8), np.zeros((2, 4, 4), np.uint16),
        np.zeros((4, 4), np.uint8), np.zeros((), np.uint8), np.zeros((2, 5, 5, 2), np.uint8),
        np.zeros((2, 4, 4, 3, 1), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros((2, 0, 4), np.uint8),
        np.zeros((2, 4, 4), "U3"), np.zeros((2, 4, 4), [("名", "u1")]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_another_dtype_or_shape_is_an_error_that_says_it(tmp_path, array):
    path = saved(tmp_path / "a.npy", array)
    refused(lambda: open_npy(path, data()), path, array.shape, "(N,H,W,3)", "uint8")
    if array.dtype.names is None:
        refused(lambda: open_npy(path, data()), array.dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_first_are_to_be_moved(tmp_path, channels, dtype):
    path = saved(tmp_path / "a.npy", np.zeros((2, channels, 8, 8), dtype))
    refused(lambda: open_npy(path, data()), (2, channels, 8, 8), np.dtype(dtype), "move the channels last")


def test_a_newer_version_of_the_format_is_read(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    assert np.array_equal([item.data for item in open_npy(tmp_path / "a.npy", data()).read()], array)


class Armed:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_objects_are_an_error_and_never_unpickled(tmp_path):
    array = np.empty((2, 4, 4), object)
    array[:] = Armed(str(tmp_path / "harm"))
    path = saved(tmp_path / "a.npy", array)
    refused(lambda: open_npy(path, data()), path, "object", (2, 4, 4))
    assert not (tmp_path / "harm").exists()


def test_an_archive_of_arrays_is_an_error_that_says_what_is_allowed(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
    refused(lambda: open_npy(tmp_path / "a.npz", data()), tmp_path / "a.npz", "no .npy file", "(N,H,W)", "numpy.save")


MIXED = b"\x93NUMPY\x01\x00\x10\x00" + b"{1: 2, 'a': 3}".ljust(15) + b"\n"  # keys that cannot be sorted


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00" + b"{" * 16, MIXED, PNG])
def test_what_is_no_npy_file_is_an_error(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    refused(lambda: open_npy(path, data()), path, "no .npy file")


def test_a_folder_and_a_missing_file_are_no_npy_file(tmp_path):
    refused(lambda: open_npy(tmp_path, data()), tmp_path, "no .npy file")
    refused(lambda: open_npy(tmp_path / "a.npy", data()), "no .npy file")


@given(at=st.integers(0, 127), value=st.integers(0, 255))
@hypothesis_settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
def test_a_damaged_header_is_read_or_an_error(tmp_path_factory, at, value):
    path = saved(tmp_path_factory.mktemp("npy") / "a.npy", np.zeros((2, 4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    try:
        list(open_npy(path, data()).read())
    except ScanError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("missing", [1, 32])
def test_a_truncated_array_is_an_error_when_opened(tmp_path, missing):
    path = saved(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-missing])
    refused(lambda: open_npy(path, data()), path, "cannot be read")
