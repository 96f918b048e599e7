"""What is finished is kept until DVC has noted it, and is taken by the next run of the same stage."""

import json
import os
import shutil
import time

import pytest

from pipeline.finished import delete_noted, keep, kept, place_of, take

PARAMS = {"seed": 0, "embed": {"k": [1, None]}}
ABOUT = {"stage": "embed", "params": PARAMS, "deps": ["data/images"], "scratch": None}


def entry(images="a.dir", params=PARAMS):
    """dvc.lock, once prepare has been noted and embed, too, for ``images``."""
    made = {"prepare": {"outs": [{"path": "data/images", "md5": "a.dir"}]}}
    embed = {"deps": [{"path": "data/images", "md5": images}], "params": {"params.yaml": params}}
    return {"schema": "2.0", "stages": made | ({"embed": embed} if images else {})}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(json.dumps(entry(images=None)))
    return tmp_path


@pytest.fixture
def place(project):
    """An output that is a folder and one that is a file."""
    staging = project / ".scan" / "outputs" / "embed"
    (staging / "data" / "bank").mkdir(parents=True)
    (staging / "data" / "bank" / "val.npy").write_text("val")
    (staging / "note.csv").write_text("note")
    found = place_of(project, "embed", "f" * 64)
    assert keep(found, staging, [project.joinpath("data/bank").relative_to(project), *map(type(project), ["note.csv"])],
                dict(ABOUT))  # fmt: skip
    assert not list(staging.parent.glob("*-finished"))
    shutil.rmtree(staging)
    return found


def test_what_is_kept_can_be_taken_more_than_once(project, place):
    delete_noted(project)
    for number in range(2):
        for output in kept(place):
            take(place, output, project / str(number) / output)
        assert (project / str(number) / "data" / "bank" / "val.npy").read_text() == "val"
        assert (project / str(number) / "note.csv").read_text() == "note"


def test_it_stays_until_dvc_has_noted_the_same_inputs(project, place):
    lock = project / "dvc.lock"
    for unlike in (entry(images=None), entry("b.dir"), entry(params={**PARAMS, "seed": 1}), {}, None):
        lock.write_text(json.dumps(unlike) if unlike is not None else "")
        delete_noted(project)
        assert kept(place)
    lock.unlink()
    delete_noted(project)
    assert kept(place)
    lock.write_text(json.dumps(entry()))
    delete_noted(project)
    assert not place.exists() and not kept(place)


def test_with_it_goes_the_state_that_a_kill_has_left(project, place):
    scratch = project / ".scan" / "resume" / "embed-1"
    scratch.mkdir(parents=True)
    note = json.loads((place / "note.json").read_text())
    (place / "note.json").write_text(json.dumps(note | {"scratch": scratch.name}))
    (project / "dvc.lock").write_text(json.dumps(entry()))
    delete_noted(project)
    assert not scratch.exists()


def test_a_project_that_is_moved_keeps_it(project, place, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "project"
    os.rename(project, moved)
    delete_noted(moved)
    assert kept(place_of(moved, "embed", "f" * 64))


def test_a_week_is_long_enough(project, place):
    os.utime(place, (time.time() - 8 * 86_400,) * 2)
    delete_noted(project)
    assert not place.exists()


def test_of_a_copy_that_dvc_has_deleted_nothing_is_kept(project, place):
    note = json.loads((place / "note.json").read_text())
    (place / "note.json").write_text(json.dumps(note | {"project": ".dvc/tmp/exps/gone"}))
    delete_noted(project)
    assert not place.exists()


@pytest.mark.parametrize("damage", ["data/bank/val.npy", "note.csv", "note.json"])
def test_what_is_not_whole_is_not_taken(place, damage):
    (place / damage).write_text("")  # as after a power failure
    assert kept(place) == []


def test_where_files_cannot_be_linked_nothing_is_kept_and_nothing_fails(project, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Operation not permitted")

    staging = project / ".scan" / "outputs" / "embed"
    staging.mkdir(parents=True)
    (staging / "note.csv").write_text("note")
    monkeypatch.setattr(os, "link", refuse)
    found = place_of(project, "embed", "f" * 64)
    assert not keep(found, staging, [type(project)("note.csv")], dict(ABOUT))
    assert not found.exists() and os.listdir(staging.parent) == ["embed"] and kept(found) == []
