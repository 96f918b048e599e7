"""Features of an earlier run: only new images are embedded, and the bytes are those of a run from nothing."""

import numpy as np
import pytest

from scan_core.models import frozen
from stages.embed import KnownFeatures
from tests.project import run_stages, set_params
from tests.stages.test_frozen import frozen_project

PHOTOS = {"name": "npy", "path": "all.npy", "labels": "none", "size": 16, "protocol": "split", "val_fraction": 0.4}


def project_of(folder, pixels):
    project = frozen_project(folder)
    np.save(project / "all.npy", pixels)
    set_params(project, {"data": PHOTOS, "neighbors": {"k": 5}})
    return project


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def seen(monkeypatch):
    """How many images went through each call of a network."""
    calls, original = [], frozen.FrozenNetwork.__call__
    monkeypatch.setattr(
        frozen.FrozenNetwork, "__call__", lambda self, given: calls.append(len(given)) or original(self, given)
    )
    return calls


@pytest.mark.slow
def test_only_new_images_are_embedded_and_the_bytes_are_those_of_a_run_from_nothing(tmp_path, seen):
    project = project_of(tmp_path / "a", images(70))
    run_stages(project, "source", "prepare", "pretext", "embed")
    assert sum(seen) == 2 * 70
    seen.clear()
    more = np.concatenate([images(70)[3:], images(5, seed=1)])  # three are gone
    np.save(project / "all.npy", more)
    run_stages(project, "source", "prepare", "embed")
    assert seen == [5, 5]
    fresh = project_of(tmp_path / "b", more)
    run_stages(fresh, "source", "prepare", "pretext", "embed")
    for path in sorted((fresh / "data" / "embeddings").rglob("*")):
        if path.is_file():
            again = project / path.relative_to(fresh)
            assert again.read_bytes() == path.read_bytes(), path.name
    seen.clear()
    run_stages(project, "embed")
    assert seen == []


@pytest.mark.slow
def test_another_side_or_mirror_is_another_network_and_damage_only_costs_time(tmp_path, seen):
    project = project_of(tmp_path / "a", images(70))
    run_stages(project, "source", "prepare", "pretext", "embed")
    seen.clear()
    spaces = [{"weights": "weights/a.safetensors", "side": 12, "mirror": False}]
    set_params(project, {"embed": {"spaces": spaces}})
    run_stages(project, "source", "embed")
    assert sum(seen) == 70
    seen.clear()
    (file,) = (project / ".scan" / "features").glob("*-12-cpu.npy")
    file.write_bytes(file.read_bytes()[:-100])
    run_stages(project, "embed")
    assert sum(seen) == 70


def test_features_are_found_by_digest_wherever_their_image_is_now(tmp_path):
    digests = np.random.default_rng(0).integers(0, 256, (6, 16), dtype=np.uint8)
    file = tmp_path / "features.npy"
    np.save(file, np.arange(4, dtype=np.float32)[:, None])
    KnownFeatures(tmp_path / "kept", "a", digests).keep(np.array([5, 0, 3, 1]), file)
    assert not file.exists()
    known = KnownFeatures(tmp_path / "kept", "a", digests[::-1].copy())
    assert known.places(np.arange(6)).tolist() == [0, -1, 2, -1, 3, 1]
    assert KnownFeatures(tmp_path / "kept", "b", digests).places(np.arange(6)).tolist() == [-1] * 6


def test_keys_of_other_features_are_not_believed(tmp_path):
    digests = np.zeros((3, 16), np.uint8)
    (tmp_path / "kept").mkdir()
    np.save(tmp_path / "kept" / "a.npy", np.zeros((2, 1), np.float32))
    np.save(tmp_path / "kept" / "a.keys.npy", digests)
    assert KnownFeatures(tmp_path / "kept", "a", digests).places(np.arange(3)).tolist() == [-1] * 3
