"""The stages on frozen networks: what they write, resume and refuse, and that no image is embedded twice."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.artifacts import load_csv, load_json
from scan_core.compute.device import Compute
from scan_core.images.store import ArrayImages
from scan_core.models import frozen
from scan_core.models.files import Preprocessing, save_backbone
from scan_core.models.networks import architecture, build_backbone
from scan_core.models.predictor import ModelFiles, Predictor
from stages.cluster import warn_of_many
from tests.project import (
    OUTPUTS,
    STAGES,
    error_of,
    files,
    make_project,
    report_of,
    run,
    run_stage,
    run_stages,
    set_params,
)
from tests.tiny import BACKBONE, CPU

SPACES = [
    {"weights": "weights/a.safetensors", "side": None, "mirror": False},
    {"weights": "weights/b.safetensors", "side": 12, "mirror": True},
]
FROZEN = {
    "data": {"size": 16},
    "pretext": {"method": "frozen"},
    "embed": {"spaces": SPACES, "dimensions": 12},
    "cluster": {"method": "frozen", "num_clusters": 10, "heads": 2, "steps": 20, "lr": 1e-2},
    "selflabel": {"epochs": 0},
}


def frozen_project(folder):
    project = make_project(folder, FROZEN)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        network = build_backbone(BACKBONE, 3)
        origin, images = {"network": architecture(BACKBONE)}, Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
        save_backbone(project / "weights" / f"{name}.safetensors", network.state_dict(), origin, BACKBONE, images)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = frozen_project(tmp_path_factory.mktemp("frozen") / "project")
    run_stages(folder, "source", *STAGES)
    return folder


def hashes(project):
    return load_json(project / "data" / "spaces.json")["sha256"]


@pytest.mark.slow
def test_all_stages_write_their_outputs_and_what_is_kept_is_what_is_predicted(project):
    networks = {f"data/embeddings/networks/{each[:16]}.safetensors" for each in hashes(project)}
    assert files(project) == OUTPUTS | {"data/embeddings/reduction.safetensors"} | networks
    embeddings = np.load(project / "data" / "embeddings" / "val.npy")
    assert embeddings.shape[1] == 12 and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    rows = load_csv(project / "reports" / "plots" / "cluster_heads.csv")
    (kept,) = (int(row["head"]) for row in rows if row["kept"] == "1")
    assert float(rows[kept]["agreement"]) == max(float(row["agreement"]) for row in rows)
    assigned = np.load(project / "data" / "assignments" / "heads.npy")
    predicted = pq.read_table(project / "reports" / "predictions.parquet", columns=["id", "cluster"]).to_pandas()
    val = np.load(project / "data" / "images" / "val.npy")
    assert np.array_equal(predicted.set_index("id").cluster[val], assigned[kept])
    for name in ("cluster", "selflabel"):
        assert np.array_equal(np.load(project / "data" / "assignments" / f"{name}.npy"), assigned[[kept]])
    assert load_json(project / "models" / "selflabel.json")["kept"] == "before"
    assert load_json(project / "reports" / "metrics.json")["val"]["selflabel"]["acc"] > 0.1


@pytest.mark.slow
def test_the_model_alone_gives_the_same_clusters_from_pixels(project):
    val = torch.from_numpy(np.load(project / "data" / "images" / "val.npy"))
    images = ArrayImages(CPU, [np.load(project / "data" / "images" / "pixels-00000.npy")], [0.5], [0.5])
    models, networks = project / "models", project / "data" / "embeddings" / "networks"
    files = ModelFiles(models / "selflabel.safetensors", models / "belonging.safetensors", networks=networks)
    said = Predictor(files, Compute(CPU, "fp32"))(images, val)
    assert np.array_equal(said.prediction.cluster, np.load(project / "data" / "assignments" / "selflabel.npy")[0])
    assert np.array_equal(said.embeddings, np.load(project / "data" / "embeddings" / "val.npy"))


@pytest.mark.slow
def test_an_interrupted_embed_goes_on_with_the_images_that_are_missing(project, tmp_path, monkeypatch):
    other, seen, original = frozen_project(tmp_path / "project"), [], frozen.FrozenNetwork.__call__

    def counted(self, pixels):
        if len(seen) == 7:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(frozen.FrozenNetwork, "__call__", counted)
    run_stages(other, "source", "prepare", "pretext")
    assert run_stage(other, "embed", check=False).exit_code == 130
    run_stages(other, "embed")
    images = sum(len(np.load(other / "data" / "images" / f"{split}.npy")) for split in ("train", "val"))
    assert sum(seen) == 2 * images, "each image once per space"
    for split in ("train", "val"):
        file = f"data/embeddings/{split}.npy"
        assert (other / file).read_bytes() == (project / file).read_bytes()


@pytest.mark.slow
def test_weights_that_are_missing_damaged_or_unknown_are_refused(tmp_path):
    project = frozen_project(tmp_path / "project")
    (project / "weights" / "b.safetensors").unlink()
    error = error_of(project, "source")
    assert "embed.spaces.1.weights is weights/b.safetensors; there is no file at" in error
    assert "efficientnet_lite0" in error
    (project / "weights" / "b.safetensors").write_text("no tensors")
    run_stages(project, "source", "prepare", "pretext")
    assert "b.safetensors" in (said := error_of(project, "embed")) and "import it again" in said


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "said"), [
    ({"pretext": {"method": "rotation"}}, "pretext.method is rotation, but embed.spaces has networks; frozen is"),
    ({"embed": {"spaces": []}}, "pretext.method is frozen, but embed.spaces is []; one that trains, or none, is"),
    ({"embed": {"spaces": []}, "pretext": {"method": "none"}}, "cluster.method is frozen, but embed.spaces is []"),
    ({"cluster": {"method": "scan"}}, "cluster.method is scan, but embed.spaces has networks; frozen is allowed"),
])  # fmt: skip
def test_settings_that_contradict_one_another_are_refused(tmp_path, changes, said):
    project = make_project(tmp_path / "project", FROZEN)
    set_params(project, changes)
    assert said in error_of(project, "source")


@pytest.mark.parametrize(("clusters", "said"), [(10, ""), (11, "cluster   11 clusters of 100 images are many: fewer")])
def test_more_clusters_than_a_tenth_of_the_images_are_said(capsys, clusters, said):
    warn_of_many(clusters, 100)
    heard = "".join(capsys.readouterr())
    assert said in heard and bool(said) == bool(heard)


def test_weights_that_are_trained_on_go_by_the_same_names(tmp_path):
    named = {"backbone": {**BACKBONE.model_dump(mode="json"), "weights": "timm/a"}, "pretext": {"method": "none"}}
    project = make_project(tmp_path / "project", named)
    network, images = build_backbone(BACKBONE, 3), Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
    path, origin = project / "weights" / "a.safetensors", {"network": architecture(BACKBONE)}
    save_backbone(path, network.state_dict(), origin, BACKBONE, images)
    run_stages(project, "source", "prepare", "pretext")
    assert (project / "models" / "pretext.safetensors").is_file()


@pytest.mark.slow
def test_the_number_of_groups_can_be_estimated(project, tmp_path):
    run(project, "cp", "-r", ".", str(tmp_path / "project"))
    folder = tmp_path / "project"
    assert load_json(folder / "data" / "groups.json") == {"given": True, "number": 10}
    set_params(folder, {"cluster": {"num_clusters": "auto"}})
    run_stages(folder, "groups", "cluster", "selflabel", "evaluate")
    groups = load_json(folder / "data" / "groups.json")
    assert groups["low"] <= groups["number"] <= groups["high"] and not groups["given"]
    assert groups["number"] in [each["groups"] for each in groups["tried"]]
    table = pq.read_table(folder / "reports" / "predictions.parquet", columns=["cluster"]).to_pandas()
    assert table.cluster.max() < groups["number"]
    titles = [[chart["title"] for chart in report_of(each)["more"]["charts"]] for each in (folder, project)]
    assert ["How many groups" in each for each in titles] == [True, False]
    run_of = report_of(folder)["run"]
    assert (run_of["low"], run_of["high"], run_of["given"]) == (groups["low"], groups["high"], False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scan", "frozen"])
def test_copies_have_one_vote_and_share_one_group(tmp_path, method):
    """Sixty images, ten of them a burst: the other images' neighbors are as they are without nine of it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    pixels[50:] = (pixels[50] // 2 + np.arange(10, dtype=np.uint8)[:, None, None, None]).clip(0, 255)
    few = {"num_clusters": 3, "neighbors": 5, "val_neighbors": 1}
    trained = {"cluster": {**few, "batch_size": 8}, "pretext": {"batch_size": 8}, "selflabel": {"batch_size": 8}}
    changes = {"cluster": {**FROZEN["cluster"], **few}} if method == "frozen" else trained
    folder = frozen_project(tmp_path / "project") if method == "frozen" else make_project(tmp_path / "project")
    np.save(folder / "all.npy", pixels)
    data = {"name": "npy", "path": "all.npy", "labels": "none", "size": 32, "duplicates": "together"}
    set_params(folder, {**changes, "data": {**data, "val_fraction": 0.4, "split_seed": 1}, "neighbors": {"k": 5}})
    run_stages(folder, "source", *STAGES)

    copies = np.load(folder / "data" / "images" / "copies.npy")
    train = np.load(folder / "data" / "images" / "train.npy")
    burst = np.bincount(copies).argmax()
    assert (copies == burst).sum() == 10 and len(set(copies.tolist())) == 51
    first = np.load(folder / "data" / "embeddings" / "train_first.npy")
    assert len(set(first[copies[train] == burst].tolist())) == 1
    embeddings = np.load(folder / "data" / "embeddings" / "train.npy")
    assert np.array_equal(embeddings, embeddings[first])
    near = np.load(folder / "data" / "neighbors" / "train.npy")
    assert set(near.ravel().tolist()) <= set(first.tolist()) and np.array_equal(near, near[first])
    predicted = pq.read_table(folder / "reports" / "predictions.parquet").to_pandas().set_index("id")
    for split in ("train", "val"):
        of_burst = predicted[(copies[predicted.index] == burst) & (predicted.split == split)]
        assert len(of_burst) > 1 and len(set(of_burst.cluster)) == 1 == len(set(of_burst.probability))
