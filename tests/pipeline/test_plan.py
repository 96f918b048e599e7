"""What a run would take: how times and memory are put together, and which plan is taken."""

import json
import sys
from itertools import pairwise

import pytest
import torch

from pipeline import plan
from pipeline.inspect_source import SHARP, Inspection
from pipeline.params import Params
from pipeline.plan import (
    COMPILING,
    LITE0,
    LITE2,
    PROBED,
    Plan,
    choose,
    free_memory,
    options,
    plan_frozen,
    plan_training,
)
from pipeline.presets import preset_values, read_preset
from scan_core.clustering import candidates
from scan_core.errors import ScanError
from tests.project import ROOT, completed, merge

PHOTOS = read_preset(ROOT / "presets" / "photos.yaml")


def found(side=32, images=1000, seconds=0.25, read_seconds=2.0):
    return Inspection("photos", PHOTOS.data, images, sizes=[(side, side)], seconds=seconds, read_seconds=read_seconds)


@pytest.mark.parametrize(("short", "sides"), [
    (32, [(128, 128), (128,)]), (128, [(128, 128), (128,)]), (160, [(160, 160), (160,), (128,)]),
    (9000, [(224, 224), (224,), (128,)]),
])  # fmt: skip
def test_networks_see_no_more_pixels_than_the_images_have(short, sides):
    names = (LITE0, LITE2)
    assert options(found(short)) == [tuple(zip(names, each, strict=False)) for each in sides]
    for side in SHARP:
        assert {each for spaces in options(found(side)) for _, each in spaces} <= {128, max(side, 128)}


@pytest.mark.parametrize(("plans", "chosen"), [
    ([(600, 3), (500, 2), (9, 1)], 0), ([(601, 3), (600, 2), (9, 1)], 1), ([(9, 4), (600, 3), (9, 1)], 1),
    ([(9000, 3), (7000, 2), (8000, 1)], 1), ([(9, 5), (9000, 3), (8000, 3)], 2),
])  # fmt: skip
def test_the_best_plan_that_fits_and_ends_soon_is_chosen_else_the_quickest(monkeypatch, plans, chosen):
    monkeypatch.setattr(plan, "free_memory", lambda: 4e9)
    plans = [Plan((), seconds, memory * 1e9) for seconds, memory in plans]
    assert choose(plans) is plans[chosen]


def test_too_little_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda: 4e9)
    with pytest.raises(ScanError, match=r"^5\.2 GB of memory are needed, but 4\.0 GB are free; close other programs, "):
        choose([Plan((), 1, 7e9), Plan((), 1, 5.24e9)])


@pytest.fixture
def measured(monkeypatch):
    """What was measured: lite0 takes a second for an image, lite2 three, the SCAN loss five for each cluster."""
    asked = []
    monkeypatch.setattr(
        plan, "embedding_seconds", lambda *each: asked.append(each) or {LITE0: 1.0, LITE2: 3.0}[each[0]]
    )
    monkeypatch.setattr(plan, "scan_seconds", lambda clusters, settings: 5.0 * clusters)
    return asked


def test_the_time_of_frozen_networks(measured):
    both, single, small = plan_frozen(found(224), 10, PHOTOS.cluster)
    assert [both.spaces, single.spaces, small.spaces] == options(found(224))
    assert measured == [(LITE0, 224), (LITE2, 224)]
    assert both.seconds - single.seconds == pytest.approx(COMPILING + 1000 * 3.0)
    assert single.seconds - small.seconds == pytest.approx(1000 * (1 - (128 / 224) ** 2))
    assert both.memory == single.memory == small.memory
    (slower, *_) = plan_frozen(found(224, seconds=0.5), 10, PHOTOS.cluster)
    assert slower.seconds - both.seconds == pytest.approx(1000 * 0.25)
    (slower, *_) = plan_frozen(found(224, read_seconds=5.0), 10, PHOTOS.cluster)
    assert slower.seconds - both.seconds == pytest.approx(3.0)


@pytest.mark.parametrize(("image_seconds", "image_bytes", "clusters"), [
    (1.25 + plan.PER_IMAGE + 2 * plan.PER_IMAGE_AND_CLUSTER, plan.IMAGE_BYTES + 2 * plan.IMAGE_AND_CLUSTER_BYTES, 2),
    (1.25 + plan.PER_IMAGE + 50 * plan.PER_IMAGE_AND_CLUSTER, plan.IMAGE_BYTES + 50 * plan.IMAGE_AND_CLUSTER_BYTES, 50),
])  # fmt: skip
def test_seconds_and_memory_grow_with_images_and_clusters(measured, image_seconds, image_bytes, clusters):
    plans = [plan_frozen(found(images=images), clusters, PHOTOS.cluster)[1] for images in (0, 1000, 2000)]
    assert plans[0].seconds == pytest.approx(plan.STARTING + COMPILING + 2.0 + 5.0 * clusters)
    assert plans[0].memory == plan.BASE
    for less, more in pairwise(plans):
        assert more.seconds - less.seconds == pytest.approx(1000 * image_seconds)
        assert more.memory - less.memory == pytest.approx(1000 * image_bytes)


