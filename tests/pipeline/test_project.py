"""Projects: where they are made, what of, what is left alone; and that an installed package can make one."""

import os
import subprocess
import sys
import zipfile

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.params import read_params
from pipeline.presets import find_preset, read_preset
from pipeline.project import command_name, is_clone, is_project, make_project, project_for
from tests.project import ROOT, environment, run
from tests.tiny import refused


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("photos", "folder"), [
    ("photos", "photos-groups"), ("My Photos!", "My-Photos-groups"), ("a/b/", "b-groups"), ("x.tar.xz", "x-groups"),
    ("set.zip", "set-groups"), ("Été 2020", "Été-2020-groups"), ("../", None), ("---", "photos-groups"),
])  # fmt: skip
def test_a_project_is_called_after_its_photos_and_stands_where_one_is(here, photos, folder):
    path = here / photos
    if "." in photos.strip("./"):
        path.write_text("")
    assert project_for(photos, here) == here / (folder or f"{here.parent.name}-groups")


def test_in_a_project_that_one_is_used_but_a_clone_is_no_project_of_a_person(here):
    make_project(here / "mine")
    assert project_for("photos", here / "mine") == here / "mine"
    assert is_clone(ROOT) and is_project(ROOT) and not is_clone(here / "mine")
    assert project_for("photos", ROOT) == ROOT / "photos-groups"
    ignored = subprocess.run(["git", "check-ignore", "-q", "photos-groups/"], cwd=ROOT)
    assert ignored.returncode == 0, "a project inside the clone is none of git's"


def test_a_project_has_settings_stages_and_a_command_and_dvc_accepts_it(here, monkeypatch):
    make_project(here / "my project")
    monkeypatch.chdir(here / "my project")
    assert read_params() == read_preset(find_preset("photos"))
    files = {path.name for path in (here / "my project").iterdir()}
    assert files == {".dvc", ".git", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml", "scan"}
    assert (
        os.access("scan", os.X_OK) and (here / "my project" / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    )
    listed = run(here / "my project", sys.executable, "-m", "dvc", "stage", "list", "--name-only").stdout.split()
    assert listed[:2] == ["source", "prepare"] and listed[-1] == "evaluate"
    assert "analytics = false" in (here / "my project" / ".dvc" / "config").read_text()


def test_without_git_dvc_starts_without_it(here, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    make_project(here / "a")
    assert not (here / "a" / ".git").exists() and "no_scm = true" in (here / "a" / ".dvc" / "config").read_text()


def test_what_is_there_is_left_alone_and_what_is_missing_is_completed(here, capsys):
    make_project(here / "a")
    (here / "a" / "params.yaml").write_text("seed: 7\n")
    (here / "a" / "notes.txt").write_text("mine")
    (here / "a" / "scan").unlink()
    make_project(here / "a")
    assert (here / "a" / "params.yaml").read_text() == "seed: 7\n" and (here / "a" / "notes.txt").exists()
    assert (here / "a" / "scan").exists() and capsys.readouterr().err == ""


def test_a_file_of_an_older_program_is_replaced_and_kept(here, capsys):
    make_project(here / "a")
    (here / "a" / "dvc.yaml").write_text("old: 1\n")
    make_project(here / "a")
    assert (here / "a" / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    (kept,) = (here / "a" / ".scan").glob("dvc.yaml-*")
    assert kept.read_text() == "old: 1\n" and kept.name in capsys.readouterr().err


def test_a_half_made_project_is_completed(here):
    (here / "a" / ".scan").mkdir(parents=True)
    (here / "a" / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    make_project(here / "a")
    assert is_project(here / "a") and (here / "a" / ".dvc").is_dir()


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(here):
    (here / "a").mkdir()
    (here / "a" / "letter.txt").write_text("dear")
    refused(lambda: make_project(here / "a"), "is no project: it has letter.txt", "move it away")
    assert [path.name for path in (here / "a").iterdir()] == ["letter.txt"]
    (here / "b").write_text("a file")
    refused(lambda: make_project(here / "b"), "is no project")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(here):
    (here / "closed").mkdir(mode=0o500)
    refused(lambda: make_project(here / "closed" / "a"), "cannot be made", "Permission denied")


def test_init_makes_one_and_says_what_comes_next(here):
    said = CliRunner().invoke(app, ["init", "birds"])
    assert said.exit_code == 0 and is_project(here / "birds") and "scan run PHOTOS" in said.stdout
    assert CliRunner().invoke(app, ["init", "birds"]).exit_code == 0


def test_looking_outside_a_project_leaves_nothing_behind(here, monkeypatch):
    from tests.pipeline.cli.test_run import make_photos, quickly

    make_photos(here / "photos", 20)
    quickly(monkeypatch)
    before = sorted(path.name for path in here.rglob("*"))
    said = CliRunner().invoke(app, ["look", "photos"])
    assert said.exit_code == 0 and "found     20 images" in said.stdout, said.stderr
    assert sorted(path.name for path in here.rglob("*")) == before
    assert "there is none here; scan run makes one" in CliRunner().invoke(app, ["look", "photos", "--use"]).stderr


def test_the_command_is_what_a_person_can_type(here, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert command_name().endswith("/scan")
    (here / "scan").write_text("")
    assert command_name() == "./scan"
    monkeypatch.setattr("shutil.which", lambda name: str(os.path.join(os.path.dirname(sys.executable), "scan")))
    assert command_name() == "scan"


@pytest.mark.slow
def test_a_wheel_carries_what_a_project_is_made_of(here):
    copy = here / "clone"
    run(ROOT, "git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(copy))
    for name in ("setup.py", "pyproject.toml", "dvc.yaml"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    run(copy, sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('.')", **environment())
    (wheel,) = copy.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"pipeline/template/presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")}
    wanted = {"pipeline/template/dvc.yaml", "pipeline/template/.dvcignore", "pipeline/review/static/page.js", *presets}
    assert wanted <= names and "stages/prepare.py" in names and not [name for name in names if name.startswith("tests")]
