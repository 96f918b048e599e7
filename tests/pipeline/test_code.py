"""The digests of a stage's code: what changes them, what does not, and where the code is found."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.code import OURS, module_file, stage_code
from pipeline.meaning import ERRORS, meaning
from tests.project import ROOT, STAGES, make_project, run, run_stage

MODULES = sorted({name.partition(":")[0] for stage in STAGES for name in stage_code(stage) if "/" not in name})
CODE = '''
"""What it is for."""
from scan_core.errors import ScanError
from pipeline.progress import say

LIMIT = 5

def work(path, most=3):
    """Works."""
    kinds = ["a", "b"]  # both
    if not path:
        raise ScanError(f"{path} is no image; " + ", ".join(sorted(kinds)))
    try:
        count = most * LIMIT + len(kinds)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from None
    assert count > 0, f"count is {count}"
    say(f"{path} has {count} images")
    if count > 7:
        raise Refused(f"damaged: {path}")
    return count
'''
TEXTS = [
    ("# both", "# each of them"),
    ("# both", ""),
    ('"""What it is for."""', '"""Something else."""\n"""And more."""\n'),
    ('"""Works."""', ""),
    ("kinds =", "kinds  = \\\n   "),
    ("is no image; ", "cannot be read: "),
    ('f"{path}: {error}"', '"no number"'),
    (', f"count is {count}"', ""),
    ("has {count} images", "is read"),
    ('    say(f"{path} has {count} images")\n', ""),
]
CHANGES = [
    ("LIMIT = 5", "LIMIT = 6"),
    ("most * LIMIT", "most + LIMIT"),
    ("most=3", "most=4"),
    ('"b"]', '"c"]'),
    ("count > 7", "count >= 7"),
    ("count > 0,", "count > 1,"),
    ("damaged: ", "broken: "),  # goes to findings.csv
    ("raise ScanError(", "raise OSError("),
    ("raise ScanError(", "return str("),
    ("except OSError", "except Exception"),
    ("    return count\n", ""),
]


def digest(source):
    return meaning(source)[0]  # before it is hashed, so that a failure shows where two differ


@pytest.mark.parametrize(("old", "new"), TEXTS)
def test_a_text_changes_no_digest(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_what_is_computed_changes_the_digest(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) != digest(CODE)


class OtherTexts(ast.NodeTransformer):
    """Changes each docstring, and each string in the call of an error."""

    def visit_Expr(self, node):
        return ast.Expr(ast.Constant("Other.")) if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    inner.value += " Other."
        return self.generic_visit(node)


@pytest.mark.parametrize("name", MODULES)
def test_no_text_of_a_module_counts_and_each_of_its_statements_does(name):
    source = module_file(name).read_text(encoding="utf-8")
    assert digest(f"# A comment.\n\n{source}\n# Another.\n") == digest(source)
    other = ast.unparse(OtherTexts().visit(ast.parse(source)))  # no comment is left in it, nor a line where it was
    assert other != ast.unparse(ast.parse(source)) and digest(other) == digest(source)
    assert digest(f"{source}\nOTHER = 1\n") != digest(source)


def test_a_stage_depends_on_what_it_imports_and_on_files_that_are_read_there(tmp_path, monkeypatch):
    for name, text in {
        "stages/__init__.py": '"""Stages."""',
        "stages/work.py": "def work():\n    from house.data import PAGE\n    import house.plain\n",
        "pipeline/__init__.py": "",
        "pipeline/artifacts.py": "import pipeline.stage\nfrom pipeline.stage import Stage",
        "pipeline/stage.py": "import house.never",
        "house/__init__.py": '"""A house."""',
        "house/data/__init__.py": "from .folder import PAGE",
        "house/data/folder.py": "from ..errors import A\nif TYPE_CHECKING:\n  import house.never\nPAGE = 'page.j2'",
        "house/data/page.j2": "page",
        "house/data/other.j2": "other",
        "house/errors.py": "A = 1",
        "house/plain.py": "folder = 'lists', 'data'",
        "house/lists/a.txt": "a",
        "house/folder/b.txt": "b",
        "house/never.py": "raise RuntimeError",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("pipeline.code.OURS", ("house", "pipeline", "stages"))
    monkeypatch.setattr("pipeline.code._folders", lambda top: [str(tmp_path / top)])
    before = stage_code("work")
    assert list(before) == [
        "house.data", "house.data.folder", "house.errors", "house.plain", "house/data/page.j2", "house/lists/a.txt",
        "pipeline.artifacts", "stages.work",
    ]  # fmt: skip
    (tmp_path / "house/lists/a.txt").write_text("b")
    (tmp_path / "house/data/__init__.py").write_text("from .folder import PAGE as LEAF")
    after = stage_code("work")
    assert {name for name in before if before[name] != after[name]} == {"house.data", "house/lists/a.txt"}


SHOWN = "import json; from pipeline.code import stage_code; print(json.dumps(stage_code('evaluate')))"


def shown(folder, python=sys.executable, **environment):
    return json.loads(run(folder, str(python), "-c", SHOWN, **environment).stdout)


def test_code_is_found_where_it_is_installed_and_a_copy_in_the_current_folder_comes_first(tmp_path):
    for package in OURS:
        shutil.copytree(ROOT / package, tmp_path / "installed" / package)
    (tmp_path / "empty").mkdir()
    path = str(tmp_path / "installed")
    assert shown(tmp_path / "empty", PYTHONPATH=path) == stage_code("evaluate")
    copy = make_project(tmp_path / "copy")
    with (copy / "scan_core" / "evaluation" / "metrics.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    changed = shown(copy, PYTHONPATH=path)
    assert {name for name, value in stage_code("evaluate").items() if changed[name] != value} == {
        "scan_core.evaluation.metrics"
    }


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_other_pythons_agree(version):
    found = [*(Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"), shutil.which(f"python{version}")]
    if not found[0]:
        pytest.skip(f"there is no Python {version}")
    assert shown(ROOT, found[0], PYTHONDONTWRITEBYTECODE="1", PYTHONPATH="") == stage_code("evaluate")


def test_source_writes_the_digests_of_each_stage(tmp_path):
    project = make_project(tmp_path / "project")
    run_stage(project, "source")
    for stage in STAGES:
        digests = json.loads((project / "data" / "code" / f"{stage}.json").read_text())
        assert digests == stage_code(stage, {"pretext": "simclr"})
    assert len(os.listdir(project / "data" / "code")) == len(STAGES)


def test_code_of_a_method_that_does_not_run_is_left_out():
    module, trained, adapted = (
        "scan_core.pretext.adapted",
        *(stage_code("pretext", {"pretext": method}) for method in ("simclr", "adapted")),
    )
    assert module in adapted and module in stage_code("pretext") and module not in trained
    # Else a change of how stored embeddings are clustered would train all networks anew.
    assert "scan_core.clustering.candidates" in adapted and "scan_core.clustering.candidates" not in trained
    assert "scan_core.models.frozen" in adapted and "scan_core.models.frozen" not in trained
