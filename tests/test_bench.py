"""The benchmarks' own logic: turns, tables, and the script for a GPU, here on the CPU with a tiny network."""

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
from bench import agreement, end_to_end, gpu, gpu_results, steps
from bench.machine import machine
from bench.timing import Candidate, Row, alternate, alternate_processes, compare
from pipeline.params import Params
from pipeline.presets import read_preset
from scan_core.compute.device import configure_compute, make_fabric
from tests.project import ROOT, run

CPU = torch.device("cpu")
CHIP = {
    "date": "d", "device": "a GPU", "torch": "t", "cuda": "c", "python": "p", "copy_bytes": 1e12, "bf16_side": 8,
    "bf16_flops": 395e12,
}  # fmt: skip


# --- Turns


def test_candidates_take_turns_and_are_counted(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])

    def candidate(name, seconds):
        def work():
            turns.append(name)
            clock[0] += seconds
            return 10

        return work

    rates = alternate({"a": candidate("a", 0.5), "b": candidate("b", 1.0)}, seconds=1.0, rounds=2)
    assert turns == ["a", "b", "a", "a", "b", "a", "a", "b"]  # one piece of each to warm up
    assert rates == {"a": [20, 20], "b": [10, 10]}
    row = compare("a thing", rates, "a", "b")
    assert (row.rate, row.ratios, row.ratio) == (20, [2, 2], 2)


def count_on(counter):
    while True:
        counter.value += 1


def test_processes_of_a_candidate_work_in_its_own_turn_only():
    counter, started, grown = multiprocessing.Value("q", 0, lock=False), [], {"a": [], "b": []}

    def candidate(name):
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
        alternate({"a": candidate("a"), "b": candidate("b")}, seconds=0.1, rounds=2)
        assert len(grown["a"]) == 3 and min(grown["a"]) > 100
        assert max(grown["b"]) <= 1  # one addition that had begun
        before = counter.value
        time.sleep(0.2)
        assert counter.value > before  # the process is not left stopped, so it can end
    finally:
        started[0].kill()


def note_memory(path, name):
    """Work that notes its process, and whether malloc keeps freed memory there."""

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

    configure_compute("fp32", "cpu")  # as the pipeline's loops do
    return work


@pytest.mark.slow
def test_each_turn_has_a_new_process_and_only_ours_keep_memory(tmp_path):
    notes = tmp_path / "notes"
    candidates = {
        "ours": Candidate(note_memory, (notes, "ours")),
        "other": Candidate(note_memory, (notes, "other"), keep_memory=False),
    }
    rates, peaks = alternate_processes(candidates, 0.01, 2)
    assert {name: len(values) for name, values in rates.items()} == {"ours": 2, "other": 2}
    assert all(0 < value <= 100 for values in rates.values() for value in values)
    assert min(peaks.values()) > 64
    lines = [line.split() for line in notes.read_text().splitlines()]
    turns = list(dict.fromkeys((name, pid) for name, pid, _ in lines))
    assert [name for name, _ in turns] == ["ours", "other"] * 2
    assert len({pid for _, pid in turns}) == 4
    if platform.libc_ver()[0] == "glibc":
        assert {faulted for name, _, faulted in lines if name == "ours"} == {"False"}
        huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # with these one fault brings 512 pages
        if huge_pages.exists() and "[always]" not in huge_pages.read_text():
            assert {faulted for name, _, faulted in lines if name == "other"} == {"True"}


@pytest.mark.parametrize(("make", "arguments"), [
    (steps.pretext_step, (16,)), (steps.scan_step, (16, False)), (steps.scan_step, (16, True)),
    (steps.selflabel_step, (16,)), (steps.embedding, ()),
])  # fmt: skip
@pytest.mark.slow
def test_a_loop_and_its_ceiling_see_as_many_images_per_step(make, arguments):
    what, works = make(make_fabric("fp32", "cpu"), "digits", *arguments)
    assert set(works) == {"loop", "ceiling"} and "digits" in what
    counts = {name: [work() for _ in range(2)] for name, work in works.items()}
    if make is steps.embedding:  # one call of the loop embeds two batches of the ceiling
        assert counts["loop"] == [2 * count for count in counts["ceiling"]]
    else:
        assert counts["loop"] == counts["ceiling"] == [32, 32]


# --- Results


