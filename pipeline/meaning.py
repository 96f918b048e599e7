"""What a module means: its syntax tree without what changes no output.

Comments, docstrings, positions, the texts of errors and of ``say``, and names that only such texts read do not count.
"""

import ast
import functools
from collections.abc import Iterator
from typing import Any

# The text of Refused counts, because it goes to data/items/findings.csv.
ERRORS = {"ScanError", "DamagedFile", "ValueError", "TypeError"}
MESSAGES = {"say", "warnings.warn"}
# Calls that make a text, or a part of one, and do nothing else: builtins by name, and methods of texts.
BUILTINS = {"abs", "bool", "float", "getattr", "int", "len", "list", "max", "min", "repr", "round", "sorted", "str"}
METHODS = {"format", "join", "lower", "partition", "removeprefix", "rpartition", "split", "splitlines", "strip"}


@functools.cache  # stages share modules
def meaning(source: str) -> tuple[str, list[ast.Import | ast.ImportFrom]]:
    """What a module means, as a text that is the same in every version of Python, and its imports."""
    tree = ast.parse(source)
    drop = _Drop()
    drop.visit(tree)
    while drop.again:  # what has gone may have been the last to read another name
        drop.again = False
        for scope in (tree, *_outermost(tree, ast.FunctionDef)):
            drop.unread_in(scope)
    return _canonical(tree), list(_outermost(tree, (ast.Import, ast.ImportFrom)))


def _outermost(node: ast.AST, kind: Any) -> Iterator[Any]:
    """Statements of a kind that lie in no other of it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, kind):
            yield child
        elif not isinstance(child, ast.expr):
            yield from _outermost(child, kind)


def _reads(scope: ast.AST) -> set[str]:
    """Names that are read in ``scope``, or that a function in it assigns for the module to read."""
    found = set[str]()
    for node in ast.walk(scope):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Global):
            found.update(node.names)
    return found


class _Drop(ast.NodeTransformer):
    """Drops texts from a module, and then from each scope what binds a name that only texts have read."""

    def __init__(self) -> None:
        self.lost = set[str]()  # names that were read in what has gone
        self.unread = set[str]()  # those that nothing in the scope reads any more
        self.scope: ast.AST | None = None  # the module or a function; None at first, when only texts go
        self.again = False

    def unread_in(self, scope: ast.AST) -> None:
        self.scope, self.unread = scope, self.lost - _reads(scope)
        if self.unread:
            self.generic_visit(scope)

    def visit(self, node: ast.AST) -> Any:
        binds = self.scope is None or not isinstance(node, ast.expr)
        return super().visit(node) if binds else node

    def _gone(self, *nodes: ast.AST) -> None:
        self.again = True
        self.lost.update(*map(_reads, nodes))

    def _is_unread(self, name: str) -> bool:
        return name in self.unread and (name.startswith("_") or not isinstance(self.scope, ast.Module))

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in MESSAGES:
            self._gone(node)
            return None
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if node.msg:
            self._gone(node.msg)
            node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS and (node.args or node.keywords):
            self._gone(*node.args, *node.keywords)
            node.args, node.keywords = [], []
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node if self.scope else self.generic_visit(node)  # what it binds are attributes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if self._is_unread(node.name) and not node.decorator_list:
            self._gone(node)
            return None
        return node if isinstance(self.scope, ast.Module) else self.generic_visit(node)

    def _assigned(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> ast.AST | None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        unread = all(isinstance(target, ast.Name) and self._is_unread(target.id) for target in targets)
        if unread and node.value and _makes_only_a_text(node.value):
            self._gone(node.value)
            return None
        return self.generic_visit(node)

    visit_Assign = visit_AnnAssign = visit_AugAssign = _assigned

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        kept = [alias for alias in node.names if (alias.asname or alias.name) not in self.unread]
        self.again |= kept != node.names
        node.names = kept
        return node if kept else None

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if node.name in self.unread:
            node.name = None
        return self.generic_visit(node)


def _makes_only_a_text(value: ast.expr) -> bool:
    """Whether without ``value`` nothing else is lost."""
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            called = node.func.id in BUILTINS if isinstance(node.func, ast.Name) else True
            called = node.func.attr in METHODS if isinstance(node.func, ast.Attribute) else called
            if not called:
                return False
        elif isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
            return False
    return True


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


NOTHING, _ = meaning("")


def part_of(source: str, definition: str) -> str:
    """The statements of a module that ``definition`` needs: so a stage does not depend on another stage's settings."""
    tree = ast.parse(source)
    wanted, kept = {definition}, set[ast.stmt]()
    while new := [each for each in tree.body if each not in kept and wanted & _binds(each)]:
        kept.update(new)
        wanted.update(*map(_reads, new))
    return ast.unparse(ast.Module([each for each in tree.body if each in kept], []))


def _binds(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name} if (name := getattr(node, "name", None)) else set()


NOTHING = meaning("")[0]
