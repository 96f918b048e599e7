"""No stage imports what it does not use: each is run by itself, and what it has loaded is looked at."""

import sys

import pytest

from tests.project import STAGES, environment, make_project, run

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "lightning_fabric",
    "faiss",
    "sklearn",
    "matplotlib",
    "mlflow",
    "dvc",
    "jinja2",
}
TRAINS = {"torch", "lightning_fabric"}
USED = {
    "source": set(),
    "prepare": {"sklearn"},  # the digits come with it
    "pretext": TRAINS,
    "embed": {"torch"},
    "neighbors": {"faiss"},
    "cluster": TRAINS,
    "selflabel": TRAINS,
    "evaluate": {"torch", "sklearn", "matplotlib", "jinja2"},
}
SCRIPT = (
    "import importlib, sys\n"
    "try:\n"
    "    importlib.import_module(f'stages.{sys.argv[1]}').app([])\n"
    "except SystemExit as end:\n"
    "    assert not end.code, end.code\n"
    "print(*{name.split('.')[0] for name in sys.modules})\n"
)


@pytest.mark.slow
def test_no_stage_imports_what_it_does_not_use(tmp_path):
    project = make_project(tmp_path / "project")
    assert set(USED) == {"source", *STAGES}
    for stage, used in USED.items():
        loaded = run(project, sys.executable, "-c", SCRIPT, stage, **environment(SCAN_TRACKING="spool")).stdout.split()
        assert set(loaded) & HEAVY == used, stage