def test_a_part_that_was_not_measured_keeps_its_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_main, "RESULTS", tmp_path)
    here = {name: name for name in ("processor", "cores", "memory", "python", "packages")}
    rows = [Row("rows", 5.0, "others", [2.0, 3.0, 2.5], "≥ 1")]
    bench_main.write_results({"mining": rows}, {**here, "date": "monday"})
    text = bench_main.write_results({"views": [Row("views", 1234.0)]}, {**here, "date": "tuesday"})
    assert text == (tmp_path / "cpu.md").read_text()
    assert "| rows | 5.00 | others | 2.50 (2.00 to 3.00) | ≥ 1 |  |  |" in text and "monday" in text
    assert "| views | 1,234 |" in text and "tuesday" in text
    assert text.index("Augmentation") < text.index("Neighbors")


def test_the_committed_page_is_made_of_the_committed_figures(monkeypatch, tmp_path):
    results = ROOT / "bench" / "results"
    (tmp_path / "cpu.json").write_bytes((results / "cpu.json").read_bytes())
    monkeypatch.setattr(bench_main, "RESULTS", tmp_path)
    assert bench_main.write_results({}, {}) == (results / "cpu.md").read_text()


def test_the_targets_of_a_gpu_are_in_proportion_to_its_matrix_rate(tmp_path):
    loops = [vars(Row("pretext step, resnet18", 40_000.0, "", [0.9, 0.95], mib=1000))]
    differences = [vars(agreement.Difference("x", 1e-6, 1e-4))]
    text = gpu_results.write_results(tmp_path, {"chip": CHIP, "loops": loops, "agreement": differences})
    assert "A bf16 product of 8² runs at 395 TFLOP/s, a copy inside the device at 1 TB/s" in text
    assert "| pretext step, resnet18 | 40,000 | 92 % (90 to 95) | ≥ 90 %, ≥ 40,000 images/s | 1,000 MiB |" in text
    assert "| x | 1.0e-06 | 0.0001 |" in text


@pytest.mark.parametrize(("seconds", "minutes"), [
    ({"pretext": 60.0, "cluster": 60.0}, "2.0"), ({"cluster": 60.0}, "1.0, with features of an earlier call"),
])  # fmt: skip
@pytest.mark.parametrize(("epochs", "shown"), [(0, "| 50.0 | – | 0 | – |"), (3, "| 50.0 | 60.0 | 3 | after |")])
def test_a_run_that_was_cut_shows_only_what_it_did(tmp_path, epochs, shown, seconds, minutes):
    cifar10 = {
        "seed": 0, "kmeans": {"acc": 0.4}, "cluster": {"acc": 0.5}, "selflabel": {"acc": 0.6}, "kept": "after",
        "features": {"projector": {"purity_20": 0.7, "knn_acc": 0.8}}, "epochs": {"selflabel": epochs}, "cut": "there",
        "seconds": seconds,
    }  # fmt: skip
    text = gpu_results.write_results(tmp_path, {"chip": CHIP, "preset": "cifar10", "cifar10": [cifar10]})
    assert f"{shown} {minutes} |" in text


def test_written_results_do_not_make_the_measured_commit_dirty_but_code_does(tmp_path, monkeypatch):
    results = ("bench/results/cpu.md", "docs/ledger.md", "docs/ledger/purity.png")
    for path in ("scan_core/losses.py", *results):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        run(tmp_path, "git", "-c", "user.name=a", "-c", "user.email=a@b", *command)
    monkeypatch.chdir(tmp_path)
    commit = machine()["commit"]
    assert len(commit) == 7
    for path in results:
        (tmp_path / path).write_text("after")
    assert machine()["commit"] == commit
    (tmp_path / "scan_core/losses.py").write_text("after")
    assert machine()["commit"] == f"{commit}-dirty"


# --- The script for a GPU


def tiny():
    """The cifar10 preset with a tiny network and few epochs."""
    values = read_preset(ROOT / "presets" / "cifar10.yaml").model_dump(mode="json")
    values["backbone"] |= {"name": "convnet", "width": 4}
    values["pretext"] |= {"epochs": 3, "batch_size": 16}
    values["neighbors"] |= {"k": 5}
    values["cluster"] |= {"epochs": 2, "batch_size": 16, "neighbors": 5}
    values["selflabel"] |= {"epochs": 2, "batch_size": 16, "threshold": 0.01}
    return Params.model_validate_json(json.dumps(values))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """48 JPEGs of ten classes in the layout of the real archive, for the tiny preset."""
    monkeypatch.setattr(gpu, "preset", lambda name: tiny())
    monkeypatch.setattr(end_to_end, "neighbor_purity", lambda labels, mined, k: 0.5)  # only 5 are mined here, not 20
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


