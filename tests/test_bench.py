"""The benchmarks' own logic: turns, tables, and the script for a GPU machine, here on the CPU with a tiny network."""

import io
import json
import multiprocessing
import os
import platform
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from bench import __main__ as bench_main
from bench import agreement, end_to_end, gpu, steps
from bench.machine import machine
from bench.timing import Row, Side, apart, compared, in_turn
from pipeline.params import Params
from pipeline.presets import read_preset
from scan_core.compute.device import configure_compute
from tests import project
from tests.project import ROOT


def test_sides_take_turns_and_are_counted(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])

    def side(name, seconds):
        def work():
            turns.append(name)
            clock[0] += seconds
            return 10

        return work

    rates = in_turn({"a": side("a", 0.5), "b": side("b", 1.0)}, seconds=1.0, spells=2)
    assert turns == ["a", "b", "a", "a", "b", "a", "a", "b"]  # one of each to warm up
    assert rates == {"a": [20, 20], "b": [10, 10]}
    row = compared("a thing", rates, "a", "b")
    assert (row.rate, row.ratios, row.ratio) == (20, [2, 2], 2)


def count_on(counter):
    while True:
        counter.value += 1


def test_what_a_side_s_processes_do_is_done_in_its_own_turn():
    counter, started, grown = multiprocessing.Value("q", 0, lock=False), [], {"a": [], "b": []}

    def side(name):
        def work():
            if name == "a" and not started:
                started.append(multiprocessing.Process(target=count_on, args=(counter,), daemon=True))
                started[0].start()
            before = counter.value
            time.sleep(0.2)
            grown[name].append(counter.value - before)
            return 1

        return work

    try:
        in_turn({"a": side("a"), "b": side("b")}, seconds=0.1, spells=2)
        assert len(grown["a"]) == 3 and min(grown["a"]) > 100
        assert max(grown["b"]) <= 1  # one that was under way
        before = counter.value
        time.sleep(0.2)
        assert counter.value > before  # they can end, too
    finally:
        started[0].kill()


def noting(path, name):
    """Notes where its work is done, and whether memory that was freed is kept there."""

    def work():
        freed = torch.ones(2**24)
        del freed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**23)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        with path.open("a") as file:
            file.write(f"{name} {os.getpid()} {faults > 4000}\n")
        time.sleep(0.01)
        return 1

    configure_compute("fp32", "cpu")  # as any loop of ours
    return work


def test_sides_apart_have_a_new_process_each_turn_and_only_ours_keep_memory(tmp_path):
    notes = tmp_path / "notes"
    sides = {"ours": Side(noting, (notes, "ours")), "other": Side(noting, (notes, "other"), ours=False)}
    rates, peaks = apart(sides, 0.01, 2)
    assert {name: len(values) for name, values in rates.items()} == {"ours": 2, "other": 2}
    assert all(0 < value <= 100 for values in rates.values() for value in values)
    assert min(peaks.values()) > 64
    lines = [line.split() for line in notes.read_text().splitlines()]
    turns = list(dict.fromkeys((name, pid) for name, pid, _ in lines))
    assert [name for name, _ in turns] == ["ours", "other"] * 2
    assert len({pid for _, pid in turns}) == 4
    if platform.libc_ver()[0] == "glibc":
        assert {faulted for name, _, faulted in lines if name == "ours"} == {"False"}
        huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # with these a fault brings 512 pages
        if huge.exists() and "[always]" not in huge.read_text():
            assert {faulted for name, _, faulted in lines if name == "other"} == {"True"}


