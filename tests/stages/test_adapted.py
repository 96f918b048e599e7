"""The stages on a network that adapts: embed takes what pretext has made of it, a killed pretext carries on."""

import hashlib
import shutil

import pytest

from pipeline.artifacts import load_csv, load_json
from scan_core.models.files import adapted_from, load_reduction
from scan_core.pretext import adapted
from tests.project import STAGES, error_of, make_project, run_stage, run_stages, set_params
from tests.tiny import TINYNET_SIDE, save_tinynet

WEIGHTS = "weights/tinynet.safetensors"
GROUPS = {"num_clusters": 4, "heads": 2, "steps": 20, "batch_size": 64}
SETTINGS = {
    "data": {"size": 16},
    "pretext": {
        "method": "adapted", "weights": WEIGHTS, "judge": WEIGHTS, "side": TINYNET_SIDE,
        "images": 200, "dimensions": 8, "neighbors": 20,
        "steps": 12, "batch_size": 16, "views": 2, "groups": GROUPS,
    },
    "embed": {"spaces": [{"weights": WEIGHTS, "side": TINYNET_SIDE, "mirror": False}], "dimensions": 8},
    "cluster": {"method": "frozen", "num_clusters": 4, "heads": 2, "steps": 20, "lr": 1e-2},
    "selflabel": {"epochs": 0},
}  # fmt: skip


def adapted_project(folder):
    project = make_project(folder, SETTINGS)
    save_tinynet(project / WEIGHTS)
    return project


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The network is kept whatever the methods say of it."""
    folder = adapted_project(tmp_path_factory.mktemp("adapted") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapted, "choose_network", lambda *_: (True, "it is to be"))
        patch.setattr(adapted, "judge_groups", judged("weak"))
        run_stages(folder, "source", *STAGES)
    return folder


def judged(word):
    original = adapted.judge_groups
    return lambda *given: type(original(*given))(word, {}, ())


@pytest.mark.slow
def test_embed_sees_with_the_adapted_network(project):
    made = project / "models" / "pretext.safetensors"
    assert adapted_from(made) == (sha256(project / WEIGHTS), TINYNET_SIDE)
    (space,) = load_reduction(project / "data" / "embeddings" / "reduction.safetensors")[1]
    assert (space.sha256, space.side) == (sha256(made), TINYNET_SIDE)
    copy = project / "data" / "embeddings" / "networks" / f"{space.sha256[:16]}.safetensors"
    assert copy.read_bytes() == made.read_bytes(), "the model that is handed on has its network"
    signed = load_json(project / "data" / "weights.json")
    assert signed == {"sha256": sha256(project / WEIGHTS), "judge": sha256(project / WEIGHTS)}
    history = load_csv(project / "reports" / "plots" / "pretext.csv")
    assert len(history) == 1 and float(history[-1]["loss"]) > 0 and "confident" in history[0]
    assert load_json(project / "reports" / "metrics.json")["val"]["selflabel"]["acc"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("better", "word", "why"), [
    (False, "weak", "not adapted: it is not to be"), (True, "none", "not adapted: the images fall into no groups that"),
])  # fmt: skip
def test_embed_sees_with_the_published_network_if_it_is_no_better(tmp_path, monkeypatch, better, word, why):
    folder = adapted_project(tmp_path / "project")
    monkeypatch.setattr(adapted, "choose_network", lambda *_: (better, "it is not to be"))
    monkeypatch.setattr(adapted, "judge_groups", judged(word))
    run_stages(folder, "source", "prepare")
    assert why in run_stage(folder, "pretext").stderr
    run_stages(folder, "embed")
    assert adapted_from(folder / "models" / "pretext.safetensors") is None
    (space,) = load_reduction(folder / "data" / "embeddings" / "reduction.safetensors")[1]
    assert space.sha256 == sha256(folder / WEIGHTS)


@pytest.mark.slow
def test_a_pretext_that_was_interrupted_ends_in_the_same_bytes_and_makes_no_view_twice(project, tmp_path, monkeypatch):
    monkeypatch.setattr(adapted, "choose_network", lambda *_: (True, "it is to be"))
    monkeypatch.setattr(adapted, "judge_groups", judged("weak"))
    folder, original, steps, viewed = adapted_project(tmp_path / "project"), adapted.train_adapted, [], []
    shutil.copy(project / WEIGHTS, folder / WEIGHTS)

    def stopped(*given):
        for record in original(*given):
            steps.append(record)
            yield record
            if len(steps) == 5:
                raise KeyboardInterrupt

    made = adapted.view_maps
    monkeypatch.setattr(adapted, "view_maps", lambda *given: viewed.append(0) or made(*given))
    monkeypatch.setattr(adapted, "train_adapted", stopped)
    run_stages(folder, "source", "prepare")
    assert run_stage(folder, "pretext", check=False, SCAN_SAVE_SECONDS="0").exit_code == 130
    assert "resuming after step 5 of epoch 1" in run_stage(folder, "pretext").stderr
    assert len(viewed) == 1 and len(steps) == 12 + 1
    for name in ("models/pretext.safetensors", "reports/plots/pretext.csv"):
        assert (folder / name).read_bytes() == (project / name).read_bytes()
    assert not list((folder / ".scan" / "resume").glob("pretext-*/")), "nothing is left over"


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "said"), [
    ({"pretext": {"side": 48}}, "pretext.weights is weights/tinynet.safetensors at 48 pixels, which is not in"),
    ({"pretext": {"neighbors": 10}}, "pretext.groups.neighbors is 20; at most pretext.neighbors, 10, is allowed"),
    ({"pretext": {"weights": "weights/no.safetensors"}}, "pretext.weights is weights/no.safetensors at 32 pixels"),
    ({"embed": {"spaces": []}}, "pretext.method is adapted, but embed.spaces is []; one that trains, or none, is"),
    ({"pretext": {"groups": {"method": "scan"}}}, "pretext.groups"),
])  # fmt: skip
def test_settings_that_contradict_one_another_are_refused(tmp_path, changes, said):
    folder = make_project(tmp_path / "project", SETTINGS)
    set_params(folder, changes)
    assert said in error_of(folder, "source")
