"""What a module means: its syntax tree without comments, docstrings, and the texts of errors and of ``say``."""

import ast
import functools
from collections.abc import Iterator

# Calls whose arguments are only read by a person. Refused is not one: its text goes to data/items/findings.csv.
ERRORS = {"ScanError", "DamagedFile", "ValueError", "TypeError"}
MESSAGES = {"say", "warnings.warn"}


@functools.cache  # stages share modules
def meaning(source: str) -> tuple[str, list[ast.Import | ast.ImportFrom], set[object]]:
    """What a module means, as a text that is the same in every version of Python, its imports, and its constants."""
    tree = _WithoutTexts().visit(ast.parse(source))
    return (
        _canonical(tree),
        list(_imports(tree)),
        {each.value for each in ast.walk(tree) if isinstance(each, ast.Constant)},
    )


class _WithoutTexts(ast.NodeTransformer):
    """Drops docstrings, messages, the arguments of errors, and what only a type checker reads."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_message = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in MESSAGES
        return None if is_message or isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            node.args, node.keywords = [], []
        return self.generic_visit(node)


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom))


def _canonical(node: object) -> str:
    """A syntax tree as text: its classes, and those fields that are not empty, as others differ between versions."""
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = [
        f"{name}={_canonical(value)}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != [] and name not in ("ctx", "type_comment")
    ]
    return f"{type(node).__name__}({','.join(fields)})"


NOTHING = meaning("")[0]


def part_of(source: str, definition: str) -> str:
    """The statements of a module that ``definition`` needs: so a stage does not depend on another stage's settings."""
    tree = ast.parse(source)
    wanted, kept = {definition}, set[ast.stmt]()
    while new := [each for each in tree.body if each not in kept and wanted & _binds(each)]:
        kept.update(new)
        wanted.update(node.id for each in new for node in ast.walk(each) if isinstance(node, ast.Name))
    return ast.unparse(ast.Module([each for each in tree.body if each in kept], []))


def _binds(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name} if (name := getattr(node, "name", None)) else set()