def test_a_part_that_was_not_measured_keeps_what_it_had(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_main, "RESULTS", tmp_path)
    here = {name: name for name in ("processor", "cores", "memory", "python", "packages")}
    bench_main.write({"mining": [Row("rows", 5.0, "others", [2.0, 3.0, 2.5], "≥ 1")]}, {**here, "date": "monday"})
    text = bench_main.write({"views": [Row("views", 1234.0)]}, {**here, "date": "tuesday"})
    assert text == (tmp_path / "cpu.md").read_text()
    assert "| rows | 5.00 | others | 2.50 (2.00 to 3.00) | ≥ 1 |  |  |" in text and "monday" in text
    assert "| views | 1,234 |" in text and "tuesday" in text
    assert text.index("Augmentation") < text.index("Neighbours")


@pytest.mark.parametrize(
    ("sides", "arguments"),
    [
        (steps.pretext_step, (16,)),
        (steps.scan_step, (16, False)),
        (steps.scan_step, (16, True)),
        (steps.selflabel_step, (16,)),
        (steps.embedding, ()),
    ],
)
def test_a_loop_and_its_ceiling_see_as_many_images_a_step(sides, arguments):
    from scan_core.compute.device import make_fabric

    what, works = sides(make_fabric("fp32", "cpu"), "digits", *arguments)
    assert set(works) == {"loop", "ceiling"} and "digits" in what
    counts = {name: [work() for _ in range(2)] for name, work in works.items()}
    if sides is steps.embedding:  # the loop embeds two of the ceiling's batches
        assert counts["loop"] == [2 * count for count in counts["ceiling"]]
    else:
        assert counts["loop"] == counts["ceiling"] == [32, 32]


# --- The script for a GPU machine


def tiny():
    """Published CIFAR-10, but for a tiny network and few epochs."""
    values = read_preset(ROOT / "presets" / "cifar10.yaml").model_dump(mode="json")
    values["backbone"] |= {"name": "convnet", "width": 4}
    values["pretext"] |= {"epochs": 3, "batch_size": 16}
    values["neighbors"] |= {"k": 5}
    values["cluster"] |= {"epochs": 2, "batch_size": 16, "neighbors": 5}
    values["selflabel"] |= {"epochs": 2, "batch_size": 16, "threshold": 0.01}
    return Params.model_validate_json(json.dumps(values))


@pytest.fixture
def archive(tmp_path):
    """48 JPEGs of ten classes in the layout of the real one."""
    path, rng = tmp_path / "cifar10.tar.xz", np.random.default_rng(0)
    with tarfile.open(path, "w:xz") as file:
        for number in range(48):
            data = io.BytesIO()
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(data, "JPEG")
            entry = tarfile.TarInfo(f"cifar10/{'train' if number < 32 else 'test'}/class{number % 10}/{number}.jpg")
            entry.size = len(data.getvalue())
            file.addfile(entry, io.BytesIO(data.getvalue()))
    return path


def call(monkeypatch, archive, out, *arguments):
    monkeypatch.setattr(gpu, "preset", lambda name: tiny())
    monkeypatch.setattr(
        "sys.argv",
        [
            "bench.gpu",
            "--device",
            "cpu",
            "--archive",
            str(archive),
            "--out",
            str(out),
            "--parts",
            "cifar10",
            *arguments,
        ],
    )
    gpu.main()
    return json.loads((out / "gpu.json").read_text())


def numbers(run):
    return {name: run[name] for name in ("features", "kmeans", "cluster", "selflabel", "kept") if name in run}


