"""``dvc.yaml`` against the code: the label firewall, and the code that each stage depends on."""

from pathlib import Path

import pytest
from dvc_data.hashfile.meta import Meta

from pipeline.artifacts import CODE, SOURCE, SPACES, WEIGHTS
from pipeline.code import stage_code
from pipeline.fingerprint import DVC_FILE, stage_entries
from pipeline.params import Params
from pipeline.report.tables import PLOT_COLUMNS
from pipeline.yaml_file import read_yaml
from tests.project import LABEL_STAGES, OUTPUTS, STAGES

SECRET = {"data/labels", "data/items"}


def outputs(entry: dict) -> list[str]:
    return [*entry["outs"], *entry.get("metrics", [])]


def test_the_stages_stand_in_their_order():
    assert tuple(stage_entries()) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_labels_and_names_reach_prepare_and_evaluate_only(stage):
    entry = stage_entries()[stage]
    assert bool(SECRET & {*entry["deps"], *outputs(entry)}) == (stage in LABEL_STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_digests_of_its_own_code_and_no_code(stage):
    deps = stage_entries()[stage]["deps"]
    assert [path for path in deps if not path.startswith(("data/", "models/", "reports/"))] == []
    assert [path for path in deps if path.startswith(f"{CODE}/")] == [f"{CODE}/{stage}.json"]


@pytest.mark.parametrize(("module", "reader"), [
    ("scan_core.data.labels", "prepare"), ("scan_core.data.splits", "prepare"), ("pipeline.review.report", "evaluate"),
    *((f"scan_core.evaluation.{name}", "evaluate") for name in ("metrics", "scores", "probes")),
])  # fmt: skip
def test_code_that_reads_labels_or_scores_is_in_no_other_stage(module, reader):
    assert [stage for stage in STAGES if module in stage_code(stage)] == [reader]


def test_source_only_looks():
    """It runs each time, and is not one of those that make something."""
    entry = read_yaml(DVC_FILE)["stages"]["source"]
    outs = [SOURCE.as_posix(), WEIGHTS.as_posix(), SPACES.as_posix(), *(f"{CODE}/{stage}.json" for stage in STAGES)]
    assert entry == {"cmd": "python -m stages.source", "always_changed": True, "outs": outs}
    assert SOURCE.as_posix() in stage_entries()["prepare"]["deps"]
    assert WEIGHTS.as_posix() in stage_entries()["pretext"]["deps"]
    assert SPACES.as_posix() in stage_entries()["embed"]["deps"]


def test_every_output_is_some_stages_and_every_data_dep_is_some_stages_output():
    made = [path for entry in stage_entries().values() for path in outputs(entry)]
    made += read_yaml(DVC_FILE)["stages"]["source"]["outs"]
    assert len(made) == len(set(made))
    for output in OUTPUTS:
        assert any(output == path or output.startswith(path + "/") for path in made), output
    for entry in stage_entries().values():
        assert {dep for dep in entry["deps"] if dep.split("/")[0] in ("data", "models", "reports")} <= set(made)


def test_every_plot_names_columns_that_are_there_and_says_what_they_are():
    drawn = {title: plot for entry in read_yaml(DVC_FILE)["plots"] for title, plot in entry.items()}
    for title, plot in drawn.items():
        ((path, columns),) = plot["y"].items()
        columns = columns if isinstance(columns, list) else [columns]
        if Path(path).stem in PLOT_COLUMNS:  # others are of training, whose columns the methods name
            assert {plot["x"], *columns} <= set(PLOT_COLUMNS[Path(path).stem]), title
        assert len(columns) == 1 or "y_label" in plot, title
    assert drawn["Purity of the neighbors"]["y"] == {"reports/plots/purity.csv": ["train", "val"]}
    # What DVC reads is text: a bar for each would stand in the order 0, 1, 10, 2, and its bars begin anywhere.
    assert drawn["Cluster sizes"]["template"] == "scatter"


def test_every_parameter_is_tracked_by_the_stage_of_its_name():
    entries = stage_entries()
    for group in Params.model_fields:
        readers = [stage for stage in STAGES if group in entries[stage]["params"]]
        assert "evaluate" in readers
        assert group in readers or group in ("seed", "precision", "data", "backbone"), group
    assert entries["prepare"]["params"] == ["data", "data.size"]


def test_no_setting_has_a_name_that_dvcs_run_cache_overlooks_but_what_is_tracked_by_its_full_name():
    """It leaves ``size`` and ``nfiles`` out of its key at any depth, and would restore another setting's outputs."""
    schema = Params.model_json_schema()
    found = {
        f"{model}.{name}"
        for model, fields in {"Params": schema, **schema["$defs"]}.items()
        for name in fields.get("properties", {})
        if name in (Meta.PARAM_SIZE, Meta.PARAM_NFILES)
    }
    assert found == {"Data.size"}
    assert "data.size" in stage_entries()["prepare"]["params"]
