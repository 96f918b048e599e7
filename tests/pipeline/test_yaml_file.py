"""What is wrong in a YAML file is said in one line, with its line, and in words that are not the parser's."""

import time

import pytest

from pipeline.params import read_params
from pipeline.presets import find_preset, read_preset
from pipeline.yaml_file import read_yaml, where
from tests.project import ROOT
from tests.tiny import refused

COLON, SPACE = "has no colon after its name", "has no space after its colon"
DEEPER, UNLIKE = "is indented deeper than the line above", "and the lines above are not indented alike"
QUOTE, BRACKET = "opens a quote that is not closed", "opens a bracket that is not closed"
WRONG = [
    ("a:\n\tb: 1\n", 2, "b: 1", "has a tab; write spaces"),
    ("a:\n  b: 1\n\tc: 1\n", 3, "c: 1", "has a tab"),
    ("a: 1\n\tb: 2\n", 2, "b: 2", "has a tab"),
    ("# x\nseed 1\nprecision: auto\n", 2, "seed 1", COLON),
    ("a: 1\nb 2\nc: 3\n", 2, "b 2", COLON),
    ("a: 1\nb 2\n", 2, "b 2", COLON),
    ("a: 1\nb\n  c: 1\n  d: 2\n", 2, "b", COLON),
    ("g:\n  a 1 # x: y\n\n  # z\n  b: 2\n", 2, "a 1 # x: y", COLON),
    ("g:\n  a: 1\n  b 2\nh: 1\n", 3, "b 2", COLON),
    ("a: 1\nb:2\nc: 3\n", 2, "b:2", SPACE),
    ("a:1\nb: 2\n", 1, "a:1", SPACE),
    ("a: 1\n  b: 2\n", 2, "b: 2", DEEPER),
    ("g:\n  a: 1\n   b: 2\n", 3, "b: 2", DEEPER),
    ("a:\n- 1\n b: 1\n", 3, "b: 1", DEEPER),
    ("g:\n    a: 1\n  b: 2\n", 3, "b: 2", UNLIKE),
    (" a: 1\nb: 2\n", 2, "b: 2", UNLIKE),
    ("a: 1\nb: 2\na: 3\n", 3, "a: 3", "gives a again, after line 1; keep one"),
    ("a: 0\ng:\n  b:\n    a: 1\n  a: 1\n  a: 3\n", 6, "a: 3", "gives a again, after line 5"),
    ("a: 'x\nb: 2\n", 1, "a: 'x", QUOTE),
    ('a: 1\nb: "x\nc: 2\n', 2, 'b: "x', QUOTE),
    ("a: 'x' y\n", 1, "a: 'x' y", "has text after a closing quote"),
    ("a: [1, 2\nb: 2\n", 1, "a: [1, 2", BRACKET),
    ("a: {x: 1\nb: 2\n", 1, "a: {x: 1", BRACKET),
    ("a: [1, 1,\n\n", 1, "a: [1, 1,", BRACKET),
    ("a: b: c\n", 1, "a: b: c", "has two colons; put the value in single quotes"),
    ("a: @x\n", 1, "a: @x", "has a value that begins with @; put"),
    ("a: *x\n", 1, "a: *x", "has a value that begins with * or &"),
    ("a: & b\n", 1, "a: & b", "has a value that begins with * or &"),
    ("a: !x 1\n", 1, "a: !x 1", "has a value that begins with !"),
    ('a: "c:\\pictures"\n', 1, 'a: "c:\\pictures"', "has a \\ in double quotes"),
    ("a: 1\n- 2\n", 2, "- 2", "mixes a list with names"),
    ("a: 1\n---\nb: 2\n", 2, "---", "begins a second document"),
    ("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x\n", 2, "<<<<<<< HEAD", "is a mark of git's"),
    ("a: ]\n", 1, "a: ]", "cannot be read; write name: value"),
]  # fmt: skip
PARSERS = ("mapping", "scalar", "token", "block", "expected", "found", "context", "scanning", "document start")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(("text", "line", "shown", "said"), WRONG)
def test_a_line_that_is_not_yaml_is_shown_and_explained(path, text, line, shown, said):
    path.write_text(text)
    wanted = f"{path}, line {line}: {shown!r} {said}"
    refused(lambda: read_yaml(path), wanted)
    with pytest.raises(Exception) as error:
        read_yaml(path)
    words = str(error.value).removeprefix(f"{path}, line {line}: {shown!r}")
    assert not any(word in words for word in PARSERS) and "; " in words


