"""Photos that came after the run: which are new, which are gone, and that their rows are read with the others."""

import os
import shutil

import pyarrow as pa
import pytest

from pipeline.groups.apply import read_predictions
from pipeline.groups.numbering import numbered
from pipeline.groups.placed import add_placed, changes_of, known_contents, note_seen, stamps_of
from pipeline.predict import RAW
from scan_core.data.chunks import content_of
from scan_core.data.folder import open_folder
from tests.pipeline.groups.conftest import CENTERS, write_run
from tests.tiny import data_settings


@pytest.fixture
def photos(project):
    """A run of two photos, a/0.jpg and a/1.jpg."""
    folder = project / "photos" / "a"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 10)
    write_run([0, 1])
    import pyarrow.parquet as pq

    from pipeline.artifacts import PREDICTIONS

    table = pq.read_table(PREDICTIONS)
    contents = [content_of(bytes([number]) * 10).hex() for number in range(2)]
    pq.write_table(table.set_column(table.schema.get_field_index("content"), "content", [contents]), PREDICTIONS)
    numbered()
    return folder


def source(photos):
    return open_folder(photos.parent, data_settings(name="folder", path="photos"))


def names(items):
    return [item.name for item in items]


def placed(*sources, cluster=0):
    rows = [
        {"source": name, "content": name, "cluster": cluster, "probability": 0.9, "runner_up": 1,
         "runner_up_probability": 0.1, "state": "sure", "embedding": CENTERS[0]} for name in sources
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, RAW)


def test_nothing_is_new_after_a_run_even_if_files_have_another_time(photos):
    assert names(changes_of(source(photos)).new) == []
    note_seen(stamps_of(source(photos)))
    os.utime(photos / "0.jpg", (1, 1))
    assert names(changes_of(source(photos)).new) == []


def test_what_came_changed_or_went_is_found(photos):
    note_seen(stamps_of(source(photos)))
    (photos / "2.jpg").write_bytes(b"new")
    (photos / "1.jpg").write_bytes(b"changed")
    (photos / "0.jpg").rename(photos / "renamed.jpg")
    found = changes_of(source(photos))
    assert names(found.new) == ["a/1.jpg", "a/2.jpg", "a/renamed.jpg"] and found.gone == ["a/0.jpg"]
    note_seen(found.stamps)
    assert names(changes_of(source(photos)).new) == []


def test_files_that_were_seen_are_not_opened(photos):
    note_seen(stamps_of(source(photos)))
    for number in range(2):
        stamp = os.stat(photos / f"{number}.jpg").st_mtime_ns
        (photos / f"{number}.jpg").write_bytes(b"x" * 10)  # the same size and time
        os.utime(photos / f"{number}.jpg", ns=(stamp, stamp))
    assert names(changes_of(source(photos)).new) == []


def test_placed_photos_are_read_with_the_others_until_the_model_is_another(photos):
    add_placed([placed("a/5.jpg", "a/6.jpg")])
    add_placed([placed("a/6.jpg", cluster=1)])
    rows = {row["source"]: row for row in read_predictions().to_pylist()}
    assert [rows[f"a/{number}.jpg"]["group"] for number in (0, 1, 5, 6)] == [1, 2, 1, 2]
    assert rows["a/5.jpg"]["split"] == "new" and "a/5.jpg" in known_contents()
    write_run([0, 1], model=b"another")
    assert len(read_predictions()) == 2


def test_a_photo_that_changed_has_one_row(photos):
    add_placed([placed("a/0.jpg", cluster=1)])
    rows = read_predictions().to_pylist()
    assert [(row["source"], row["group"]) for row in rows] == [("a/1.jpg", 2), ("a/0.jpg", 2)]


def test_what_cannot_be_read_is_said(photos):
    add_placed([pa.Table.from_pylist([{"source": "a/7.jpg", "reason": "truncated"}], RAW)])
    (row,) = [row for row in read_predictions().to_pylist() if row["source"] == "a/7.jpg"]
    assert row["group"] is None and row["split"] == "rejected"


def test_a_folder_that_is_gone_has_all_its_photos_gone(photos):
    shutil.rmtree(photos)
    assert changes_of(source(photos)).gone == ["a/0.jpg", "a/1.jpg"]
