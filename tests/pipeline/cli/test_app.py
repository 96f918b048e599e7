"""``scan`` itself: where the project stands, old names, and words that are no command."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli.app import RENAMED, app
from pipeline.cli.run import RUN
from pipeline.groups.numbering import numbered
from pipeline.presets import change_params
from pipeline.project import make_project
from tests.pipeline.groups.conftest import write_run
from tests.project import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan(*words):
    return CliRunner().invoke(app, words)


def test_outside_a_project_the_first_step_is_named_and_projects_that_are_here(here):
    make_project(here / "birds-groups")
    said = scan()
    assert said.exit_code == 0 and "run PHOTOS" in said.stdout and "birds-groups; go there" in said.stdout


def test_in_the_clone_a_run_makes_a_project_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "in a project of its own" in scan().stdout


def test_in_a_project_it_says_what_is_there_and_what_comes_next(here, monkeypatch):
    make_project(here / "birds")
    monkeypatch.chdir(here / "birds")
    change_params({"data": {"path": "/photos of birds"}}, "test")
    assert "groups       none yet" in scan().stdout and "run PHOTOS" in scan().stdout
    RUN.parent.mkdir(exist_ok=True)
    artifacts.save_json(RUN, {"asked": {"photos": "/photos of birds"}})
    assert "run '/photos of birds'" in scan().stdout and "carries on" in scan().stdout
    write_run([0] * 3 + [1] * 2 + [None])
    artifacts.save_json(artifacts.VERDICT, {"word": "weak", "groups": []})
    numbered()
    assert scan("edit", "name", "1", "jay").exit_code == 0
    said = scan().stdout
    assert "2 groups, 1 with a name; verdict: WEAK" in said and "photos       5: 5 sure, 0 to check" in said
    assert "sort FOLDER" in said
    scan("edit", "merge", "1", "2")
    assert "1 groups, 1 with a name" in scan().stdout


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_say_the_new_one(old, new):
    done = scan(old, "--help")
    assert done.exit_code == 1 and done.stderr == f"scan: error: scan {old} is scan {new} now\n"
    assert scan(*new.split(), "--help").exit_code == 0


@pytest.mark.parametrize(("word", "meant"), [("shw", "show"), ("predct", "predict"), ("xyzzy", None)])
def test_a_word_that_is_no_command_is_one_line_with_what_may_be_meant(word, meant):
    done = scan(word)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "is no command" in done.stderr
    assert (f"did you mean {meant}?" in done.stderr) if meant else ("did you mean" not in done.stderr)


def test_help_names_the_commands_in_the_order_in_which_they_are_used():
    lines = re.findall(r"(?m)^(?:╭─|│) (\w+) [ ─]", scan("--help").stdout)
    order = ["Start", "run", "show", "sort", "Use", "predict", "edit", "Prepare", "look", "settings", "Team", "runs"]
    assert [line for line in lines if line in order] == order


def test_a_name_that_the_terminal_cannot_write_is_written_out():
    """Of an ASCII terminal, which a container without a locale has."""
    code = "from pipeline.cli.app import app\napp.command()(lambda: print('M\\u00fcller'))\napp(['<lambda>'])"
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"M\\xfcller\n"), done.stderr