@pytest.fixture
def call(archive, tmp_path, monkeypatch):
    """Runs the script on the archive, with ``out`` and ``state`` in the test's folder; returns its results."""

    def run_script(out, state, *arguments):
        options = ["--device", "cpu", "--archive", archive, "--parts", "cifar10"]
        options += ["--out", tmp_path / out, "--state", tmp_path / state, *arguments]
        monkeypatch.setattr("sys.argv", ["bench.gpu", *map(str, options)])
        gpu.main()
        return json.loads((tmp_path / out / "gpu.json").read_text())

    return run_script


def scores(results):
    """The scores of the first seed."""
    return {name: results["cifar10"][0][name] for name in ("features", "kmeans", "cluster", "selflabel", "kept")}


@pytest.mark.slow
def test_a_run_that_ran_out_of_time_continues_and_ends_with_the_same_scores(call, tmp_path, capsys):
    whole = call("whole", "a", "--minutes", "10")
    assert whole["unfinished"] is None and [seed["seed"] for seed in whole["cifar10"]] == [0]
    stops = []
    for _ in range(9):
        parts = call("parts", "b", "--minutes", "0")
        stops.append(parts["unfinished"])
        for seed in parts["cifar10"]:  # a seed that was cut is scored, too
            assert seed["cut"] == stops[-1]
            if seed["cut"]:
                stage = "selflabel" if seed["epochs"]["selflabel"] else "cluster"
                assert seed["cut"] == f"seed 0 stopped in {stage}, epoch 1 of 2"
        if not parts["unfinished"]:
            break
    assert stops[:3] == [
        "seed 0 stopped in pretext, epoch 1 of 3",
        "seed 0 stopped in pretext, epoch 2 of 3",
        "seed 0 stopped in cluster, epoch 1 of 2",
    ]
    assert "seed 0 stopped in selflabel, epoch 1 of 2" in stops
    assert scores(parts) == scores(whole)
    assert "| 0 | 50.0 / 50.0 |" in capsys.readouterr().out
    # Another machine has only the exported weights, so that it trains no pretext task again.
    for file in (tmp_path / "whole").glob("*-seed0-*"):
        assert file.stat().st_size <= end_to_end.PART
    moved = call("moved", "c", "--resume", tmp_path / "whole")
    assert [path.stem for path in sorted((tmp_path / "c").rglob("*.state"))] == ["cluster", "selflabel"]
    assert abs(scores(moved)["kmeans"]["acc"] - scores(whole)["kmeans"]["acc"]) < 0.2


@pytest.mark.slow
def test_if_the_guard_keeps_the_model_from_before_that_model_is_scored_and_exported(call, tmp_path, monkeypatch):
    def keep(before, after, *_):
        after.copy_(torch.arange(len(after)) % 7)  # something else, whatever self-labeling did
        return "before", "for the test"

    monkeypatch.setattr("scan_core.method.choose_model", keep)
    (seed,) = call("out", "state")["cifar10"]
    assert seed["kept"] == "before" and seed["selflabel"] == seed["cluster"]
    assert set(seed["seconds"]) == {"read", "pretext", "embed and neighbors", "cluster", "selflabel", "evaluate"}
    (state,) = (tmp_path / "state").rglob("cluster.state")
    best = torch.load(state, weights_only=True)["best_backbone"]
    (part,) = (tmp_path / "out").glob("*-selflabel.0")
    exported = torch.load(part, weights_only=True)
    for key, value in best.items():
        assert torch.equal(exported[f"backbone.{key}"], value.half() if value.is_floating_point() else value)


@pytest.mark.slow
def test_a_trial_on_fewer_images_is_not_continued(call):
    call("out", "state", "--limit", "16")
    assert scores(call("out", "state")) == scores(call("alone", "other"))


def test_a_setting_may_differ_from_the_preset_and_the_results_say_so(call):
    results = call("out", "state", "--limit", "16", "--set", "cluster.epochs=1", "selflabel.epochs=1")
    assert results["preset"] == "cifar10, cluster.epochs=1, selflabel.epochs=1"
    assert results["cifar10"][0]["epochs"] == {"cluster": 1, "selflabel": 1}
    with pytest.raises(ValidationError, match=r"cluster\.scan\.none"):
        gpu.with_setting(tiny(), "cluster.none=1")


