"""``scan use`` and ``scan params``: nothing of the user's is lost, and what is printed is what would run."""

import itertools
import json
import shutil

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import PARAMS_FILE, Params, read_params, read_yaml
from pipeline.presets import PRESETS, as_yaml, change_params, find_preset, list_presets, read_header
from scan_core.errors import ScanError
from tests.project import ROOT


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with the real presets and the default params.yaml, which commands start in."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan(*arguments):
    return CliRunner().invoke(app, arguments)


def failed(*arguments):
    """The one line a command ends with."""
    done = scan(*arguments)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("scan: error: ")
    return done.stderr


def everything(project):
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in project.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
def test_use_copies_any_preset_to_the_byte(project, name):
    before = everything(project)
    done = scan("use", name)
    assert done.exit_code == 0 and done.stderr == ""
    assert everything(project) == {**before, "params.yaml": before[f"presets/{name}.yaml"]}
    assert done.stdout.startswith(f"params.yaml is now presets/{name}.yaml\n") and "kept" not in done.stdout
    assert done.stdout.endswith("next      dvc repro\n")
    assert f"expected  {read_header(PRESETS / f'{name}.yaml')['expected']}\n" in done.stdout


def test_use_says_what_the_preset_gives_and_costs():
    said = scan("use", "cifar10").stdout.splitlines()
    assert said[1].startswith("expected  ACC 87.6 ± 0.4, NMI 78.7, ARI 75.8 (mean of 10 runs")
    assert said[2].startswith("cost      about 6 h on one GPU") and len(said) == 4


@pytest.mark.parametrize("edit", ["seed: 1\n", "# mine\n", "not: [valid\n", ""])
def test_use_keeps_settings_that_are_no_preset(project, edit):
    own = (PARAMS_FILE.read_text() + edit if edit else "").encode()
    PARAMS_FILE.write_bytes(own)
    said = scan("use", "cifar10").stdout.splitlines()[0]
    kept = project / said.rpartition(" ")[2]
    assert "what stood there was kept as .scan/params-" in said and kept.read_bytes() == own
    assert PARAMS_FILE.read_bytes() == (PRESETS / "cifar10.yaml").read_bytes()


def test_settings_kept_earlier_stay(project):
    for comment in ("# one\n", "# two\n", "# one\n"):
        PARAMS_FILE.write_text(comment)
        scan("use", "stl10")
    assert sorted(path.read_text() for path in (project / ".scan").iterdir()) == ["# one\n", "# two\n"]


def test_use_works_where_there_are_no_settings_yet(project):
    PARAMS_FILE.unlink()
    assert scan("use", "digits").exit_code == 0 and not (project / ".scan").exists()
    assert PARAMS_FILE.read_bytes() == (ROOT / "presets" / "digits.yaml").read_bytes()


@pytest.mark.parametrize("command", ["use", "params"])
@pytest.mark.parametrize(("name", "hint"), [("cifr10", "cifar10"), ("STL10", "stl10"), ("../params", None)])
def test_an_unknown_name_changes_nothing_and_lists_those_there_are(project, command, name, hint):
    before = everything(project)
    said = failed(command, name)
    assert said.startswith(f"scan: error: {name} is not a preset; ") and ", ".join(list_presets()) in said
    assert (f"did you mean {hint}? " in said) if hint else ("did you mean" not in said)
    assert everything(project) == before


def test_use_refuses_a_preset_that_is_not_valid_and_changes_nothing(project):
    (PRESETS / "stl10.yaml").write_text((PRESETS / "stl10.yaml").read_text().replace("heads: 1", "heads: 0"))
    before = everything(project)
    assert "presets/stl10.yaml: cluster.heads is 0" in failed("use", "stl10")
    assert everything(project) == before


def test_a_header_is_read_in_lines_and_in_one_paragraph(project):
    wanted = {"title": "A set, of photos", "source": "a. b", "expected": "ACC 1", "cost": "2 h"}
    for text in (
        "# A set, of photos\n# Source: a.\n#   b\n# Expected: ACC 1\n# Cost: 2 h\nseed: 0 # Cost: 3\n# Cost: 4\n",
        "# A set, of photos,\n# all. Source: a.\n# b Expected: ACC 1\n# Cost: 2 h\n",
    ):
        (project / "x.yaml").write_text(text)
        assert read_header(project / "x.yaml") == wanted
    (project / "x.yaml").write_text("seed: 0\n")
    assert read_header(project / "x.yaml") == {"title": ""}


def test_an_interrupted_write_leaves_the_settings_whole(project, monkeypatch):
    def broken(*_):
        raise OSError("No space left on device")

    before = PARAMS_FILE.read_bytes()
    monkeypatch.setattr("os.replace", broken)
    assert "No space left" in failed("use", "cifar10")
    assert PARAMS_FILE.read_bytes() == before


