"""reports/report.html: the page as one file, which asks nothing of any other place."""

import json
import re

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.groups import edits, file
from pipeline.groups.apply import in_place
from pipeline.params import read_params
from pipeline.review import report
from pipeline.review.report import LARGEST, shortened, write_report
from tests.pipeline.review.conftest import write_whole_run
from tests.project import set_params


def data_of(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def written(project, at=in_place):
    write_report(project / "report.html", read_params(), at)
    return (project / "report.html").read_text(encoding="utf-8")


def test_it_holds_the_page_the_run_and_its_pictures(project):
    text = written(project)
    data = data_of(text)
    assert data["mode"] == "report" and data["version"] == 1 and data["project"] == "photos"
    assert [group["number"] for group in data["groups"]] == [2, 3, 1] and len(data["images"]["group"]) == 22
    assert set(data["thumbs"]) == {str(image) for image in range(22)}
    assert all(each.startswith("data:image/webp;base64,UklGR") for each in data["thumbs"].values())
    assert set(data["images"]["date"]) == {""} and data["promise"] is None and "check" not in data
    assert (
        data["more"]["settings"] and data["more"]["scores"] and data["more"]["charts"] and 'class="sample"' not in text
    )
    static = {path.name: path.read_text() for path in report.STATIC.iterdir()}
    assert static["page.js"] in text and static["page.css"] in text and "Permission is hereby granted" in text


def test_the_same_run_gives_the_same_bytes_and_nothing_else_is_written(project):
    before = sorted(project.rglob("*"))
    first = written(project)
    assert sorted(project.rglob("*")) == sorted([*before, project / "report.html"])
    (project / "photos" / "a" / "1.jpg").touch()
    assert written(project) == first and str(project) not in first


def test_numbers_names_and_corrections_are_those_of_groups_yaml(project, monkeypatch):
    edits.name(2, "犬")
    edits.merge([1, 3])
    data = data_of(written(project))
    named = [(group["number"], group["name"], group["size"]) for group in data["groups"]]
    assert named == [(2, "犬", 7), (1, "", 15)] and data["run"]["edited"]
    (project / "models" / "selflabel.safetensors").write_bytes(b"another")
    before = file.FILE.read_bytes()
    again = [(group["number"], group["name"]) for group in data_of(written(project))["groups"]]
    assert again == [(2, "犬"), (1, "")] and file.FILE.read_bytes() == before, "found again by their images"


def test_a_damaged_groups_yaml_fails_no_run(project, capsys):
    file.FILE.write_text("names: [")
    assert [group["number"] for group in data_of(written(project))["groups"]] == [2, 3, 1]
    assert "evaluate: warning: the report has groups without names and corrections" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_read_where_its_files_are(project):
    staged = project / "staged"
    for path in (artifacts.PREDICTIONS, artifacts.VERDICT, artifacts.METRICS):
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        path.rename(staged / path)
    text = written(project, lambda path: staged / path if (staged / path).exists() else path)
    assert len(data_of(text)["images"]["group"]) == 22 and not artifacts.PREDICTIONS.exists()


def test_texts_stay_texts_and_nothing_comes_from_elsewhere(project):
    hostile = "</script><script>alert(1)</script><img src=https://example.org/x>"
    edits.name(1, hostile)
    artifacts.save_findings(artifacts.ITEMS / "findings.csv", [(hostile, "rejected", "</style><!--")])
    text = written(project)
    assert data_of(text)["groups"][2]["name"] == hostile and data_of(text)["rejected"][0]["source"] == hostile
    assert text.count("<script") == text.count("</script") == 2 and "<img" not in re.sub(
        r"<script>.*?</script>", "", text
    )
    assert "default-src 'none'" in text and not re.findall(r"(?:src|href)=\"?(?:https?:)?//", text.split("<body>")[0])


def test_without_pictures_it_has_neither_these_nor_names_of_files(project):
    set_params(project, {"evaluate": {"pictures": False}})
    text = written(project)
    data = data_of(text)
    assert "thumbs" not in data and data["rejected"] == [] and data["counts"]["unreadable"] == 1
    assert ".jpg" not in text and "photos" not in data["project"] and "webp" not in data["images"]
    content = data["images"]["source"][4]
    assert edits.image_contents([content]) == {"a/4.jpg": content}, "scan edit move takes what the page copies"


def test_paths_of_this_computer_are_not_in_the_settings(project):
    set_params(project, {"data": {"path": "/home/somebody/photos", "labels": "~/labels.csv"}})
    settings = data_of(written(project))["more"]["settings"]
    assert "path: …/photos" in settings and "labels: …/labels.csv" in settings and "somebody" not in settings


def test_more_images_than_there_is_room_for_are_a_sample_which_is_said(project, monkeypatch):
    monkeypatch.setattr(report, "COLUMNS", 1_000)
    monkeypatch.setattr(report, "FILES", 0)
    text = written(project)
    data = data_of(text)
    count = len(data["images"]["group"])
    assert 5 < count < 22 and data["run"]["images"] == 22 and data["groups"][2]["size"] == 10
    assert f"This file lists {count} of 22 images and 0 of 1 files that were left out; scan review shows all." in text
    numbers = {source: image for image, source in enumerate(f"a/{row}.jpg" for row in range(22))}
    for group in data["groups"]:
        for image in (*group["prototypes"], *group["least_sure"], *group["random"]):
            assert data["images"]["group"][image] == group["number"]
    before = data_of(written_whole(project, monkeypatch))
    for image, thumb in data["thumbs"].items():
        assert before["thumbs"][str(numbers[data["images"]["source"][int(image)]])] == thumb


def written_whole(project, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(project)
    return written(project)


def test_pictures_end_where_the_file_would_be_too_large(project, monkeypatch):
    whole = len(written(project).encode())
    monkeypatch.setattr(report, "LARGEST", whole - 500)
    text = written(project)
    assert whole - 1_200 < len(text.encode()) <= whole - 500 and len(data_of(text)["thumbs"]) < 22


def test_nothing_is_cut_that_has_room(project):
    data = data_of(written(project))
    assert shortened(data) == (data, list(range(22)), "")


@pytest.mark.slow
def test_sixty_thousand_images_take_less_than_20_mb(project):
    rng = np.random.default_rng(0)
    write_whole_run(clusters=rng.integers(80, size=60_000).tolist(), side=32, dimensions=128, labels=[0] * 60_000)
    noise = rng.integers(0, 256, (60_000, 32, 32, 3), np.uint8)  # the largest of pictures
    artifacts.save_array(artifacts.IMAGES / "pixels-00000.npy", noise)
    text = written(project)
    assert len(text.encode()) <= LARGEST and len(data_of(text)["thumbs"]) > 1_000
