"""``scan weights get`` from a hub: what it records and enforces, what it refuses, and that a run needs no network."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from safetensors import safe_open
from safetensors.torch import load, save
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.weights import sign_weights, weights_file
from scan_core.errors import ScanError
from scan_core.models.files import Preprocessing, load_frozen
from tests.hub import COMMIT, NEWER, REPOSITORY, TOKEN, Hub, served, timm_files, without_network
from tests.project import ROOT, environment, make_dvc_project, run

FILE = Path("weights/test_vit.r160_in1k.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with two commits, of which the newer is not yet ``main``; this process uses it from a new folder."""
    with served(Hub({COMMIT: timm_files(0), NEWER: timm_files(1)}), tmp_path, monkeypatch) as hub:
        yield hub


def get(*words, name=REPOSITORY):
    result = CliRunner().invoke(app, ["weights", "get", name, *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def got(*words):
    """The origin in the file, after a get that went well."""
    result = get(*words)
    assert result.exit_code == 0, result.output
    with safe_open(FILE, framework="pt") as file:
        return json.loads(file.metadata()["scan"])["origin"]


def error_of(*words, name=REPOSITORY):
    """The one line in which a get ends, below the library's progress. Never with a token in it."""
    result = get(*words, name=name)
    lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
    assert result.exit_code == 1 and len(lines) == 1 and "Traceback" not in result.output, result.output
    assert result.stderr.endswith(f"{lines[0]}\n") and lines[0].startswith("scan: error: ")
    assert TOKEN not in result.output
    return lines[0]


def left():
    """All files below the project."""
    return sorted(path for folder, _, names in os.walk(".") for path in (os.path.join(folder, name) for name in names))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_the_file_holds_the_network_its_images_and_where_it_is_from(hub):
    published = hub.commits[COMMIT]["model.safetensors"]
    assert got() == {
        "from": "timm", "file": "model.safetensors", "sha256": sha256(published), "network": "timm test_vit",
        "repository": REPOSITORY, "revision": COMMIT, "license": "apache-2.0",
    }  # fmt: skip
    assert left() == [f"./{FILE}"], "the download is not kept"
    network, images = load_frozen(FILE)
    assert images == Preprocessing(160, (0.5,) * 3, (0.25,) * 3), "config.json's, not timm's own"
    whole = timm.create_model("test_vit.r160_in1k")
    whole.load_state_dict(load(published))
    photos = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole.eval().forward_head(whole.forward_features(photos), pre_logits=True)
        torch.testing.assert_close(network(photos), expected)
    assert not any("telemetry" in path or "harness" in path for _, path, _ in hub.requests)


def test_what_is_there_is_kept_at_its_revision_until_another_is_asked_for(hub):
    first = got()
    hub.main = NEWER
    hub.requests.clear()
    assert got() == first and not hub.requests, "nothing is asked"
    assert f"at revision {COMMIT}" in get().stdout
    assert got("--revision", "main")["revision"] == NEWER
    assert got()["revision"] == NEWER
    assert got("--revision", COMMIT) == first


def test_a_file_that_is_no_longer_usable_is_made_again_of_the_same_revision(hub):
    first, whole = got(), FILE.read_bytes()
    hub.main = NEWER
    with safe_open(FILE, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    tensors.pop("norm.bias")
    FILE.write_bytes(save(tensors, metadata))
    assert got() == first and FILE.read_bytes() == whole
    # The same commit with another content, at a hub whose own hash agrees: the recorded one does not.
    hub.commits[COMMIT] = hub.commits[NEWER]
    error = error_of("--revision", COMMIT)
    assert first["sha256"] in error and "not used" in error
    assert FILE.read_bytes() == whole and left() == [f"./{FILE}"]


def test_a_download_with_another_hash_is_refused_and_not_kept(hub):
    published = hub.commits[COMMIT]["model.safetensors"]
    hub.sent["model.safetensors"] = published[:-1] + bytes([published[-1] ^ 1])
    error = error_of()
    assert f"not {sha256(published)}" in error and REPOSITORY in error
    assert left() == []
    del hub.sent["model.safetensors"]
    assert got()["sha256"] == sha256(published)


def test_a_cut_connection_is_said_and_the_next_get_downloads_the_rest(hub):
    size = len(hub.commits[COMMIT]["model.safetensors"])
    hub.cut_after = size // 3
    error = error_of()
    assert "the connection failed" in error and "only what is missing" in error
    (part,) = left()
    there = os.path.getsize(part)
    assert size // 3 - 2**16 < there <= size // 3
    hub.cut_after = None
    hub.requests.clear()
    got()
    (ranged,) = [headers["Range"] for method, path, headers in hub.requests if "/storage/" in path and method == "GET"]
    assert ranged == f"bytes={there}-"
    assert left() == [f"./{FILE}"]


def test_a_cut_in_which_another_revision_became_the_newest_starts_with_that(hub):
    hub.cut_after = 2**17
    error_of()
    hub.cut_after, hub.main = None, NEWER
    assert got()["revision"] == NEWER
    assert left() == [f"./{FILE}"], "the part of the other revision is not kept"


def test_the_token_is_sent_to_the_hub_and_not_to_where_it_keeps_large_files(hub, monkeypatch):
    hub.token = TOKEN
    assert "(401); set HF_TOKEN to a token that may read it" in error_of()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "hf_another" not in error_of()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.requests.clear()
    got()
    stored = [headers for _, path, headers in hub.requests if path.startswith("/storage/")]
    assert stored and not any(TOKEN in str(headers) for headers in stored)


@pytest.mark.parametrize(("status", "said"), [
    (401, "it is not there or not open to you (401); set HF_TOKEN"), (403, "not open to you (403); set HF_TOKEN"),
    (404, "there is no such repository (404)"), (503, "the server answered 503; try again later"),
    (200, "the answer is not a hub's; check HF_ENDPOINT"),
])  # fmt: skip
def test_an_answer_that_is_not_the_file_is_said_in_our_words(hub, monkeypatch, status, said):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.status = status
    error = error_of()
    assert said in error and REPOSITORY in error
    assert left() == []


def test_no_hub_at_all_and_no_password_of_its_address(hub, monkeypatch):
    closed = "http://me:hf_secret@127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    address = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    assert "the connection failed (ConnectError)" in error_of()


def test_offline_mode_takes_what_the_cache_has_and_nothing_else(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of()
    assert "HF_HUB_OFFLINE is set" in error_of("--revision", COMMIT)
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    from huggingface_hub import HfApi

    for file in hub.commits[COMMIT]:  # as another program has done, such as timm
        HfApi().hf_hub_download(REPOSITORY, file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert got()["revision"] == COMMIT and not hub.requests
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1, "the cache is others', too"


def test_pickles_are_not_read(hub):
    hub.commits[COMMIT] = {"config.json": timm_files()["config.json"], "pytorch_model.bin": b"a pickle"}
    error = error_of()
    assert "it has no model.safetensors" in error and "no pickles are read" in error
    assert not any(path.endswith(".bin") for path in hub.fetched())


@pytest.mark.parametrize(("change", "said"), [
    ({"architecture": "test_vit2"}, "is of the network test_vit2; test_vit is allowed"),
    ({"pretrained_cfg": {"input_size": [1, 160, 160], "mean": [0.5], "std": [0.5]}}, "images of 1 channels"),
    ({"pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.5], "std": [0.5]}}, "does not say architecture and"),
    ({"pretrained_cfg": {"input_size": [3, 160, 160]}}, "does not say architecture and pretrained_cfg"),
    ({"pretrained_cfg": None}, "does not say architecture and pretrained_cfg"),
])  # fmt: skip
def test_another_network_or_other_images_are_refused_before_the_download(hub, change, said):
    hub.commits[COMMIT] = timm_files(**change)
    assert said in error_of()
    assert not any(path.endswith(".safetensors") for path in hub.fetched()) and left() == []


def test_a_license_that_is_not_stated_is_said(hub):
    images = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    hub.commits[COMMIT] = timm_files(pretrained_cfg=images)
    assert got()["license"] == "not stated"


def test_weights_of_another_network_are_refused_by_the_first_keys_that_differ(hub):
    tensors = load(hub.commits[COMMIT]["model.safetensors"])
    tensors["other.weight"] = tensors.pop("cls_token")
    hub.commits[COMMIT]["model.safetensors"] = save(tensors)
    error = error_of()
    assert "the network alone has cls_token; the file alone has other.weight" in error
    assert left() == []


def test_a_full_disk_is_said_in_those_words_and_what_is_there_is_kept(hub, monkeypatch):
    original = file_download.http_get

    def full(url, file, **options):
        if not url.endswith("model.safetensors"):
            return original(url, file, **options)
        file.write(hub.commits[COMMIT]["model.safetensors"][:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    assert "no room is left on the disk; make room" in error_of()
    (part,) = left()
    assert os.path.getsize(part) == 1000
    monkeypatch.setattr(file_download, "http_get", original)
    got()
    assert left() == [f"./{FILE}"]


@pytest.mark.parametrize(("name", "words", "said"), [
    ("timm/test_vit.r160_in1", (), "did you mean timm/test_vit.r160_in1k"),
    ("timm/../x", (), "is not one of timm's networks"),
    ("dinov2", (), "there are no weights dinov2; the names of scan weights list are allowed, and timm/NAME"),
    ("efficientnet_lite0", ("--revision", "main"), "only weights on the hub have revisions"),
    (REPOSITORY, ("--revision", "none"), "it has no revision none; give one of its branches, tags or commits"),
    (REPOSITORY, ("--revision", "3" * 40), f"it has no revision {'3' * 40}"),
])  # fmt: skip
def test_a_name_or_revision_that_is_not_there(hub, name, words, said):
    assert said in error_of(*words, name=name)
    assert left() == []


@pytest.mark.parametrize("name", ["dinov2_small", REPOSITORY])
def test_a_setting_that_names_weights_on_the_hub_downloads_nothing(hub, tmp_path, name):
    path = weights_file(name, tmp_path)
    said = f"embed.spaces.0.weights is {name}; there is no file at {path}: download it with scan weights get {name}"
    with pytest.raises(ScanError, match=f"^{re.escape(said)}$"):
        sign_weights("embed.spaces.0.weights", name, tmp_path)
    assert path.parent == tmp_path / "weights" and not hub.requests
    path.parent.mkdir()
    path.write_bytes(b"one")
    assert sign_weights("key", name, tmp_path) == sha256(b"one")


@pytest.mark.slow
def test_the_environment_is_heard_and_a_run_afterward_needs_no_network(hub, tmp_path):
    """The commands themselves: a get with HF_ENDPOINT and HF_TOKEN, then a whole run where no process can connect."""
    spaces = [{"weights": REPOSITORY, "side": 16, "mirror": False}]
    project = make_dvc_project(tmp_path / "run", {
        "data": {"size": 16}, "pretext": {"method": "frozen"}, "embed": {"spaces": spaces, "dimensions": 12},
        "cluster": {"method": "frozen", "num_clusters": 10, "heads": 2, "steps": 20}, "selflabel": {"epochs": 0},
    })  # fmt: skip
    hub.token = TOKEN
    address = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    run(project, sys.executable, "-m", "pipeline.cli", "weights", "get", REPOSITORY, **address)
    repository = (f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/", "/storage/")
    assert all(path.startswith(repository) for _, path, _ in hub.requests), "nothing else is told or asked"
    path, tried = without_network(tmp_path / "guard")
    hub.requests.clear()
    run(project, "dvc", "repro", PYTHONPATH=path, **address)
    assert (project / "reports" / "report.html").is_file()
    assert not tried.exists(), tried.read_text()
    assert not hub.requests


def test_importing_the_libraries_asks_nothing_of_a_network(tmp_path):
    path, tried = without_network(tmp_path / "guard")
    script = "import pipeline.weights, timm, huggingface_hub; timm.create_model('test_vit')"
    script += "; from huggingface_hub.utils import build_hf_headers; print(build_hf_headers(token=False))"
    env = environment(PYTHONPATH=f"{path}{os.pathsep}{ROOT}", HF_HOME=str(tmp_path / "home"))
    env.pop("HF_HUB_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not tried.exists(), tried.read_text()
    assert "torch" not in done.stdout
    script = "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True).returncode
    assert tried.exists(), "the guard would have told"
