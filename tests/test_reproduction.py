"""The default pipeline at its full size, in this very checkout: the same hashes, and the committed metrics.

``dvc.lock`` holds the committed hashes. Those of ``prepare`` must come out on any machine; those of training only on
a machine and library versions like those that made them, so elsewhere a rerun is compared with the first run here,
and the metrics with ``tests/golden.json``.
"""

import json

import pytest

from pipeline.fingerprint import stage_entries
from pipeline.params import read_yaml
from pipeline.presets import preset_text
from tests.project import LABEL_STAGES, ROOT, STAGES, permuted_labels, run, stages_run

pytestmark = pytest.mark.reproduction


def hashes(stage=None):
    """Output → hash as ``dvc.lock`` has it, of one stage or of all."""
    stages = read_yaml(ROOT / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for name in ([stage] if stage else STAGES) for out in stages[name]["outs"]}


@pytest.fixture(scope="module")
def committed():
    """``dvc.lock`` as it was before anything ran; it is put back at the end."""
    lock = ROOT / "dvc.lock"
    before, of_prepare = lock.read_bytes(), hashes("prepare")
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert params == preset_text(ROOT / "presets" / "digits.yaml"), "params.yaml is not the default"
    yield of_prepare
    lock.write_bytes(before)


@pytest.fixture(scope="module")
def first(committed):
    """The hashes of a run on this machine."""
    run(ROOT, "dvc", "repro", SCAN_THREADS="2")
    return hashes()


def test_the_lock_is_that_of_the_committed_code_and_settings(committed):
    run(ROOT, "dvc", "repro", "source")
    assert stages_run(run(ROOT, "dvc", "repro", "--allow-missing", "--dry").stdout) == []


def test_prepare_gives_the_committed_hashes_anywhere(committed, first):
    assert {path: first[path] for path in committed} == committed


def test_metrics_are_those_of_the_golden_file(first):
    golden = json.loads((ROOT / "tests" / "golden.json").read_text())
    metrics = json.loads((ROOT / "reports" / "metrics.json").read_text())
    for name, (value, tolerance) in golden["metrics"].items():
        split, step, measure = name.split(".")
        assert metrics[split][step][measure] == pytest.approx(value, abs=tolerance), name


def test_a_second_repro_runs_nothing_and_changes_nothing_in_git(first):
    before = run(ROOT, "git", "status", "--porcelain").stdout
    done = run(ROOT, "dvc", "repro")
    assert stages_run(done.stdout) == []
    assert run(ROOT, "git", "status", "--porcelain").stdout == before


def test_a_forced_rerun_gives_the_same_hashes(first):
    done = run(ROOT, "dvc", "repro", "--force", SCAN_THREADS="2")
    assert stages_run(done.stdout) == list(STAGES)
    assert {path: (a, b) for path, a in first.items() if (b := hashes()[path]) != a} == {}


def test_permuted_labels_rerun_prepare_and_evaluate_only(first, tmp_path):
    entries = stage_entries()
    read_by_training = {
        path for stage in STAGES if stage not in LABEL_STAGES for path in entries[stage]["deps"] if path in first
    }
    assert "data/images" in read_by_training
    path = permuted_labels(tmp_path / "path")
    run(ROOT, "dvc", "repro", "--force", "--single-item", "prepare", PYTHONPATH=path)
    assert hashes("prepare")["data/labels"] != first["data/labels"]
    done = run(ROOT, "dvc", "repro")
    assert stages_run(done.stdout) == ["evaluate"]
    assert {path for path in read_by_training if hashes()[path] != first[path]} == set()
    accuracy = json.loads((ROOT / "reports" / "metrics.json").read_text())["val"]["selflabel"]["acc"]
    assert accuracy < 0.3, "clusters that follow permuted labels would have seen them"
    run(ROOT, "dvc", "repro", "--force", "--single-item", "prepare")
    run(ROOT, "dvc", "repro")
    assert hashes() == first
