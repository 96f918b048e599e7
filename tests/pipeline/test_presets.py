"""``scan settings``: nothing of the user's is lost, and what is printed is what would run."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.params import PARAMS_FILE, Params, read_params, read_yaml
from pipeline.presets import (
    BASE,
    PRESETS,
    as_yaml,
    change_params,
    complete,
    find_preset,
    list_presets,
    preset_text,
    preset_values,
    read_header,
    read_preset,
)
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from scan_core.views.settings import AnyAugmentation, Augmentation
from tests.project import ROOT, merge

SPACE = {"weights": "efficientnet_lite0", "side": 128, "mirror": False}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with the real presets and the default params.yaml, which commands start in."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan(*arguments):
    return CliRunner().invoke(app, ["settings", *arguments])


def failed(*arguments):
    """The one line a command ends with."""
    done = scan(*arguments)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("scan: error: ")
    return done.stderr


def everything(project):
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in project.rglob("*") if path.is_file()}


# --- A preset, completed by the base


def test_base_has_every_setting_of_every_method_and_kind_and_no_other():
    base = read_yaml(PRESETS / BASE)
    assert list(base) == list(Params.model_fields)
    for group, key, union in (
        ("pretext", None, Pretext), ("pretext", "augmentation", Augmentation),
        ("cluster", "augmentation", AnyAugmentation), ("selflabel", "augmentation", Augmentation),
    ):  # fmt: skip
        for tag in variants(union):
            changes: dict = {group: {key: {"kind": tag}} if key else {"method": tag}}
            if tag in ("frozen", "adapted"):
                changes |= {"embed": {"spaces": [SPACE | {"side": 224}]}, "cluster": {"method": "frozen"}}
            Params.model_validate_json(json.dumps(complete(changes, base)))
        every = {name for kind in variants(union).values() for name in kind.model_fields}
        assert set(base[group][key] if key else base[group]) == every


def test_what_another_method_has_is_dropped_and_what_none_has_stays():
    base, values = read_yaml(PRESETS / BASE), preset_values(PRESETS / "digits.yaml")
    wanted = merge(values, {"pretext": {"method": "moco", "temperature": 0.5}})
    moco = complete(merge(wanted, {"pretext": {"negatives": 3, "mine": 1}}), base, drop=True)["pretext"]
    assert moco["temperature"] == 0.5 and moco["mine"] == 1 and "negatives" not in moco
    assert moco["queue"] == base["pretext"]["queue"] and moco["augmentation"] == values["pretext"]["augmentation"]
    assert complete({"pretext": {"method": "mocov2", "a": 1}}, base)["pretext"] == {"method": "mocov2", "a": 1}


# --- scan settings use


@pytest.mark.parametrize("name", list_presets(ROOT / "presets"))
def test_use_writes_any_preset_complete_under_its_header(project, name):
    before = everything(project)
    done = scan("use", name)
    assert done.exit_code == 0 and done.stderr == ""
    assert everything(project) == {**before, "params.yaml": preset_text(PRESETS / f"{name}.yaml").encode()}
    assert read_params() == read_preset(PRESETS / f"{name}.yaml")
    assert read_yaml(PARAMS_FILE) == preset_values(PRESETS / f"{name}.yaml")
    above = (PRESETS / f"{name}.yaml").read_text().partition("\n\n")[0]
    assert PARAMS_FILE.read_text().startswith(f"{above}\nseed: 0\n")
    header = read_header(PRESETS / f"{name}.yaml")
    assert list(header) == ["title", "source", "expected", "cost"] and all(header.values())
    said = f"expected  {header['expected']}\ncost      {header['cost']}\nnext      dvc repro\n"
    assert done.stdout == f"params.yaml is now presets/{name}.yaml\n{said}"


def test_what_is_written_says_what_the_base_says_of_a_setting_but_where_the_preset_says_more():
    own = {"  size: 256 # pixels of the short side", "    lr: 30.0 # config: 5.0", "pretext: # MoCo v2's own settings"}
    bases = {"  k: 50 # mined once; cluster.neighbors says how many are used", "    cutout: 75 # pixels; 0: no cutout"}
    assert own | bases <= set(preset_text(PRESETS / "imagenet_1000.yaml").splitlines())


@pytest.mark.parametrize("method", sorted(set(variants(Pretext)) - {"frozen", "adapted"}))
def test_use_of_a_method_writes_its_settings_and_leaves_the_rest(project, method):
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("temperature: 0.2", "temperature: 0.3 # mine"))
    before = read_yaml(PARAMS_FILE)
    done = scan("use", "--method", method)
    assert done.exit_code == 0 and done.stdout.startswith(f"params.yaml has pretext.method {method} now; a copy of")
    now, base = read_yaml(PARAMS_FILE), read_yaml(PRESETS / BASE)
    fields = variants(Pretext)[method].model_fields
    assert now.pop("pretext") == {
        key: method if key == "method" else before["pretext"].get(key, base["pretext"][key]) for key in fields
    }
    before.pop("pretext")
    assert now == before and read_params().pretext.method == method
    text = PARAMS_FILE.read_text()
    assert ("  temperature: 0.3 # mine" in text) == ("temperature" in fields)
    assert ("  queue: 1024 # number of negatives" in text) == ("queue" in fields)


def test_use_of_a_method_mends_an_old_file_and_one_that_was_changed_by_hand(project):
    text = PARAMS_FILE.read_text()
    for old, new in (("  epochs: 120", "  epochs: 120\n  queue: 9"), ("  temperature: 0.2\n", "")):
        PARAMS_FILE.write_text(text.replace(old, new))
        assert "scan settings use --method simclr" in failed("show")
        assert scan("use", "--method", "simclr").exit_code == 0
        assert read_yaml(PARAMS_FILE) == preset_values(PRESETS / "digits.yaml")


@pytest.mark.parametrize(("preset", "method", "said"), [
    ("digits", "mocov2", "stays as it is, because with these settings pretext.method is \"mocov2\"; 'simclr"),
    ("digits", "frozen", "pretext.method is frozen, but embed.spaces is []"),
    ("cifar10", "rotation", "embed.features is projector; pretext.method rotation has no projector, backbone is all"),
])  # fmt: skip
def test_a_method_that_does_not_go_with_the_rest_changes_nothing(project, preset, method, said):
    scan("use", preset)
    before = everything(project)
    assert said in failed("use", "--method", method)
    assert "use the preset first" in failed("use", "digits", "--method", "moco")
    assert everything(project) == before


@pytest.mark.parametrize("edit", ["seed: 1\n", "# mine\n", "not: [valid\n", ""])
def test_use_keeps_settings_that_are_no_preset(project, edit):
    own = (PARAMS_FILE.read_text() + edit if edit else "").encode()
    PARAMS_FILE.write_bytes(own)
    said = scan("use", "cifar10").stdout.splitlines()[0]
    assert "; a copy of the old settings is .scan/params-" in said
    assert (project / said.rpartition(" ")[2]).read_bytes() == own
    assert PARAMS_FILE.read_text() == preset_text(PRESETS / "cifar10.yaml")


def test_settings_kept_earlier_stay(project):
    for comment in ("# one\n", "# two\n", "# one\n"):
        PARAMS_FILE.write_text(comment)
        scan("use", "stl10")
    assert sorted(path.read_text() for path in (project / ".scan").iterdir()) == ["# one\n", "# two\n"]


def test_use_works_where_there_are_no_settings_yet(project):
    PARAMS_FILE.unlink()
    assert scan("use", "digits").exit_code == 0 and not (project / ".scan").exists()
    assert PARAMS_FILE.read_bytes() == (ROOT / "params.yaml").read_bytes(), "this repository's is the digits preset"


@pytest.mark.parametrize("command", ["use", "show"])
@pytest.mark.parametrize(("name", "hint"), [("cifr10", "cifar10"), ("STL10", "stl10"), ("../params", None)])
def test_an_unknown_name_changes_nothing_and_lists_those_there_are(project, command, name, hint):
    before = everything(project)
    said = failed(command, name)
    assert said.startswith(f"scan: error: {name} is not a preset; ") and ", ".join(list_presets()) in said
    assert (f"did you mean {hint}? " in said) if hint else ("did you mean" not in said)
    assert everything(project) == before


@pytest.mark.parametrize(("text", "said"), [
    ("cluster: {heads: 0}\n", "cluster.heads is 0"), ("pretext: {queue: 9}\n", "pretext.method simclr has no queue; "),
])  # fmt: skip
def test_use_refuses_a_preset_that_is_not_valid_and_changes_nothing(project, text, said):
    (PRESETS / "stl10.yaml").write_text(text)
    before = everything(project)
    assert f"presets/stl10.yaml, line 1: {said}" in failed("use", "stl10")
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
    assert "no room is left" in failed("use", "cifar10")
    assert PARAMS_FILE.read_bytes() == before


def test_changed_settings_leave_the_others_and_what_is_said_of_them():
    text = PARAMS_FILE.read_text().replace("  epochs: 120", "  # why so many\n  epochs: 120 # mine") + "# the end\n"
    PARAMS_FILE.write_text(text.replace("  k: 50", "  k: 50 # and mine; was"))
    old = PARAMS_FILE.read_text().splitlines()
    views = {"kind": "strong", "flip": 0.5, "operations": 4, "cutout": 5}
    change_params({
        "data": {"path": "a # b", "size": 32, "view": None, "protocol": "all", "max_rejected": 0.05},
        "pretext": {"augmentation": preset_values(PRESETS / "cifar10.yaml")["pretext"]["augmentation"]},
        "cluster": {"augmentation": views}, "selflabel": {"augmentation": views},
    }, "a # b:\nas scan data suggests")  # fmt: skip
    new = PARAMS_FILE.read_text().splitlines()
    assert new[:3] == ["# a # b: as scan data suggests", "# The other settings are what they were.", "seed: 0"]
    assert {
        '  path: "a # b" # of folder, archive, parquet and npy',
        "  size: 32 # pixels; images are stored at this size",  # not the digits' comment
        "  protocol: all # split: val is held out and reported; all: every image trains and is reported",
        "    crop_scale: [0.2, 1.0] # share of the image's area", "    cutout: 5 # pixels; 0: no cutout",
        "    flip: 0.5",  # what was said of 0.0 is gone
    } <= set(new)  # fmt: skip
    assert new[new.index("  epochs: 120 # mine") - 1] == "  # why so many" and new[-1] == "# the end"
    kept = [line for line in old if "max_rejected" in line or line.startswith("  k:")]
    assert len(kept) == 2 and kept == [line for line in new if "max_rejected" in line or line.startswith("  k:")]
    assert read_yaml(PARAMS_FILE)["selflabel"]["augmentation"] == views
    assert new.count("") == old.count(""), "groups stay apart"


def test_use_without_a_name_lists_the_presets_and_marks_the_one_in_use(project):
    before = everything(project)
    done = scan("use")
    listed = done.stdout.splitlines()
    assert done.exit_code == 0 and everything(project) == before
    assert [line[2:].split()[0] for line in listed[:-2]] == list(list_presets())
    assert [line.split()[1] for line in listed if line.startswith("* ") and "  " in line] == ["digits"]
    assert "  CIFAR-10: 60,000 photos of 32x32 pixels in ten classes." in done.stdout
    PARAMS_FILE.write_text("# mine\n")
    assert scan("use").stdout.endswith("\nparams.yaml is not one of them\n")


def test_presets_are_listed_with_50_before_100():
    names = ["cifar10", "cifar100_20", "digits", *(f"imagenet_{count}" for count in (50, 100, 200, 1000)), "stl10"]
    assert [name for name in list_presets() if name in names] == names


@pytest.mark.parametrize("name", ["cifar10", "cifar10.yaml", "presets/cifar10.yaml"])
def test_a_preset_is_found_by_its_name_and_by_its_path(name):
    assert find_preset(name) == PRESETS / "cifar10.yaml"


@pytest.mark.parametrize("command", [["use", "cifar10"], ["use", "--method", "moco"], ["show"]])
def test_outside_of_the_project_it_says_where_to_run(tmp_path, monkeypatch, command):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "run from the project's folder" in failed(*command)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [None, "cifar10", "imagenet_1000"])
def test_params_as_json_are_the_validated_settings_of_a_preset_or_of_params_yaml(name):
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("seed: 0", "seed: 7"))
    done = scan("show", *([name] if name else []), "--json")
    settings = read_preset(PRESETS / f"{name}.yaml") if name else read_params()
    assert done.exit_code == 0 and done.stderr == "" and settings.seed == (0 if name else 7)
    assert Params.model_validate_json(done.stdout) == settings
    assert done.stdout == json.dumps(settings.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def test_params_without_json_may_stand_in_params_yaml(project):
    for name in list_presets():
        printed = scan("show", name).stdout
        (project / "printed.yaml").write_text(printed)
        assert read_params(project / "printed.yaml") == read_preset(PRESETS / f"{name}.yaml")
        assert printed.startswith("seed: 0\nprecision: auto\n\ndata:\n  name: ")


def test_printed_values_are_read_back_as_they_were():
    values = {"a": {"b": "null", "c": "~/my photos: all", "d": 1e-7, "e": None, "f": [0.1, True], "g": "1e5", "h": ""}}
    PARAMS_FILE.write_text(as_yaml(values))
    assert read_yaml(PARAMS_FILE) == values


@pytest.mark.parametrize(("change", "said"), [
    (lambda text: "a: [1", "params.yaml, line 1: 'a: [1' opens a bracket"),
    (lambda text: "", "params.yaml: it holds nothing"),
    (lambda text: text.replace("num_clusters: 10", "num_clusters: 1"), "cluster.num_clusters is 1"),
], ids=["not YAML", "empty", "a wrong value"])  # fmt: skip
def test_params_of_a_broken_file_end_in_one_line(change, said):
    PARAMS_FILE.write_text(change(PARAMS_FILE.read_text()))
    assert said in failed("show") and said in failed("show", "--json")
