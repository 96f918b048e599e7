"""YAML files as a person writes them: what is wrong in one is said with its line, in plain words."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scan_core.errors import ScanError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

MOST_UNFOLDED = 10_000  # values, beside those that are written out
LONGEST_NUMBER = 1000  # digits
LONGEST = 60  # characters of a line that an error shows
CONFLICT = ("<<<<<<< ", "=======", ">>>>>>> ")
COLON = "has no colon after its name; write it as name: value"
SPACE = "has no space after its colon; write it as name: value"
DEEPER = "is indented deeper than the line above, which has a value; give it as many spaces as that line"
UNLIKE = "and the lines above are not indented alike; give all lines of a group as many spaces"
QUOTES = "put the value in single quotes"
# What the parser says, or what it was reading when it stopped, and what a person has to mend in that line.
IN_THIS_LINE = (
    (r"'\\t' that cannot start", "has a tab; write spaces instead"),
    (r"character '(.)' that cannot start", rf"has a value that begins with \1; {QUOTES}"),
    (r"undefined alias|scanning an (alias|anchor)", f"has a value that begins with * or &; {QUOTES}"),
    (r"constructor for the tag", f"has a value that begins with !; {QUOTES}"),
    (r"escape character|escape sequence", f"has a \\ in double quotes, where it begins a code; {QUOTES}"),
    (r"another document", "begins a second document; a file has one, so delete the line"),
    (r"but found \('<document start>'|found '-'", "mixes a list with names; write name: value"),
    (
        r"but found '<scalar>'",
        "has text after a closing quote, or a quote is not closed above; write one text in quotes",
    ),
)
WHERE_IT_BEGAN = (
    (r"quoted scalar", "opens a quote that is not closed; close it in this line"),
    (
        r"flow (sequence|mapping|node)",
        "opens a bracket that is not closed, or lacks a comma in it; close it, or add the comma",
    ),
)


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file, as DVC reads it: ``1e-4`` is a number.

    Raises ``ScanError`` if there is no such file or it cannot be read, and with the line that is not YAML.
    """
    from ruamel.yaml import YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        text = path.read_text(encoding="utf-8")
        return _load(text)
    except Unreadable as error:
        raise ScanError(f"{path} {error}") from None
    except RecursionError:
        raise ScanError(
            f"{path} has lists or groups inside each other, too deep to read; settings are two deep"
        ) from None
    except FileNotFoundError:
        raise ScanError(f"{path} is missing from {Path.cwd()}; run from the project's folder") from None
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; put a readable YAML file there") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ScanError(f"{path}, line {line}: it is not in UTF-8; save the file as UTF-8") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ScanError(f"{path}, line {line}: it has a character that cannot be seen; delete it") from None
    except YAMLError as error:
        line, wrong = _explain(text.splitlines(), error)
        shown = [*text.splitlines(), ""][line].strip()
        shown = shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."
        raise ScanError(f"{path}, line {line + 1}: {shown!r} {wrong}") from None
    except ValueError as error:  # of what looks like a date
        raise ScanError(f"{path} has a date that is none, for {error}; {QUOTES}") from None


class Unreadable(Exception):
    """What is wrong with a file as a whole."""


def _load(text: str) -> Any:
    """The content of a YAML text. Raises ``Unreadable`` if a number or what aliases unfold to is too much."""
    from ruamel.yaml.docinfo import DocInfo

    yaml = _parser()
    yaml.doc_infos.append(DocInfo())  # which a %YAML directive fills
    constructor, parser = yaml.get_constructor_parser(text)
    try:
        node = constructor.composer.get_single_node()
        if node is None:
            return None
        sizes: dict[int, int] = {}
        if _unfolded(node, sizes) > MOST_UNFOLDED + 2 * len(sizes):
            raise Unreadable("unfolds to millions of values by aliases (*name); write the values that are meant")
        return constructor.construct_document(node)
    finally:
        parser.dispose()