def test_changed_settings_leave_the_others_and_what_is_said_of_them():
    old = PARAMS_FILE.read_text().splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), old))  # of the digits
    views = {"kind": "strong", "flip": 0.5, "operations": 4, "cutout": 5}
    change_params({
        "data": {"path": "a # b", "size": 32, "view": None, "protocol": "all", "max_rejected": 0.05},
        "pretext": {"augmentation": read_yaml(PRESETS / "cifar10.yaml")["pretext"]["augmentation"]},
        "cluster": {"augmentation": views}, "selflabel": {"augmentation": views},
    }, "a # b:\nas scan data suggests")  # fmt: skip
    new = PARAMS_FILE.read_text().splitlines()
    gone, come = ([line for line in one if line not in other] for one, other in ((old, new), (new, old)))
    assert new[:4] == come[:2] + old[len(header) : len(header) + 2]
    assert come[:5] == [
        "# a # b: as scan data suggests",
        "# The other settings are those of digits.",
        "  path: 'a # b' # of folder, archive, parquet and npy",
        "  size: 32",
        "  protocol: all   # all: train on and report on every image",
    ]
    assert "    crop_scale: [0.2, 1.0]" in come and "    cutout: 5" in come and new.count("  augmentation:") == 3
    assert "  augmentation: # no flip: a mirrored 2 or 5 is no digit" in gone, "it was about other views"
    assert not [line for line in gone if "max_rejected" in line], "it is as it was"
    assert new.count("") == old.count(""), "groups stay apart"
    assert "  weights: null # a file that scan weights import wrote" in new
    assert read_yaml(PARAMS_FILE)["selflabel"]["augmentation"] == views


def test_changed_settings_that_are_not_valid_are_not_written(project):
    before = everything(project)
    with pytest.raises(ScanError, match=r"^params\.yaml stays as it is, for with these settings data\.size is 4; "):
        change_params({"data": {"size": 4}}, "too small")
    assert everything(project) == before


def test_use_without_a_name_lists_the_presets_and_marks_the_one_in_use(project):
    before = everything(project)
    done = scan("use")
    listed = done.stdout.splitlines()
    assert done.exit_code == 0 and everything(project) == before
    assert [line[2:].split()[0] for line in listed[:-2]] == list(list_presets())
    assert [line.split()[1] for line in listed if line.startswith("* ") and "  " in line] == ["digits"]
    assert "  CIFAR-10: 60,000 photos of 32x32 pixels in ten classes." in done.stdout
    PARAMS_FILE.write_text("# mine\n")
    assert scan("use").stdout.endswith("\nparams.yaml is none of them\n")


def test_presets_are_listed_with_50_before_100():
    names = list(list_presets())
    assert [name for name in names if name.startswith("imagenet")] == [
        "imagenet_50", "imagenet_100", "imagenet_200", "imagenet_1000",
    ]  # fmt: skip
    assert names.index("cifar10") < names.index("cifar100_20") < names.index("digits") < names.index("stl10")


@pytest.mark.parametrize("name", ["cifar10", "cifar10.yaml", "presets/cifar10.yaml"])
def test_a_preset_is_found_by_its_name_and_by_its_path(name):
    assert find_preset(name) == PRESETS / "cifar10.yaml"


@pytest.mark.parametrize("command", [["use"], ["use", "cifar10"], ["params", "cifar10"]])
def test_outside_of_the_project_it_says_where_to_run(tmp_path, monkeypatch, command):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "run from the project's folder" in failed(*command)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [None, "cifar10", "imagenet_1000"])
def test_params_as_json_are_the_validated_settings_and_nothing_else(name):
    done = scan("params", *([name] if name else []), "--json")
    settings = read_params(PRESETS / f"{name or 'digits'}.yaml")
    assert done.exit_code == 0 and done.stderr == ""
    assert json.loads(done.stdout) == settings.model_dump(mode="json")
    assert Params.model_validate_json(done.stdout) == settings
    assert done.stdout == json.dumps(json.loads(done.stdout), indent=2, sort_keys=True) + "\n"


def test_params_without_json_may_stand_in_params_yaml(project):
    for name in list_presets():
        printed = scan("params", name).stdout
        (project / "printed.yaml").write_text(printed)
        assert read_params(project / "printed.yaml") == read_params(PRESETS / f"{name}.yaml")
        assert printed.startswith("seed: 0\nprecision: auto\n\ndata:\n  name: ")


def test_printed_values_are_read_back_as_they_were(project):
    values = {"a": {"b": "null", "c": "~/my photos: all", "d": 1e-7, "e": None, "f": [0.1, True], "g": "1e5", "h": ""}}
    (project / "printed.yaml").write_text(as_yaml(values))
    assert read_yaml(project / "printed.yaml") == values


def test_params_follow_what_stands_in_params_yaml():
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("seed: 0", "seed: 7"))
    assert json.loads(scan("params", "--json").stdout)["seed"] == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [("a: [1", "params.yaml is not valid YAML"), ("", "params.yaml holds NoneType"), (None, "params.yaml is missing")],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_params_of_a_broken_file_end_in_one_line(content, said, options):
    PARAMS_FILE.unlink()
    if content is not None:
        PARAMS_FILE.write_text(content)
    assert said in failed("params", *options)


def test_a_wrong_value_is_named_by_params():
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("num_clusters: 10", "num_clusters: 1"))
    assert "cluster.num_clusters is 1" in failed("params", "--json")


def test_no_preset_at_all_is_said():
    shutil.rmtree(PRESETS)
    with pytest.raises(ScanError, match="presets/ is missing"):
        list_presets()
