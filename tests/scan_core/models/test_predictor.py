"""The whole model against its steps: frozen networks, a network that was trained, and whether an image fits."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scan_core.compute.device import Compute
from scan_core.evaluation.belonging import judge_images, nearest_in_bank
from scan_core.models.files import load_belonging
from scan_core.models.frozen import embed_frozen
from scan_core.models.predictor import Predictor
from tests.scan_core.models.models_on_disk import frozen_model, images_of, stats, trained_model
from tests.tiny import CPU, refused

FLOAT = Compute(CPU, "fp32")
ROWS = torch.arange(70)


def assert_answers(said, wanted, features, files):
    """``wanted`` (N,C) are the probabilities; the states are those of these features' neighbors in the bank."""
    order = np.argsort(-wanted, axis=1, kind="stable")
    assert np.array_equal(said.prediction.clusters, order)
    np.testing.assert_allclose(said.prediction.probabilities, np.take_along_axis(wanted, order, 1), atol=1e-6)
    fitted, bank = load_belonging(files.belonging)[:2]
    states = judge_images(fitted, *nearest_in_bank(features, bank), order[:, 0])
    assert said.states.tolist() == states.tolist()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return frozen_model(tmp_path_factory.mktemp("frozen"), stats())


def test_a_model_of_frozen_networks_takes_the_steps_of_the_pipeline(frozen):
    files, networks, reduction, head = frozen
    images, _ = images_of(stats(), seed=1)
    features = [np.concatenate(list(embed_frozen(each, images, ROWS))) for each in networks]
    assert np.array_equal(features[0][:5], networks[0](images.squares(ROWS[:5], 16)))
    said = Predictor(files, FLOAT)(images, ROWS)
    embeddings = reduction(features)
    wanted = head(torch.from_numpy(embeddings))[0].softmax(dim=1).detach().numpy()
    assert_answers(said, wanted, features, files)
    assert np.array_equal(said.embeddings, embeddings)
    assert len(set(said.prediction.cluster.tolist())) > 1 and len(set(said.states.tolist())) > 1, "proves little"


def test_an_answer_depends_on_no_other_image(frozen):
    images, _ = images_of(stats(), seed=1)
    model = Predictor(frozen[0], FLOAT)
    together, alone = model(images, ROWS), [model(images, ROWS[row : row + 1]) for row in (0, 3, 69)]
    for row, each in zip((0, 3, 69), alone, strict=True):
        assert np.array_equal(each.prediction.probabilities[0], together.prediction.probabilities[row])
        assert np.array_equal(each.embeddings[0], together.embeddings[row])
        assert each.states[0] == together.states[row]


@pytest.mark.parametrize("projected", [False, True])
def test_a_trained_model_has_the_groups_of_one_network_and_the_embeddings_of_another(tmp_path, projected):
    about = stats(size=12, view=8)
    files, model, pretext = trained_model(tmp_path, about, projected)
    images, _ = images_of(about, seed=1)
    said = Predictor(files, FLOAT)(images, ROWS)
    with torch.no_grad():
        views = images.plain_view(ROWS)
        wanted = model(views)[1][0].softmax(dim=1).numpy()
        embeddings = F.normalize(pretext(views)[int(projected)], dim=1).numpy()
    np.testing.assert_allclose(said.embeddings, embeddings, atol=1e-6)
    assert_answers(said, wanted, [embeddings], files)
    assert len(set(said.prediction.cluster.tolist())) > 1, "proves little"


@pytest.mark.parametrize("part", ["model", "belonging", "networks"])
def test_a_part_that_is_missing_is_named(frozen, tmp_path, part):
    files = dataclasses.replace(frozen[0], **{part: tmp_path / "gone"})
    refused(lambda: Predictor(files, FLOAT), tmp_path / "gone", "is missing")
