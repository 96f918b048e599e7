"""``scan weights get`` of CLIP: both towers from one file, and the image tower alone where there is no other."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, constants
from safetensors import safe_open
from safetensors.torch import load, save

from scan_core.models.files import load_frozen
from scan_core.weights.text import load_words, text_towers
from tests.hub import CLIP, COMMIT, NEWER, Hub, clip_files, served, tokenizer_json
from tests.pipeline.cli import test_weights_hub as plain
from tests.pipeline.cli.test_weights_hub import left, sha256

pytest.importorskip("tokenizers")
NAME = CLIP.removeprefix("timm/")
FILES = [f"./weights/{NAME}.safetensors", f"./weights/{NAME}.text.safetensors"]
NO_NAMES = "it cannot suggest names of groups: its repository has no text tower in the form that is read"


@pytest.fixture(scope="module")
def commits():
    return {COMMIT: clip_files(0), NEWER: clip_files(1)}


@pytest.fixture
def hub(commits, tmp_path, monkeypatch):
    copies = {commit: dict(files) for commit, files in commits.items()}
    with served(Hub(copies, repository=CLIP), tmp_path, monkeypatch) as hub:
        yield hub


def got(*words):
    """What is printed by a get that went well."""
    result = plain.get(*words, name=CLIP)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*words):
    return plain.error_of(*words, name=CLIP)


def contents():
    return [Path(file).read_bytes() for file in FILES]


def origin():
    with safe_open(FILES[0], framework="pt") as file:
        return json.loads(file.metadata()["scan"])["origin"]


def test_both_towers_come_from_one_file(hub):
    said, files = got(), hub.commits[COMMIT]
    assert left() == FILES and f"names     {FILES[1][2:]}" in said and "left out  nothing" in said
    published = load(files["open_clip_model.safetensors"])
    assert origin()["sha256"] == sha256(files["open_clip_model.safetensors"])
    small = {name: sha256(files[name]) for name in ("open_clip_config.json", "tokenizer.json")}
    assert small.items() <= origin().items() and origin()["revision"] == COMMIT
    photos = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whole = timm.create_model(NAME, num_classes=8).eval()  # of the same seed as the repository's
    projection, words = load_words(next(file for _, file in text_towers(plain.FILE.parent).values()))
    with torch.no_grad():
        features = load_frozen(plain.FILE.parent / f"{NAME}.safetensors")[0](photos)
        torch.testing.assert_close(features @ projection, whole(photos) - whole.head.bias)
    assert torch.equal(projection, published["visual.proj"])
    torch.testing.assert_close(words.norm(dim=1), torch.ones(len(words)))
    asked = (f"/api/models/{CLIP}", f"/{CLIP}/resolve/", "/storage/")
    assert all(path.startswith(asked) for _, path, _ in hub.requests), "nothing else is told or asked"
    assert not any(path.endswith("/model.safetensors") for path in hub.fetched())


def test_what_is_there_is_kept_and_a_text_tower_that_is_lost_comes_back_the_same(hub):
    got()
    before = contents()
    hub.main = NEWER
    hub.requests.clear()
    assert f"at revision {COMMIT}" in got() and not hub.requests
    (plain.FILE.parent / f"{NAME}.text.safetensors").unlink()
    got()
    assert contents() == before
    got("--revision", "main")
    assert origin()["revision"] == NEWER and contents() != before
    assert len(text_towers(plain.FILE.parent)) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "open_clip_config.json", "open_clip_model.safetensors"])
def test_a_file_that_is_not_the_recorded_one_is_refused(hub, name, tmp_path, monkeypatch):
    got()
    before = contents()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    content = hub.commits[COMMIT][name]
    hub.commits[COMMIT][name] = hub.commits[NEWER][name] if name.endswith("s") else content + b" "
    error = error_of("--revision", COMMIT)
    assert f"the SHA-256 of its {name} is" in error and f"not {sha256(content)}" in error
    assert left() == FILES and contents() == before


def test_offline_mode_takes_what_the_cache_has(hub, monkeypatch):
    for file in hub.commits[COMMIT]:
        HfApi().hf_hub_download(CLIP, file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert "names " in got() and not hub.requests and left() == FILES


@pytest.mark.parametrize("change", ["no tokenizer", "another tower", "no text at all"])
def test_a_repository_without_a_text_tower_that_is_read_gives_the_image_tower(hub, change):
    files = hub.commits[COMMIT]
    if change == "no tokenizer":
        del files["tokenizer.json"]
    elif change == "another tower":
        files |= clip_files(0, no_causal_mask=True, pool_type="last")
    else:
        tensors = timm.create_model(NAME).state_dict()
        hub.commits[COMMIT] = {"config.json": files["config.json"], "model.safetensors": save(tensors)}
    assert f"note      {NO_NAMES}" in got() and left() == FILES[:1]
    hub.requests.clear()
    assert "is there, from" in got() and not hub.requests


def test_a_repository_with_nothing_that_is_read(hub):
    hub.commits[COMMIT] = {"config.json": hub.commits[COMMIT]["config.json"], "pytorch_model.bin": b"a pickle"}
    assert "it has no open_clip_model.safetensors or model.safetensors, which is needed" in error_of()
    assert left() == []


@pytest.mark.parametrize(("name", "content", "said"), [
    ("tokenizer.json", b"{}", "is not read by tokenizers"),
    ("tokenizer.json", tokenizer_json().replace(b" 192", b" 193"), "does not end texts in token 192"),
    ("open_clip_config.json", clip_files(0, width=32)["open_clip_config.json"], "does not fit the network: shapes"),
    ("open_clip_config.json", clip_files(0, layers=3)["open_clip_config.json"], "the network alone has"),
])  # fmt: skip
def test_a_text_tower_that_does_not_fit_is_one_line_and_nothing_is_written(hub, name, content, said):
    hub.commits[COMMIT][name] = content
    assert said in error_of() and left() == []
