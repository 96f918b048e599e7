"""The table for other programs: each image's file, its place on the map, and a small picture."""

import io
import os

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.groups.apply import read_predictions
from tests.pipeline.review.conftest import project
from tests.pipeline.sorting.finished import scan
from tests.project import set_params

__all__ = ["project"]  # the fixture


def test_each_image_has_its_file_its_place_and_its_picture(project):
    before = set(os.listdir())
    assert scan("sort", "--parquet", "table.parquet").stdout == "table     23 rows in table.parquet\n"
    assert set(os.listdir()) == before | {"table.parquet", "groups.yaml"} | (before & {"answers.csv"})
    rows = pq.read_table("table.parquet").to_pylist()
    expected = read_predictions().to_pylist()
    for row, known in zip(rows, expected, strict=True):
        assert {name: row[name] for name in known} == known
        if known["split"] == "rejected":
            assert row["path"] is row["picture"] is row["x"] is None
            continue
        number = int(row["source"].removeprefix("a/").removesuffix(".jpg"))
        assert row["path"] == str(project / "photos" / "a" / f"{number}.jpg") and os.path.exists(row["path"])
        with Image.open(io.BytesIO(row["picture"])) as picture:
            middle = picture.convert("L").getpixel((picture.width // 2, picture.height // 2))
        assert picture.format == "WEBP" and middle == pytest.approx(number * 10 % 250, abs=3)


def test_what_is_no_file_of_its_own_has_no_path(project):
    set_params(project, {"data": {"name": "archive", "path": "photos.zip"}})
    scan("sort", "--parquet", "table.parquet")
    rows = pq.read_table("table.parquet").to_pylist()
    assert {row["path"] for row in rows} == {None} and sum(row["picture"] is not None for row in rows) == 22
