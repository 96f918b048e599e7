"""Suggested names: for shown groups that can be trusted and have none; made once for a state of the corrections."""

import hashlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli.app import app
from pipeline.groups import file, suggestions
from pipeline.groups.apply import Grouping
from scan_core.evaluation.belonging import Belonging
from scan_core.models.files import FrozenSpace, save_belonging, save_reduction
from scan_core.models.networks import ClusterHeads
from scan_core.models.reduction import Reduction
from scan_core.weights import words
from scan_core.weights.text import Sizes, Text, TextTower, save_text
from scan_core.weights.words import vocabulary
from tests.pipeline.groups.conftest import write_run

CLUSTERS = [0] * 8 + [1] * 6 + [2] * 4  # groups 1, 2, 3: tench, goldfish, great white shark


@pytest.fixture
def run(project, monkeypatch):
    write_run(CLUSTERS)
    weights = project / "weights" / "efficientnet_lite0.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    save_model(hashlib.sha256(b"weights").hexdigest())
    bank = np.eye(1280, dtype=np.float16)[CLUSTERS]
    fitted = Belonging(np.array(CLUSTERS), np.zeros(3, np.float32), np.ones(3, bool))
    save_belonging(artifacts.BELONGING, fitted, bank, np.full((len(bank), 1), 33, np.float32), False)
    artifacts.save_array(artifacts.EMBEDDINGS / "train_first.npy", np.arange(len(CLUSTERS)))
    verdict("strong", "strong", "weak")
    calls = []
    plain = np.eye(1000, 1280, dtype=np.float32), np.zeros(1000, np.float32)
    monkeypatch.setattr(words, "classifier_of", lambda name: calls.append(name) or plain)
    return calls


def save_model(*hashes):
    """A model of frozen networks."""
    identity = np.eye(1280, 4, dtype=np.float32)
    reduction = Reduction(np.zeros(1280, np.float32), np.ones(1280, np.float32), identity)
    path = artifacts.MODELS / "selflabel.safetensors"
    save_reduction(path, reduction, [FrozenSpace(sha256, 224, False) for sha256 in hashes], ClusterHeads(4, 3, 1))


def verdict(*said):
    artifacts.save_json(artifacts.VERDICT, {"groups": [{"word": word} for word in said]})


def suggested():
    return suggestions.suggested_names(Grouping())


def test_groups_get_words_and_those_that_a_person_named_none(run):
    assert suggested() == {1: "tench", 2: "goldfish", 3: "great white shark"}
    file.save(file.changed(file.load(), names={1: "my fish", 2: "Great White Shark"}))
    assert suggested() == {}, "a name that is taken is not suggested for another group"
    assert len(run) == 1, "made once"


def test_a_group_that_cannot_be_told_from_chance_gets_none(run):
    verdict("strong", "none", "weak")
    assert set(suggested()) == {1, 3}


def test_merges_make_it_anew_and_the_merged_group_gets_the_common_kind(run):
    assert len(suggested()) == 3
    file.save(file.changed(file.load(), merge={2: 1}))
    found = suggested()
    assert set(found) == {1, 3} and found[1] not in ("great white shark",) and len(run) == 2


@pytest.mark.parametrize("kind", ["other weights", "no model"])
def test_other_networks_suggest_none(run, kind):
    if kind == "other weights":
        save_model("0" * 64)
    else:
        (artifacts.MODELS / "selflabel.safetensors").write_bytes(b"damaged")
    assert suggested() == {} and run == []


def save_tower(weights, *words):
    """A text tower of ``weights`` in whose space the images of group n are nearest to the n-th of ``words``."""
    vectors = np.random.default_rng(0).normal(size=(len(vocabulary()), 1280)).astype(np.float32)
    for number, word in enumerate(words):
        vectors[vocabulary().index(word)] = 1000 * np.eye(1280)[number] + 5
    sizes = Sizes(embed_dim=1280, quick_gelu=True, width=4, heads=1, layers=1, context_length=4, vocab_size=4)
    save_text(weights, Text(TextTower(sizes), torch.eye(1280), "", torch.from_numpy(vectors)))


def test_a_text_tower_names_groups_and_no_classifier_is_asked(run, project):
    assert suggested()[1] == "tench" and len(run) == 1
    weights = project / "weights" / "vit_a_clip.safetensors"
    weights.write_bytes(b"image tower")
    save_tower(weights, "dog", "cat", "umbrella")
    assert suggested()[1] == "tench" and len(run) == 2, "of a network that was not used"
    save_model(hashlib.sha256(b"image tower").hexdigest())
    suggestions.KEPT.unlink()
    assert suggested() == {1: "dog", 2: "cat", 3: "umbrella"} and len(run) == 2


def test_a_text_tower_beside_other_networks_takes_its_own_features(run, project):
    weights = project / "weights" / "vit_a_clip.safetensors"
    weights.write_bytes(b"image tower")
    save_tower(weights, "dog", "cat", "umbrella")
    spaces = [hashlib.sha256(b"weights").hexdigest(), hashlib.sha256(b"image tower").hexdigest()]
    save_model(*spaces)
    bank = np.concatenate([np.eye(1280)[[0] * len(CLUSTERS)], np.eye(1280)[CLUSTERS]], axis=1).astype(np.float16)
    fitted = Belonging(np.array(CLUSTERS), np.zeros(3, np.float32), np.ones(3, bool))
    save_belonging(artifacts.BELONGING, fitted, bank, np.full((len(bank), 2), 33, np.float32), False)
    assert suggested() == {1: "dog", 2: "cat", 3: "umbrella"}, "the text tower comes before a classifier"
    save_model("0" * 64, spaces[1])
    suggestions.KEPT.unlink()
    assert suggested() == {}, "where its features start is not known"


def test_all_suggestions_are_taken_by_one_command_and_taken_back(run):
    said = CliRunner().invoke(app, ["edit", "suggested"])
    assert said.stdout.splitlines()[0] == "group 1 is 'tench' now" and file.load().names[3] == "great white shark"
    assert "no name is suggested" in CliRunner().invoke(app, ["edit", "suggested"]).stderr
    CliRunner().invoke(app, ["edit", "undo"])
    assert file.load().names == {}


def test_a_damaged_note_is_made_again(run):
    suggested()
    suggestions.KEPT.write_text("{")
    assert len(suggested()) == 3 and len(run) == 2