def _unfolded(node: Any, sizes: dict[int, int]) -> int:
    """How many values ``node`` holds if each alias is what it stands for; ``sizes`` has those of nodes seen before."""
    if id(node) not in sizes:
        sizes[id(node)] = -1
        if str(node.tag).endswith(":int") and len(node.value) > LONGEST_NUMBER:
            raise Unreadable(f"has a number of {len(node.value):,} digits; at most {LONGEST_NUMBER} are read")
        inside = node.value if isinstance(node.value, list) else []
        parts = [part for each in inside for part in (each if isinstance(each, tuple) else (each,))]
        sizes[id(node)] = 1 + sum(_unfolded(part, sizes) for part in parts)
    if sizes[id(node)] < 0:
        raise Unreadable("has an alias (*name) inside what it stands for; write the values that are meant")
    return sizes[id(node)]


def in_words(values: Any) -> str:
    """What a file holds that should hold names with values."""
    return {type(None): "nothing", str: "text", list: "a list"}.get(type(values), "one value")


def where(path: Path, name: str) -> str:
    """``path``, and the line in it of a dotted name, or of the group that lacks it; a preset may have neither."""
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    node = _parser().compose(path.read_text(encoding="utf-8")) if path.is_file() else None
    found, parts = str(path), name.split(".")
    for depth, part in enumerate(parts, 1):
        inside: dict[str, tuple[Any, Any]] = {}
        if isinstance(node, MappingNode):
            inside = {key.value: (key, value) for key, value in node.value if isinstance(key.value, str)}
        elif isinstance(node, SequenceNode):
            inside = {str(index): (value, value) for index, value in enumerate(node.value)}
        if part not in inside:
            return found if depth == len(parts) else str(path)
        key, node = inside[part]
        found = f"{path}, line {key.start_mark.line + 1}"
    return found


def _parser() -> "YAML":
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)


def _explain(lines: list[str], error: Any) -> tuple[int, str]:
    """The index of the line to mend, and what is wrong with it."""
    for number, line in enumerate(lines):
        if line.startswith(CONFLICT):
            return number, "is a mark of git's, of two versions to merge; keep one of them, and delete the marks"
    problem, mark = str(error.problem), error.problem_mark
    began = error.context_mark.line if error.context_mark else mark.line
    if key := re.match('found duplicate key "(.*?)"', problem):
        same = f"{' ' * mark.column}{key[1]}:"
        first = next((each + 1 for each in range(began, mark.line) if lines[each].startswith(same)), None)
        return mark.line, f"gives {key[1]} again" + (f", after line {first}" if first else "") + "; keep one of the two"
    if "could not find expected ':'" in problem:
        return began, SPACE if ":" in _without_comment(lines[began]) else COLON
    if "mapping values are not allowed" in problem:
        if ": " in lines[mark.line][: mark.column]:
            return mark.line, f"has two colons; {QUOTES}"
        return _line_above(lines, mark.line) or (mark.line, DEEPER)
    if "<block mapping start>" in problem:
        return _line_above(lines, mark.line) or (mark.line, UNLIKE)
    for pattern, wrong in IN_THIS_LINE:
        if found := re.search(pattern, f"{error.context} {problem}"):
            return mark.line, found.expand(wrong) if r"\1" in wrong else wrong
    for pattern, wrong in WHERE_IT_BEGAN:
        if re.search(pattern, str(error.context)):
            return [each for each, line in enumerate(lines[: began + 1]) if line.strip()][-1], wrong
    return mark.line, "cannot be read; write name: value, and lists as [1, 2]"


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()


def _line_above(lines: list[str], number: int) -> tuple[int, str] | None:
    """The name without a colon above line ``number``, which was taken for a value; None if there is none."""
    above = max((each for each in range(number) if _without_comment(lines[each])), default=number)
    before = _without_comment(lines[above])
    if ": " in f"{before} " or before.startswith("- "):
        return None
    return above, SPACE if ":" in before else COLON
