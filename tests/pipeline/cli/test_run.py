"""``scan look`` and ``scan run``: from a folder of photos to groups."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline import plan
from pipeline.artifacts import GROUPS as NUMBER
from pipeline.artifacts import PREDICTIONS, VERDICT, save_json
from pipeline.cli import run as run_command
from pipeline.cli.app import app
from pipeline.cli.show import show_groups
from pipeline.groups.apply import read_predictions
from pipeline.params import read_params
from tests.pipeline.groups.conftest import write_run
from tests.project import ROOT, environment, run


def photo(seed, size=(48, 36)):
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)


def make_photos(folder, count):
    for seed in range(count):
        place = folder / "ab"[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        photo(seed).save(place / f"{seed}.jpg")
    return folder


def quickly(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr(plan, "embedding_seconds", lambda name, side: 0.01)
    monkeypatch.setattr(plan, "scan_seconds", lambda clusters, settings: 5.0)
    monkeypatch.setattr(plan, "adapting_seconds", lambda found, chosen, clusters, settings: 90.0)
    monkeypatch.setattr(plan, "plan_training", lambda found, params: plan.Plan((), 7200, 3e9))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with settings and presets, in which nothing is measured and nothing is run."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    make_photos(tmp_path / "photos", 60)
    monkeypatch.chdir(tmp_path)
    quickly(monkeypatch)
    runs = []
    monkeypatch.setattr(run_command, "reproduce", lambda: runs.append(read_params()))
    monkeypatch.setattr(run_command, "show", lambda: None)
    monkeypatch.setattr(run_command, "note_finished", lambda earlier: None)
    return runs


def scan(*words):
    return CliRunner().invoke(app, words)


def test_look_says_what_is_there_what_it_takes_and_the_settings_and_changes_nothing(project, tmp_path):
    before = (tmp_path / "params.yaml").read_bytes()
    (tmp_path / "photos" / "cut.jpg").write_bytes((tmp_path / "photos" / "a" / "0.jpg").read_bytes()[:300])
    (tmp_path / "photos" / "notes.txt").write_text("cats")
    said = scan("look", "photos").stdout
    for each in (
        "found     61 images, 48 x 36 pixels; JPEG", "1 other files",
        "1 of 61 looked at cannot be read, such as cut.jpg",
        "subfolders are not classes (--labels folders)",
        "plan      as many groups as there seem to be, by efficientnet_lite0 at 128 px and efficientnet_lite2 at 128",
        "about 1:",
        "or --adapt: its last layers learn these images' groups first, 1:30 more",
        "or --train: a network learns from these images alone, about 2:00:00, 3 GB",
        "num_clusters: auto", "method: frozen",
    ):  # fmt: skip
        assert each in said, each
    assert (tmp_path / "params.yaml").read_bytes() == before and project == []
    assert Image.open(tmp_path / ".scan" / "contact_sheet.png").size[0] > 1000


def test_look_can_write_the_settings_and_those_of_training(project, tmp_path):
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("# mine\n")
    odd = tmp_path / "a # b [c]"
    shutil.copytree(tmp_path / "photos", odd)
    done = scan("look", str(odd), "--use", "--train", "--labels", "folders", "--groups", "3")
    assert "a resnet18 trained on these images alone at 64 px" in done.stdout
    params = read_params()
    assert (params.data.path, params.data.labels, params.cluster.num_clusters) == (str(odd), "folders", 3)
    assert params.pretext.method == "simclr" and (tmp_path / "params.yaml").read_text().endswith("# mine\n")
    assert project == []


def test_a_network_adapts_if_it_is_asked_to_and_to_the_number_of_groups_that_is_asked_for(project, tmp_path):
    done = scan("run", "photos", "--adapt")
    assert "whose last layers learn these images' groups first: others have taught" in done.stderr
    assert "or --adapt" not in done.stderr and "about 2:" in done.stderr, "with its own minutes"
    (first,) = project
    learned = first.pretext
    assert (learned.method, learned.weights, learned.side) == ("adapted", "efficientnet_lite0", 128)
    assert learned.groups.num_clusters == "auto" and learned.augmentation.flip == 0.5
    assert scan("run", "photos", "--adapt", "--groups", "7").exit_code == 0
    assert project[-1].pretext.groups.num_clusters == project[-1].cluster.num_clusters == 7
    assert project[-1].pretext.groups.heads == learned.groups.heads
    done = scan("run", "photos", "--adapt", "--train")
    assert done.exit_code == 1 and "--adapt and --train are both given" in done.stderr


def test_run_sets_the_settings_once_and_then_keeps_what_a_person_changed(project, tmp_path):
    assert scan("run", "photos", "--groups", "4").exit_code == 0
    (first,) = project
    assert (first.data.path, first.data.protocol, first.cluster.num_clusters) == ("photos", "all", 4)
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("num_clusters: 4", "num_clusters: 5"))
    done = scan("run", "photos")
    assert "your own: cluster.num_clusters 5" in done.stderr and "plan" not in done.stderr
    assert project[-1].cluster.num_clusters == 5
    assert scan("run", "photos", "--groups", "7").exit_code == 0 and project[-1].cluster.num_clusters == 7
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    done = scan("run", "others")
    assert "plan      as many groups as there seem" in done.stderr and project[-1].data.path == "others"
    done = scan("run", "others", "--labels", "folders")
    assert "plan      2 groups" in done.stderr and project[-1].data.labels == "folders"
    kept = tmp_path / ".scan"
    assert any("num_clusters: 7" in each.read_text() for each in kept.glob("params-*.yaml"))


def test_pictures_are_left_out_from_the_first_run_or_later_and_stay_so_until_asked_for(project):
    assert scan("run", "photos", "--groups", "4", "--no-pictures").exit_code == 0
    assert scan("run", "photos").exit_code == 0
    assert scan("run", "photos", "--pictures", "--groups", "5").exit_code == 0
    assert scan("run", "photos", "--no-pictures").exit_code == 0
    reported = [(run.evaluate.pictures, run.cluster.num_clusters) for run in project]
    assert reported == [(False, 4), (False, 4), (True, 5), (False, 5)]


def test_a_project_of_an_older_program_gets_the_settings_that_are_new_and_keeps_all_else(project, tmp_path):
    assert scan("run", "photos", "--groups", "4").exit_code == 0
    path = tmp_path / "params.yaml"
    whole = path.read_text()
    lines = [line for line in whole.splitlines(keepends=True) if not line.strip().startswith(("range:", "pictures:"))]
    path.write_text("".join(lines).replace("val_fraction: 0.2 #", "val_fraction: 0.25 # mine,"))
    done = scan("run", "photos")
    assert "now in params.yaml: data.range, evaluate.pictures\n" in done.stderr
    assert "your own: data.val_fraction 0.25\n" in done.stderr
    last = project[-1]
    assert (last.data.range, last.evaluate.pictures, last.cluster.num_clusters) == (None, True, 4)
    assert "# mine," in path.read_text() and path.read_text().splitlines()[0] == whole.splitlines()[0]
    before = path.read_bytes()
    assert "new in this program" not in scan("run", "photos").stderr and path.read_bytes() == before


def test_several_numbers_of_groups_are_compared_on_stored_embeddings(project, tmp_path):
    assert scan("run", "photos").exit_code == 0
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "embeddings"
    folder.mkdir(parents=True)
    rows = np.repeat(np.eye(4, 8), 30, axis=0) + rng.normal(0, 0.05, (120, 8))
    rows = rng.permutation(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / "train.npy", np.concatenate([rows, rows[:1]]))
    np.save(folder / "train_first.npy", np.append(np.arange(120), 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = scan("run", "photos", "--groups", "8,4,2")
    assert done.exit_code == 0 and len(project) == 1, "nothing was run"
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["groups", "largest", "smallest", "apart", "found", "twice"]
    assert [line[0] for line in lines[1:4]] == ["2", "4", "8"]
    assert lines[2][1:3] == ["25%", "25%"] and lines[2][4] == "1.00"
    assert float(lines[2][3]) > max(float(lines[1][3]), float(lines[3][3]))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "there are 120 images" in scan("run", "photos", "--groups", "5,120").stderr


@pytest.mark.parametrize(("words", "said"), [
    (["look", "nowhere"], "there is nothing at "),
    (["run", "empty"], "empty holds no image among its 1 files"),
    (["run", "few"], "few holds 3 images; at least 4 are needed to find groups"),
    (["run", "photos", "--groups", "5,10"], "photos has no embeddings here; scan run photos makes them"),
    (["look", "photos", "--groups", "5,10"], "--groups is 5,10; scan run compares several numbers once it has run"),
    (["run", "photos", "--groups", "1"], "--groups is '1'; auto, a number from 2, or several such as 5,10,20"),
    (["run", "photos", "--groups", "many"], "--groups is 'many'; auto, a number from 2"),
    (["run", "photos", "--groups", "5,,7"], "--groups is '5,,7'; auto, a number from 2"),
    (["run", "photos", "--groups", "61"], "--groups is 61, but there are 60 images"),
    (["run", "photos", "--labels", "dates"], "--labels is dates; none, folders or a .csv file is allowed"),
    (["look", "photos", "--sheet", "a.pdf"], "--sheet is a.pdf; a .png or .jpg file is allowed"),
])  # fmt: skip
def test_what_cannot_be_grouped_is_one_line_and_changes_nothing(project, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("cats")
    make_photos(tmp_path / "few", 3)
    before = (tmp_path / "params.yaml").read_bytes()
    done = scan(*words)
    assert done.exit_code == 1 and said in done.stderr.splitlines()[-1]
    assert (tmp_path / "params.yaml").read_bytes() == before and project == []


def test_too_many_groups_are_said_and_too_little_memory_is_refused(project, monkeypatch):
    assert "20 groups of 60 images are many: fewer than 10" in scan("look", "photos", "--groups", "20").stdout
    assert "are many" not in scan("look", "photos").stdout
    monkeypatch.setattr(plan, "free_memory", lambda: 1e6)
    done = scan("run", "photos")
    assert done.exit_code == 1 and "GB of memory are needed, but 0.0 GB are free" in done.stderr and project == []


class Running:
    """A process that ends with ``status``; ``interrupted`` when first waited for."""

    def __init__(self, status, interrupted):
        self.status, self.interrupted, self.waited = status, interrupted, 0

    def poll(self):
        return self.status

    def wait(self):
        self.waited += 1
        if self.interrupted and self.waited == 1:
            raise KeyboardInterrupt
        return self.status


@pytest.mark.parametrize(("status", "interrupted", "killed", "code", "said"), [
    (0, False, (7, 8), None, ""),
    (1, False, (7, 7), 1, "the pipeline did not end well; the line above says why"),
    (1, False, (7, 8), 1, "the machine ran out of memory and ended the stage; close other programs, or give fewer"),
    (0, True, (7, 8), 130, "interrupted; the same command carries on from here"),
])  # fmt: skip
def test_the_end_of_the_pipeline_is_waited_for_and_said(
    tmp_path, monkeypatch, capsys, status, interrupted, killed, code, said
):
    monkeypatch.setattr(run_command, "killed_for_memory", iter(killed).__next__)
    monkeypatch.chdir(tmp_path)
    running, handler = Running(status, interrupted), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: running)
    ended = None
    try:
        run_command.reproduce()
    except Exception as error:  # noqa: BLE001 (typer's exit and the project's error are both looked at)
        ended = getattr(error, "exit_code", 1)
        print(error, file=sys.stderr)
    assert ended == code and said in capsys.readouterr().err
    assert running.waited == 1 + interrupted
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts them")
def test_processes_that_the_machine_ended_are_counted_from_its_start(monkeypatch):
    assert run_command.killed_for_memory() >= 0
    monkeypatch.setattr(run_command.Path, "read_text", lambda path: "oom_kill_total 5\noom_kill 3\nother 9\n")
    assert run_command.killed_for_memory() == 3


def shown(capsys, edits=()):
    write_run([1, 1, 1, 0, 2, 2, None])
    table = pq.read_table(PREDICTIONS)
    states = ["sure", "sure", "to check", "fits nowhere", "sure", "sure", None]
    pq.write_table(table.set_column(table.schema.get_field_index("state"), "state", [states]), PREDICTIONS)
    groups = [{"word": word, "size": size, "figures": {}} for word, size in (("weak", 1), ("strong", 3), ("none", 2))]
    counts = {"sure": 4, "to check": 1, "fits nowhere": 1}
    save_json(VERDICT, {"word": "weak", "figures": {}, "groups": groups, "images": counts})
    save_json(NUMBER, {"given": False, "number": 3, "low": 2, "high": 4, "tried": []})
    for words in edits:
        assert scan("edit", *words).exit_code == 0
    show_groups()
    return capsys.readouterr().out.splitlines()


def test_groups_are_shown_the_largest_first_without_files_that_are_no_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    headline, _, columns, first, second, third, _, why, tried = shown(capsys)
    assert headline == "3 groups (2 to 4 are plausible); verdict: WEAK"
    assert "name" not in columns and first.split() == ["1", "3", "50.0%", "strong", "2", "1", "0"]
    assert second.split() == ["2", "2", "33.3%", "none", "2", "0", "0"]
    assert third.split() == ["3", "1", "16.7%", "weak", "0", "0", "1"]
    assert why == "of 3 groups 1 hold together, 1 look mixed, 1 cannot be told from chance"
    assert tried.startswith("to try: fewer groups") or "--groups 2" in tried


def test_names_and_merges_are_shown_and_merged_groups_have_the_worse_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = shown(capsys, [("name", "1", "[red] dogs"), ("merge", "1", "3")])
    assert lines[3].split() == ["1", "[red]", "dogs", "4", "66.7%", "weak", "2", "1", "1"]


def test_the_script_of_the_clone_needs_no_activated_environment(tmp_path):
    script = shutil.copy(ROOT / "scan", tmp_path)
    missing = subprocess.run([script, "use"], capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stderr.endswith(f"run make setup in {tmp_path}\n")
    program = tmp_path / ".venv" / "bin" / "scan"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$PWD: $@"\n')
    program.chmod(0o755)
    done = subprocess.run([script, "run", "my photos"], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "/: run my photos\n"


@pytest.mark.slow
def test_a_folder_becomes_groups_after_an_interruption_by_the_same_command_and_takes_what_is_new(tmp_path, monkeypatch):
    """Every file of the folder has a row, exact copies share their group; new photos are placed, or learned from."""
    photos = make_photos(tmp_path / "my photos", 40)
    shutil.copy(photos / "a" / "0.jpg", photos / "copy.jpg")
    (photos / "cut.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:300])
    (photos / "notes.txt").write_text("cats")
    project = tmp_path / "my-photos-groups"
    command = [sys.executable, "-m", "pipeline.cli", "run", "my photos", "--groups", "3"]
    own = environment(PYTHONPATH=str(ROOT))
    first = subprocess.Popen(command, cwd=tmp_path, env=own, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in first.stderr:
        if line.startswith("prepare   done"):
            break
    time.sleep(0.5)
    os.killpg(first.pid, signal.SIGINT)
    assert "the same command carries on from here" in first.stderr.read() and first.wait() == 130
    done = run(tmp_path, *command, PYTHONPATH=str(ROOT))
    assert "prepare   done" not in done.stderr and "evaluate  done" in done.stderr
    assert "settings  as they are in params.yaml\n" in done.stderr
    table = pq.read_table(project / PREDICTIONS).to_pydict()
    assert sorted(table["source"]) == sorted(str(each.relative_to(photos)) for each in photos.rglob("*.*"))
    of = dict(zip(table["source"], table["cluster"], strict=True))
    assert of["copy.jpg"] == of["a/0.jpg"] is not None
    assert of["cut.jpg"] is of["notes.txt"] is None
    assert set(table["split"]) == {"train", "rejected", "ignored"}
    assert json.loads((project / ".scan" / "run.json").read_text())["asked"]["photos"] == str(photos)
    assert f"{sum(value is not None for value in of.values())}" == "41"
    assert "group" in done.stdout and "reports/report.html" in done.stdout
    assert done.stdout.endswith("\nfirst        cd my-photos-groups\n")

    before, names = (project / "groups.yaml").read_bytes(), sorted(each.name for each in tmp_path.iterdir())
    make_photos(photos, 43)  # three more; the others have another time now
    (photos / "b" / "1.jpg").unlink()
    again = run(tmp_path, *command, PYTHONPATH=str(ROOT))
    assert "gone      1 files of the run, such as b/1.jpg" in again.stderr
    assert "new       3 new: " in again.stderr and "prepare" not in again.stderr
    assert "new       no photo" in run(tmp_path, *command, PYTHONPATH=str(ROOT)).stderr
    assert (project / "groups.yaml").read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == names == ["my photos", "my-photos-groups"]
    monkeypatch.chdir(project)
    rows = {row["source"]: row for row in read_predictions().to_pylist()}
    assert rows["a/42.jpg"]["split"] == "new" and rows["a/42.jpg"]["group"] in (1, 2, 3)
    learned = run(tmp_path, *command, "--retrain", PYTHONPATH=str(ROOT)).stderr
    assert "39 of 42 images were embedded by an earlier run" in learned
    assert "new" not in read_predictions()["split"].to_pylist()
