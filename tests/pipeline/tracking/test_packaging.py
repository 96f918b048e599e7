"""The environment that a run records, and what is packaged with its model."""

import base64
import io
import json
from importlib.metadata import Distribution, PackageNotFoundError, distributions

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.groups import file
from pipeline.groups.numbering import numbered
from pipeline.tracking import packaging
from pipeline.tracking.packaging import environment, example_of, groups_of, images_of, requirements
from tests.pipeline.groups.conftest import project, write_run  # noqa: F401 (a fixture)


class Broken(Distribution):
    """A package whose installation was interrupted: it has no metadata."""

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


def test_the_environment_lists_all_packages_but_broken_ones(monkeypatch):
    monkeypatch.setattr("pipeline.tracking.packaging.distributions", lambda: [Broken(), *distributions()])
    packages = environment()["packages"]
    assert packages["torch"].startswith("2.") and list(packages) == sorted(packages)
    assert "none" not in packages


def test_requirements_are_pinned_and_those_of_what_is_used(monkeypatch):
    monkeypatch.setattr(packaging, "version", lambda name: "2.1+cu130")
    plain = requirements("resnet18", frozen=False)
    assert {"torch==2.1", "pillow==2.1", "simplejpeg==2.1", "scipy==2.1", "pillow-heif==2.1"} <= set(plain)
    assert not {"timm==2.1", "openvino==2.1"} & set(plain)
    assert {"timm==2.1"} == set(requirements("timm", frozen=False)) - set(plain)
    assert {"timm==2.1", "openvino==2.1"} == set(requirements("convnet", frozen=True)) - set(plain)

    def without(name):
        if name == packaging.HEIC:
            raise PackageNotFoundError(name)
        return "2.1"

    monkeypatch.setattr(packaging, "version", without)
    assert set(plain) - set(requirements("resnet18", frozen=False)) == {"pillow-heif==2.1"}


def test_the_store_is_described_with_what_is_not_in_its_stats():
    stats = {"size": 16, "view": 12, "fit": "pad", "store": "array", "channels": 1, "mean": [0.5], "std": [0.2]}
    found = json.loads(images_of(stats | {"count": 7, "rows": [7]}, 1000, "bf16"))
    assert found == stats | {"max_pixels": 1000, "precision": "bf16"}


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_are_files_that_hold_the_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, channels), np.uint8)
    texts = json.loads(example_of(pixels))["image"]
    for text, each in zip(texts, pixels, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert np.array_equal(np.asarray(image).reshape(each.shape), each)


def said():
    """The groups as they would be packaged: number and name by cluster."""
    found = json.loads(groups_of(artifacts.PREDICTIONS))
    assert list(found) == [str(cluster) for cluster in range(len(found))]
    return [tuple(each) for each in found.values()]


def said_later():
    """The groups as every command says them once the run is finished."""
    groups = numbered()
    shown = [groups.shown_as(number) for number in groups.clusters]
    return [(number, groups.names.get(number, "")) for number in shown]


def test_the_first_run_has_the_numbers_that_it_will_have(project):  # noqa: F811
    write_run([0] * 2 + [1] * 5 + [2] * 3)
    assert said() == [(3, ""), (1, ""), (2, "")]
    assert not (project / "groups.yaml").exists() and not list((project / ".scan").iterdir()), "nothing is kept"
    assert said_later() == [(3, ""), (1, ""), (2, "")]


def test_a_new_run_takes_over_numbers_names_and_merges(project):  # noqa: F811
    write_run([0] * 9 + [1] * 7 + [2] * 5 + [3] * 3)
    groups = numbered()
    file.save(file.changed(groups, names={1: "daisy", 2: "oak", 4: "odd"}, merge={3: 2, 4: 1}))
    assert said() == said_later() == [(1, "daisy"), (2, "oak"), (2, "oak"), (1, "daisy")]
    # Cluster 0 is what 1 was and the other way around; 2 and 3 are one now, and the images of cluster 3 are new.
    write_run([1] * 9 + [0] * 7 + [2] * 8 + [3] * 6, model=b"new")
    before = said()
    assert before == said_later() == [(2, "oak"), (1, "daisy"), (2, "oak"), (5, "")]


def test_a_merge_into_a_group_that_is_gone_is_no_more(project):  # noqa: F811
    write_run([0] * 9 + [1] * 7)
    file.save(file.changed(numbered(), merge={1: 2}))
    assert said() == [(2, ""), (2, "")]
    write_run([0] * 9, model=b"new")
    assert said() == [(1, "")] == said_later()


def test_a_split_group_is_whole(project):  # noqa: F811
    write_run([0] * 9 + [1] * 7)
    groups = numbered()
    file.save(file.changed(groups, split={2: (3, 4)}, next=5, merge={1: 3}))
    assert said() == [(3, ""), (2, "")]


def test_damaged_groups_fail_no_run(project):  # noqa: F811
    write_run([0] * 2 + [1] * 5)
    (project / "groups.yaml").write_text("names: [3\n")
    assert groups_of(artifacts.PREDICTIONS) is None