@pytest.mark.slow
def test_a_run_that_ran_out_of_time_goes_on_and_ends_with_the_same_scores(monkeypatch, archive, tmp_path, capsys):
    monkeypatch.setattr(end_to_end, "neighbor_purity", lambda labels, mined, k: 0.5)  # 5 were mined here
    at_once = call(monkeypatch, archive, tmp_path / "whole", "--state", str(tmp_path / "a"), "--minutes", "10")
    assert at_once["unfinished"] is None and [run["seed"] for run in at_once["cifar10"]] == [0]
    stops = []
    for _ in range(9):
        parts = call(monkeypatch, archive, tmp_path / "parts", "--state", str(tmp_path / "b"), "--minutes", "0")
        stops.append(parts["unfinished"])
        for run in parts["cifar10"]:  # scored as far as it has come, and gone on from
            assert run["cut"] == stops[-1]
            if run["cut"]:
                stage = "selflabel" if run["epochs"]["selflabel"] else "cluster"
                assert run["cut"] == f"seed 0 stopped in {stage}, epoch 1 of 2"
        if not parts["unfinished"]:
            break
    assert stops[:3] == [
        "seed 0 stopped in pretext, epoch 1 of 3",
        "seed 0 stopped in pretext, epoch 2 of 3",
        "seed 0 stopped in cluster, epoch 1 of 2",
    ]
    assert "seed 0 stopped in selflabel, epoch 1 of 2" in stops
    assert numbers(parts["cifar10"][0]) == numbers(at_once["cifar10"][0])
    assert "| 0 | 50.0 / 50.0 |" in capsys.readouterr().out
    # Another machine, which has the exported weights alone: no pretext is trained again.
    for file in (tmp_path / "whole").glob("*-seed0-*"):
        assert file.stat().st_size <= end_to_end.PART
    moved = call(
        monkeypatch, archive, tmp_path / "moved", "--state", str(tmp_path / "c"), "--resume", str(tmp_path / "whole")
    )
    assert [path.stem for path in sorted((tmp_path / "c").rglob("*.state"))] == ["cluster", "selflabel"]
    assert abs(moved["cifar10"][0]["kmeans"]["acc"] - at_once["cifar10"][0]["kmeans"]["acc"]) < 0.2


@pytest.mark.slow
def test_where_the_guard_keeps_the_model_from_before_that_is_what_is_scored_and_exported(
    monkeypatch, archive, tmp_path
):
    monkeypatch.setattr(end_to_end, "neighbor_purity", lambda labels, mined, k: 0.5)  # 5 were mined here

    def keep(before, after, *_):
        after.copy_(torch.arange(len(after)) % 7)  # whatever came out, it is something else
        return "before", "for the test"

    monkeypatch.setattr(end_to_end, "choose_model", keep)
    (run,) = call(monkeypatch, archive, tmp_path / "out", "--state", str(tmp_path / "state"))["cifar10"]
    assert run["kept"] == "before" and run["selflabel"] == run["cluster"]
    assert set(run["seconds"]) == {"read", "pretext", "embed and neighbors", "cluster", "selflabel", "evaluate"}
    (state,) = (tmp_path / "state").rglob("cluster.state")
    best = torch.load(state, weights_only=True)["extra"]["best"]
    (part,) = (tmp_path / "out").glob("*-selflabel.0")
    exported = torch.load(part, weights_only=True)
    for key, value in best["backbone"].items():
        assert torch.equal(
            exported[f"backbone.{key}"].float(), value.half().float() if value.is_floating_point() else value.float()
        )


@pytest.mark.slow
def test_a_trial_on_fewer_images_is_not_gone_on_from(monkeypatch, archive, tmp_path):
    monkeypatch.setattr(end_to_end, "neighbor_purity", lambda labels, mined, k: 0.5)  # 5 were mined here
    state = ("--state", str(tmp_path / "state"))
    call(monkeypatch, archive, tmp_path / "out", *state, "--limit", "16")
    after_it = call(monkeypatch, archive, tmp_path / "out", *state)
    alone = call(monkeypatch, archive, tmp_path / "alone", "--state", str(tmp_path / "other"))
    assert numbers(after_it["cifar10"][0]) == numbers(alone["cifar10"][0])


