"""No stage imports what it does not use: each is run by itself, and what it has loaded is looked at."""

import sys

import pytest

from tests.project import STAGES, environment, make_project, run

TRAINS = {"torch", "lightning_fabric"}
HEAVY = TRAINS | {"torchvision", "timm", "faiss", "sklearn", "matplotlib", "mlflow", "dvc"}
USED = {
    "source": set(),
    "prepare": {"sklearn"},  # the digits come with it
    "pretext": TRAINS,
    "embed": {"torch"},
    "neighbors": {"faiss"},
    "groups": set(),  # the number is given
    "cluster": TRAINS,
    "selflabel": TRAINS,
    "evaluate": {"torch", "sklearn", "matplotlib"},
}
SCRIPT = """
import importlib, sys
try:
    importlib.import_module(f"stages.{sys.argv[1]}").app([])
except SystemExit as end:
    assert not end.code, end.code
print(*{name.split(".")[0] for name in sys.modules})
"""


@pytest.mark.slow
def test_no_stage_imports_what_it_does_not_use(tmp_path):
    project = make_project(tmp_path / "project")
    assert set(USED) == {"source", *STAGES}
    for stage, used in USED.items():
        loaded = run(project, sys.executable, "-c", SCRIPT, stage, **environment(SCAN_TRACKING="spool")).stdout.split()
        assert set(loaded) & HEAVY == used, stage
