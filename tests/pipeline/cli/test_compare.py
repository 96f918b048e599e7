"""``scan compare``: what it prints, where the picture is, and what is refused."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.app import app
from tests.pipeline.test_compare import RUN, files_of, make_run

SAID = """\
A         {old}
B         the workspace
images    10 in both; 1 only in B, such as a/10.jpg

settings           A  B
cluster.neighbors  5  20

scores of all images  A      B
groups                2      3
verdict               WEAK   WEAK
sure                  10     11
to check              0      0
fits nowhere          0      0
neighbor agreement    92.8%  92.8%
silhouette            0.36   0.36

agreement 80.0% of the images in both are in groups that match one to one
          ARI 0.63, AMI 0.74 (1: the same groups, 0: chance)
groups    1 kept, 1 split
split     1 → 2, 3: 4 and 2 of 6 images
whole     2 → 1

picture   .scan/compare.png
"""


def compare(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


@pytest.fixture
def old(tmp_path):
    return make_run(tmp_path / "old", [0] * 4 + [1] * 6)


@pytest.fixture
def here(tmp_path, monkeypatch):
    settings = {**RUN, "cluster": {**RUN["cluster"], "neighbors": 20}}
    folder = make_run(tmp_path / "here", [0] * 4 + [1] * 4 + [2] * 3, settings)
    monkeypatch.chdir(folder)
    return folder


def test_two_folders_are_compared(old, here):
    done = compare("../old")
    assert done.exit_code == 0 and done.stderr == ""
    assert "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n" == SAID.format(old="../old")
    assert Image.open(here / ".scan" / "compare.png").format == "PNG"


def test_nothing_but_the_picture_is_written(old, here, tmp_path):
    before = files_of(tmp_path)
    assert "picture   ../x.png" in compare("../old", ".", "--picture", "../x.png").stdout
    assert files_of(tmp_path).keys() - before.keys() == {tmp_path / "x.png"}


def test_the_order_of_the_runs_is_that_of_the_words(old, here):
    done = compare(here, old)
    assert "merged    2 → 1: 4 of 4 images" in done.stdout and "cluster.neighbors  20  5" in done.stdout


def test_the_same_run_differs_in_nothing(here):
    done = compare(".", here)
    assert "\nsettings  the same in both\n" in done.stdout and "groups    3 kept\nwhole " in done.stdout
    assert "agreement 100.0%" in done.stdout and "ARI 1.00, AMI 1.00" in done.stdout


def test_outside_a_project_a_picture_is_drawn_if_one_is_asked_for(old, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "picture" not in compare("old", "here").stdout and not (tmp_path / ".scan").exists()
    assert "picture   x.png" in compare("old", "here", "--picture", "x.png").stdout


@pytest.mark.parametrize(("words", "said"), [
    (("v1",), "v1 is no folder of a project, and"),
    ((".", "/"), "/ is no folder of a project, and"),
    ((".", "--picture", "x.jpg"), "--picture is x.jpg; a .png file is allowed"),
    ((".", "--picture", "none/x.png"), "there is no folder none; make it, or name another file"),
    (("../others",), "../others and the workspace have no image in common, 4 and 11 images"),
    (("../empty",), "../empty: there is no reports/predictions.parquet"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(here, tmp_path, words, said):
    make_run(tmp_path / "others", [0, 0, 1, 1], first=50)
    make_run(tmp_path / "empty", [0, 1])
    (tmp_path / "empty" / "reports" / "predictions.parquet").unlink()
    done = compare(*words)
    assert done.exit_code == 1 and done.stdout == "" and said in done.stderr
    assert done.stderr.startswith("scan: error: ") and done.stderr.count("\n") == 1
    assert not (here / ".scan").exists()