def test_a_setting_may_differ_from_the_preset_and_the_results_say_so(monkeypatch, archive, tmp_path):
    monkeypatch.setattr(end_to_end, "neighbor_purity", lambda labels, mined, k: 0.5)  # 5 were mined here
    given = ("--state", str(tmp_path / "state"), "--limit", "16", "--set", "cluster.epochs=1", "selflabel.epochs=1")
    found = call(monkeypatch, archive, tmp_path / "out", *given)
    assert found["preset"] == "cifar10, cluster.epochs=1, selflabel.epochs=1"
    assert found["cifar10"][0]["epochs"] == {"cluster": 1, "selflabel": 1}
    with pytest.raises(ValidationError, match=r"cluster\.none"):
        gpu.changed(tiny(), "cluster.none=1")


def test_the_archive_s_order_says_nothing_of_the_class(archive):
    stored, labels, count = end_to_end.read_archive(archive, None)
    assert stored.shape == (48, 32, 32, 3) and count == 32 and sorted(set(labels)) == list(range(10))
    assert (labels[:32] != np.sort(labels[:32])).any() and len(set(labels[:8].tolist())) > 2
    assert len(end_to_end.read_archive(archive, 5)[0]) == 10


def test_exported_weights_are_halves_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "PART", 1000)
    model, other = torch.nn.Linear(40, 30), torch.nn.Linear(40, 30)
    run = end_to_end.Run(None, 3, None, tmp_path / "state", tmp_path, 0.0, "it")
    run.export("pretext", model)
    assert len(list(tmp_path.glob("it-seed3-pretext.*"))) > 2
    assert end_to_end.imported(tmp_path, "it-seed3-pretext", other)
    assert not end_to_end.imported(tmp_path, "it-seed4-pretext", other)
    torch.testing.assert_close(other.weight, model.weight.half().float())


@pytest.fixture
def small(monkeypatch):
    """``agreement`` on a network that is quick here."""
    for module in (agreement, gpu):
        monkeypatch.setattr(module, "preset", lambda name: tiny())
    monkeypatch.setattr(agreement, "Projector", lambda features, size: torch.nn.Linear(16, size))
    monkeypatch.setattr(agreement, "ClusterHeads", lambda features, *sizes: steps.ClusterHeads(16, *sizes))


def test_a_device_that_computes_the_same_agrees(small):
    before = torch.backends.cudnn.allow_tf32
    found = agreement.agreement(torch.device("cpu"))
    assert len(found) == 14 and not any(each.too_large for each in found)
    assert max(each.measured for each in found) == 0 and torch.backends.cudnn.allow_tf32 == before
    assert agreement.relative(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])) == 0.25
    assert agreement.Difference("x", float("nan"), 1.0).too_large


def test_a_training_that_ends_elsewhere_is_told(small, monkeypatch):
    """Repeated it ends where it did; where recording changes it, it does not."""
    assert [each.measured for each in agreement.repeated(torch.device("cpu"))] == [0.0] * 8

    def otherwise(work, device):
        def changed(*inputs):
            # Views fade; rows of features, neighbours then anchors, are others.
            return work(*(each.flip(0) if each.dtype == torch.int64 else 0.5 * each for each in inputs))

        return changed

    monkeypatch.setattr(agreement, "as_it_is", otherwise)
    found = agreement.repeated(torch.device("cpu"))
    assert [each.too_large for each in found] == [False, True] * 4


@pytest.mark.parametrize("wrong", ["SimCLR views", "strong views, pixels", "loss", "gradients"])
def test_a_device_that_computes_something_else_ends_the_script(small, monkeypatch, tmp_path, wrong):
    """The second of two calls, which is the device's, gives something else."""
    calls, original = [], agreement.random_view if "views" in wrong else agreement.plain_view

    def other(*arguments):
        calls.append(None)
        views = original(*arguments)
        return views.square() if len(calls) % 2 == 0 else views

    monkeypatch.setattr(agreement, "random_view" if "views" in wrong else "plain_view", other)
    found = {each.what: each.too_large for each in agreement.agreement(torch.device("cpu"))}
    assert [bad for what, bad in found.items() if wrong in what] == [True] * sum(wrong in what for what in found)
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--device", "cpu", "--out", str(tmp_path), "--parts", "agreement"])
    with pytest.raises(SystemExit, match="the device computes something else"):
        gpu.main()
    assert "| difference | allowed |" in (tmp_path / "gpu.md").read_text()