def test_the_order_of_the_archive_s_images_says_nothing_about_their_class(archive):
    stored, labels, count = end_to_end.read_archive(archive, None)
    assert stored.shape == (48, 32, 32, 3) and count == 32 and sorted(set(labels)) == list(range(10))
    assert (labels[:32] != np.sort(labels[:32])).any() and len(set(labels[:8].tolist())) > 2
    assert len(end_to_end.read_archive(archive, 5)[0]) == 10


def test_exported_weights_are_half_precision_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "PART", 1000)
    model, other = torch.nn.Linear(40, 30), torch.nn.Linear(40, 30)
    end_to_end.Run(None, 3, None, tmp_path / "state", tmp_path, 0.0, "it").export("pretext", model)
    assert len(list(tmp_path.glob("it-seed3-pretext.*"))) > 2
    assert end_to_end.load_parts(tmp_path, "it-seed3-pretext", other)
    assert not end_to_end.load_parts(tmp_path, "it-seed4-pretext", other)
    torch.testing.assert_close(other.weight, model.weight.half().float())


@pytest.fixture
def small(monkeypatch):
    """``agreement`` on a tiny network."""
    for module in (agreement, gpu):
        monkeypatch.setattr(module, "preset", lambda name: tiny())
    monkeypatch.setattr(agreement, "Projector", lambda features, size: torch.nn.Linear(16, size))
    monkeypatch.setattr(agreement, "ClusterHeads", lambda features, *sizes: steps.ClusterHeads(16, *sizes))


def test_a_device_that_computes_the_same_agrees(small):
    tf32_before = torch.backends.cudnn.allow_tf32
    differences = agreement.compare_with_cpu(CPU)
    assert len(differences) == 14 and not any(difference.too_large for difference in differences)
    assert max(difference.measured for difference in differences) == 0
    assert torch.backends.cudnn.allow_tf32 == tf32_before
    assert agreement.relative_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])) == 0.25
    assert agreement.Difference("x", float("nan"), 1.0).too_large


@pytest.mark.slow
def test_a_training_that_ends_with_other_weights_without_graphs_is_reported(small, monkeypatch):
    assert [difference.measured for difference in agreement.compare_with_itself(CPU)] == [0.0] * 8

    original, calls = agreement._final_weights, []

    def changed(start):
        calls.append(start)
        return original(start) + (len(calls) % 3 == 0)  # the third is the one without graphs

    monkeypatch.setattr(agreement, "_final_weights", changed)
    assert [difference.too_large for difference in agreement.compare_with_itself(CPU)] == [False, True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["SimCLR views", "strong views, pixels", "loss", "gradients"])
def test_a_device_that_computes_something_else_ends_the_script(small, monkeypatch, tmp_path, wrong):
    """The second of two calls is the device's, and here it returns something else."""
    owner, name = (agreement, "random_view") if "views" in wrong else (agreement.ArrayImages, "plain_view")
    calls, original = [], getattr(owner, name)

    def other(*arguments):
        calls.append(None)
        views = original(*arguments)
        return views.square() if len(calls) % 2 == 0 else views

    monkeypatch.setattr(owner, name, other)
    too_large = [each.too_large for each in agreement.compare_with_cpu(CPU) if wrong in each.what]
    assert too_large and all(too_large)
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--device", "cpu", "--out", str(tmp_path), "--parts", "agreement"])
    with pytest.raises(SystemExit, match="the device computes something else"):
        gpu.main()
    assert "| difference | allowed |" in (tmp_path / "gpu.md").read_text()


def test_the_calls_that_warm_up_do_not_count(monkeypatch):
    clock, calls = [0.0], []

    def work():
        calls.append(None)
        clock[0] += 8.0 if len(calls) <= 3 else 0.5

    monkeypatch.setattr("bench.gpu.time.perf_counter", lambda: clock[0])
    assert gpu.seconds_per_call(CPU, work, 4) == 0.5 and len(calls) == 3 + 4


def test_the_size_of_the_product_in_the_results_is_the_one_that_was_timed(monkeypatch):
    monkeypatch.setattr(gpu, "seconds_per_call", lambda device, work, repeats: work() is None or 2.0)
    chip = gpu.measure_chip(CPU)
    assert chip["bf16_flops"] == chip["bf16_side"] ** 3