@pytest.mark.parametrize(("changes", "views", "batch"), [
    ({}, 2 * 3 + 2 * 5 + 8, 64), ({"pretext": {"epochs": 4}}, 2 * 4 + 2 * 5 + 8, 64),
    ({"cluster": {"epochs": 6, "batch_size": 80}}, 2 * 3 + 2 * 6 + 8, 80),
    ({"selflabel": {"epochs": 0}}, 2 * 3 + 2 * 5, 64), ({"pretext": {"method": "none"}}, 2 * 5 + 8, 32),
])  # fmt: skip
def test_training_takes_as_long_as_the_views_that_its_stages_see(monkeypatch, changes, views, batch):
    tiny = {
        "data": {"size": 16, "view": 12}, "pretext": {"epochs": 3, "batch_size": 64},
        "cluster": {"epochs": 5, "batch_size": 32}, "selflabel": {"epochs": 6},
    }  # fmt: skip
    values = merge(merge(preset_values(ROOT / "presets" / "digits.yaml"), tiny), changes)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 2))  # takes no other size
    peaks = iter([1e6, 1e6 + 10 * PROBED])
    monkeypatch.setattr("scan_core.models.networks.build_backbone", lambda *_: network)
    monkeypatch.setattr(plan, "_seconds", lambda work: work() or 7.0 * PROBED)
    monkeypatch.setattr(plan, "_peak", lambda: next(peaks))
    planned = plan_training(found(), Params.model_validate_json(json.dumps(completed(values))))
    assert planned.spaces == () and planned.memory == plan.BASE + 2 * batch * 10
    assert planned.seconds == pytest.approx(plan.STARTING + 2.0 + 1000 * (0.25 + 7 * views))


def test_the_scan_loss_is_timed_on_all_heads_and_on_one(monkeypatch):
    shapes = []
    real = candidates.scan_heads

    def scan_heads(points, near, heads, *others):
        shapes.append(tuple(heads[0].shape))
        return real(points, near, heads, *others)

    monkeypatch.setattr(candidates, "scan_heads", scan_heads)
    monkeypatch.setattr(plan, "_seconds", lambda work: (work(), 4.0 * shapes[-1][0])[1])  # a second for a step and head
    settings = PHOTOS.cluster.model_copy(update={"heads": 3, "steps": 50, "batch_size": 8})
    assert plan.scan_seconds(7, settings) == 3 * 50 + 2 * candidates.FROM_CLUSTERS_STEPS
    assert shapes == [(3, 7, 256), (1, 7, 256)]


def test_a_network_s_time_is_that_of_one_image(monkeypatch):
    class Network:
        def __init__(self, file, device, side):
            assert (file.name, device.type, side) == (f"{LITE0}.safetensors", "cpu", 160)

        def __call__(self, pixels):
            assert pixels.shape == (PROBED, 3, 160, 160) and pixels.dtype == torch.uint8

    made = []
    monkeypatch.setattr("pipeline.weights.sign_weights", lambda key, name, root: made.append(name))
    monkeypatch.setattr("scan_core.models.frozen.FrozenNetwork", Network)
    monkeypatch.setattr(plan, "_seconds", lambda work: work() or 64.0)
    assert plan.embedding_seconds(LITE0, 160) == 2.0 and made == [LITE0]


def test_the_first_call_is_not_timed(monkeypatch):
    clock = [0.0]
    takes = iter([100.0, 3.0])
    monkeypatch.setattr(plan.time, "monotonic", lambda: clock[0])
    assert plan._seconds(lambda: clock.__setitem__(0, clock[0] + next(takes))) == 3.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups")
@pytest.mark.parametrize(("limit", "stat", "free"), [
    ("700000", "anon 9\ninactive_file 50000\nactive_file 8", 150_000), ("max", "inactive_file 50000", None),
    (str(10**18), "inactive_file 50000", None), ("700000", "anon 9", None), (None, "", None),
])  # fmt: skip
def test_free_memory_is_the_container_s_if_it_has_less_than_the_machine(monkeypatch, tmp_path, limit, stat, free):
    monkeypatch.setattr(plan, "CGROUP", tmp_path)
    if limit:
        for name, text in (("max", limit), ("current", "600000"), ("stat", stat)):
            (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert free_memory() == free if free else 10**7 < free_memory() < 10**14