def test_the_table_of_a_gpu_has_its_bars_scaled_by_the_chip(tmp_path):
    here = {"date": "d", "device": "a GPU", "torch": "t", "cuda": "c", "python": "p", "copy_bytes": 1e12}
    loops = [vars(Row("pretext step, resnet18", 40_000.0, "", [0.9, 0.95], mib=1000))]
    text = gpu.write(
        tmp_path,
        {
            "chip": {**here, "bf16_side": 8, "bf16_flops": 395e12},
            "loops": loops,
            "agreement": [vars(agreement.Difference("x", 1e-6, 1e-4))],
        },
    )
    assert "A bf16 product of 8² runs at 395 TFLOP/s, a copy inside the device at 1 TB/s" in text
    assert "| pretext step, resnet18 | 40,000 | 92 % (90 to 95) | ≥ 90 %, ≥ 40,000 images/s | 1,000 MiB |" in text
    assert "| x | 1.0e-06 | 0.0001 |" in text


def test_figures_that_are_written_do_not_make_the_measured_commit_dirty_but_code_does(tmp_path, monkeypatch):
    for path in ("scan_core/losses.py", "bench/results/cpu.md", "docs/ledger.md", "docs/ledger/purity.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        project.run(tmp_path, "git", "-c", "user.name=a", "-c", "user.email=a@b", *command)
    monkeypatch.chdir(tmp_path)
    commit = machine()["commit"]
    assert len(commit) == 7
    for path in ("bench/results/cpu.md", "docs/ledger.md", "docs/ledger/purity.png"):
        (tmp_path / path).write_text("after")
    assert machine()["commit"] == commit
    (tmp_path / "scan_core/losses.py").write_text("after")
    assert machine()["commit"] == f"{commit}-dirty"


def test_the_time_of_a_work_is_that_of_one_without_those_to_warm_up(monkeypatch):
    clock, calls = [0.0], []

    def work():
        calls.append(None)
        clock[0] += 8.0 if len(calls) <= 3 else 0.5

    monkeypatch.setattr("bench.gpu.time.perf_counter", lambda: clock[0])
    assert gpu.events(torch.device("cpu"), work, 4) == 0.5 and len(calls) == 3 + 4


def test_the_product_that_was_timed_has_the_size_that_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "events", lambda device, work, repeats: work() is None or 2.0)
    found = gpu.chip(torch.device("cpu"))
    assert found["bf16_flops"] == found["bf16_side"] ** 3


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(("epochs", "shown"), [(0, "| 50.0 | – | 0 | – |"), (3, "| 50.0 | 60.0 | 3 | after |")])
def test_what_a_run_that_was_cut_has_not_done_has_no_score_and_features_of_before_no_time(
    tmp_path, epochs, shown, earlier
):
    here = {"date": "d", "device": "a GPU", "torch": "t", "cuda": "c", "python": "p", "copy_bytes": 1e12}
    run = {
        "seed": 0, "kmeans": {"acc": 0.4}, "cluster": {"acc": 0.5}, "selflabel": {"acc": 0.6}, "kept": "after",
        "features": {"projector": {"purity_20": 0.7, "knn_acc": 0.8}}, "epochs": {"selflabel": epochs}, "cut": "there",
        "seconds": {"cluster": 60.0} if earlier else {"pretext": 60.0, "cluster": 60.0},
    }  # fmt: skip
    chip = {**here, "bf16_side": 8, "bf16_flops": 395e12}
    text = gpu.write(tmp_path, {"chip": chip, "preset": "cifar10", "cifar10": [run]})
    assert f"{shown} {'1.0, with features of an earlier call' if earlier else '2.0'} |" in text