def test_a_long_line_is_cut(path):
    line = f"a: [{'1, ' * 99}"
    path.write_text(f"{line}\n")
    refused(lambda: read_yaml(path), f"line 1: '{line[:57]}...' opens a bracket")


def test_text_that_is_none_is_refused_with_its_line(path):
    path.write_bytes("a: é\nb: é".encode("latin-1"))
    refused(lambda: read_yaml(path), "params.yaml, line 1: it is not in UTF-8; save")
    path.write_bytes(b"a: 1\nb: \x07\n")
    refused(lambda: read_yaml(path), "params.yaml, line 2: it has a character that cannot be seen; delete it")
    path.write_text("a: 2026-13-45\n")
    refused(lambda: read_yaml(path), "params.yaml has a date that is none, for month must be in 1..12; put")


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{number}: &a{number} [{','.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 9)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{number}: &a{number} {{<<: [{','.join([f'*a{number - 1}'] * 9)}]}}\n" for number in range(1, 9)
)


@pytest.mark.parametrize(("text", "said"), [
    (BOMB, "unfolds to millions of values by aliases (*name); write the values that are meant"),
    (MERGED, "unfolds to millions of values"),
    ("x: &a {y: *a}\n", "has an alias (*name) inside what it stands for"),
    ("&a [*a]\n", "has an alias (*name) inside what it stands for"),
    (f"x: {'[' * 700}{']' * 700}\n", "inside each other, too deep to read"),
    (f"x: {'{a: ' * 5000}\n", "inside each other, too deep to read"),
    (f"seed: {'9' * 5000}\n", "has a number of 5,000 digits; at most 1000 are read"),
    (f"seed: 0x{'f' * 5000}\n", "has a number of 5,002 digits"),
    ("seed: 2001-99-99\n", "has a date that is none"),
])  # fmt: skip
def test_what_would_fill_the_memory_or_the_stack_is_refused_at_once(path, text, said):
    path.write_text(text)
    began = time.monotonic()
    refused(lambda: read_yaml(path), f"{path} ", said)
    assert time.monotonic() - began < 5


def test_honest_aliases_and_directives_and_long_lists_are_read(path):
    path.write_text("%YAML 1.2\n---\na: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}\n" + "e:\n" + "- 1\n" * 20_000)
    found = read_yaml(path)
    assert (found["b"], found["c"], len(found["e"])) == ([1, 2], {"d": 1}, 20_000)


def test_a_value_is_found_by_its_dotted_name(path):
    path.write_text("# x\na: 1\ng:\n  h: [1, 2]\n  i:\n    j:\n      - 5\n      - 6\n")
    lines = {"a": 2, "g": 3, "g.h": 4, "g.h.1": 4, "g.i.j.1": 8, "g.i.k": 5}
    assert {name: where(path, name) for name in lines} == {n: f"{path}, line {line}" for n, line in lines.items()}
    for name in ("", "b", "b.c", "g.x.y", "a.b.c"):
        assert where(path, name) == str(path)
    assert where(path.with_name("none.yaml"), "a") == str(path.with_name("none.yaml"))


def test_wrong_settings_are_named_with_their_line(path, tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("\nseed: 0", "\nseed: zero"))
    line = next(number for number, each in enumerate(path.read_text().splitlines(), 1) if each.startswith("seed: zero"))
    refused(lambda: read_params(path), f"{path}, line {line}: seed is ")
    path.write_text("- 1\n")
    refused(lambda: read_params(path), f"{path}: it holds a list; it must hold settings, as name: value")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/base.yaml").write_text((ROOT / "presets/base.yaml").read_text())
    (tmp_path / "presets/mine.yaml").write_text("# Mine\n\ncluster:\n  heads: none\n")
    refused(lambda: read_preset(find_preset("mine")), "mine.yaml, line 4: cluster.heads is ")
