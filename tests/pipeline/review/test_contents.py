"""What the page shows of a run."""

import io
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.groups import edits
from pipeline.review.contents import Contents, halves
from pipeline.review.images import THUMB, StoredImages
from scan_core.errors import ScanError
from tests.pipeline.review.conftest import SIDE, directions, write_whole_run


def test_groups_come_with_the_work_first_and_images_that_stand_for_them(images):
    found = Contents(images).everything()
    groups = found["groups"]
    assert [(each["number"], each["word"], each["size"]) for each in groups] == [
        (2, "weak", 7), (3, "none", 5), (1, "strong", 10)
    ]  # fmt: skip
    vectors, members = directions(), np.arange(10)
    surest = vectors[members[::-1]].mean(axis=0)  # all ten, for the later an image the surer
    one = groups[2]
    assert one["prototypes"] == np.argsort(-(vectors[:10] @ surest), kind="stable")[:8].tolist()
    assert one["least_sure"] == [0, 1, 2, 3] and set(one["random"]) <= set(range(10)) and len(one["random"]) == 8
    assert one["states"] == {"sure": 7, "to check": 3, "fits nowhere": 0}
    assert {each["group"] for each in one["similar"]} == {2, 3} and one["can_split"] and one["classes"] == []


def test_what_is_above_the_fold(images):
    found = Contents(images).everything()
    assert found["run"] == {
        "images": 22, "number": 3, "low": 3, "high": 3, "given": True, "labels": False, "edited": False
    }  # fmt: skip
    assert found["counts"] == {"sure": 15, "to check": 6, "fits nowhere": 1, "unreadable": 1, "copies": 3}
    assert found["verdict"]["word"] == "weak" and found["verdict"]["why"] == [
        "neighbors are in one group more often than by chance: by 62% of what is possible",
        "images that lie between two groups are 40% fewer than by chance",
    ]
    assert found["promise"] is None and found["copies"] == [[2, 3, 4]]
    assert found["odd"] == {"dark": [0, 1, 2, 3], "blurred": [], "outliers": [21]}
    assert found["rejected"] == [{"source": "a/22.jpg", "kind": "rejected", "reason": "it is cut off"}]


def test_each_column_has_a_value_for_each_image(images):
    listed = Contents(images).everything()["images"]
    assert {len(values) for name, values in listed.items() if name != "label"} == {22} and listed["label"] == []
    assert listed["source"][3] == "a/3.jpg" and len(listed["date"][3]) == 10
    assert 0 <= min(listed["x"] + listed["y"]) <= max(listed["x"] + listed["y"]) <= 1
    assert listed["state"][:5] == [1, 0, 0, 0, 1] and listed["state"][21] == 2 and listed["group"][0] == 1


def test_labels_are_shown_as_shares_and_nothing_is_matched_one_to_one(project):
    write_whole_run(project / "photos", labels=[0] * 6 + [1] * 3 + [-1] + [1] * 12)
    found = Contents(StoredImages()).everything()
    of_one = next(each for each in found["groups"] if each["number"] == 1)
    assert of_one["classes"] == [["cat", 6 / 9], ["dog", 3 / 9]] and found["run"]["labels"]
    assert found["images"]["label"][9] == "" and found["images"]["label"][0] == "cat"


def test_corrections_change_what_is_shown(images):
    edits.merge([2, 3])
    edits.move({"a/0.jpg": images.contents[0]}, 2)
    edits.name(2, "dog")
    changed = Contents(images).changing()
    assert [(each["number"], each["name"], each["size"]) for each in changed["groups"]] == [(2, "dog", 13), (1, "", 9)]
    assert changed["images"]["group"][0] == 2 and changed["images"]["answered"] == [1] + [0] * 21
    assert changed["run"]["edited"] and changed["run"]["number"] == 2
    assert 0 not in [each["image"] for each in changed["questions"]]


def test_a_split_is_shown_before_it_is_made(images):
    contents = Contents(images)
    before = edits.file.load()
    parts = halves(contents, 1, 2)
    assert sorted([*parts[0], *parts[1]]) == list(range(10)) and edits.file.load() == before
    edits.split(1, 2)
    groups = Contents(images).groups
    assert [set(groups[part].tolist()) for part in parts] == [{4}, {5}]
    with pytest.raises(ScanError, match="there is no group 1"):
        halves(Contents(images), 1, 2)
    with pytest.raises(ScanError, match="2 to 20 groups"):
        halves(Contents(images), 2, 1)


def test_pictures_are_the_photo_or_what_is_stored_of_it(images, project):
    small = Image.open(io.BytesIO(images.thumb(7)))
    assert small.format == "WEBP" and small.size == (min(THUMB, SIDE),) * 2
    assert abs(small.convert("RGB").getpixel((5, 5))[0] - 70) <= 3
    large = Image.open(io.BytesIO(images.photo(7)))
    assert large.size == (400, 300)
    (project / "photos" / "a" / "7.jpg").write_bytes(b"no picture")
    assert Image.open(io.BytesIO(images.photo(7))).size == (SIDE, SIDE)
    (project / "photos" / "a" / "7.jpg").unlink()
    assert Image.open(io.BytesIO(images.photo(7))).size == (SIDE, SIDE) and images.date(7) == ""


def test_the_map_is_that_of_the_predictions_and_of_an_older_run_there_is_none(images):
    table = pq.read_table(artifacts.PREDICTIONS)
    listed = Contents(images).everything()["images"]
    assert listed["x"] == [round(each, 4) for each in table["x"].drop_null().to_pylist()]
    pq.write_table(table.drop_columns(["x", "y"]), artifacts.PREDICTIONS)
    listed = Contents(StoredImages()).everything()["images"]
    assert listed["x"] == listed["y"] == [] and len(listed["group"]) == 22


def test_a_large_run_is_read_in_seconds(project):
    write_whole_run(clusters=[row % 40 for row in range(5_000)], side=4, dimensions=40)
    start = time.process_time()
    Contents(StoredImages()).everything()
    assert time.process_time() - start < 20
