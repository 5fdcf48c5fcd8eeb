"""One definition as canonical text, and the names it leans on: the parts that :mod:`avssl_core.reporting.codehash`
walks over.

Canonical means: what runs, without what is said about it. Comments are not in the syntax tree; docstrings, bare
strings and annotations are removed; formatting and the spelling of numbers do not matter. Class-level annotations
keep their presence (a dataclass field is a field because it is annotated) but not their text, unless that steers the
class (``ClassVar``, ``InitVar``, ``KW_ONLY``).
"""

from __future__ import annotations

import ast
import copy
import symtable
from collections.abc import Iterator

_STEERING = ("ClassVar", "InitVar", "KW_ONLY")


class _Strip(ast.NodeTransformer):
    """Remove docstrings and annotations in place; keep every body non-empty."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for child in node.body:
            if isinstance(child, ast.AnnAssign) and not any(
                word in ast.unparse(child.annotation) for word in _STEERING
            ):
                child.annotation = ast.Constant("field")
        fields = {id(child) for child in node.body if isinstance(child, ast.AnnAssign)}
        # generic_visit reaches visit_AnnAssign, which must tell a field from a local variable
        self._fields = getattr(self, "_fields", set()) | fields
        return self._with_body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if id(node) in getattr(self, "_fields", set()):
            return self.generic_visit(node)
        if node.value is None:
            return None
        plain = ast.Assign([node.target], node.value)
        return self.generic_visit(ast.copy_location(plain, node))

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._with_body(node)

    def _with_body(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if not node.body:
            node.body = [ast.Pass()]
        return node


def stripped(statement: ast.stmt) -> ast.stmt:
    """A copy of a statement without docstrings, bare strings and annotations; ``pass`` if nothing else was there."""
    result = _Strip().visit(copy.deepcopy(statement))
    return ast.fix_missing_locations(result if result is not None else ast.Pass())


def canonical(node: object) -> str:
    """The syntax tree as text, the same on every supported Python (``ast.dump`` changed with 3.13)."""
    if isinstance(node, ast.AST):
        fields = (
            (name, getattr(node, name, None)) for name in node._fields if name not in ("ctx", "kind", "type_comment")
        )
        # empty fields are left out: newer Pythons add some (type_params)
        inside = ",".join(f"{name}={canonical(value)}" for name, value in fields if value is not None and value != [])
        if isinstance(node, ast.Constant):
            inside = f"{type(node.value).__name__}:{node.value!r}"
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return f"[{','.join(canonical(each) for each in node)}]"
    return repr(node)


def global_names(statement: ast.stmt) -> set[str]:
    """Names that a (stripped) top-level statement reads from its module, by Python's own scoping rules.

    The statement is looked at inside a function, and variables of comprehensions are left out: Python 3.12 and newer
    count them among the names of the module or class around, and older ones do not.
    """
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set()
    body = ast.unparse(statement).splitlines()
    bound = sorted(_bound(statement))
    declared = [f"global {', '.join(bound)}"] if bound else []
    text = "\n ".join(["def definition():", *declared, *body])
    loops = {
        name.id
        for each in ast.walk(statement)
        if isinstance(each, ast.comprehension)
        for name in ast.walk(each.target)
        if isinstance(name, ast.Name)
    }
    found: set[str] = set()
    tables = [symtable.symtable(text, "<definition>", "exec")]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        # a class may read a global under a name that it also binds
        own = {s.get_name() for s in table.get_symbols()} - loops if table.get_type() == "class" else set()
        found |= {
            s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or s.get_name() in own)
        }
    return found


def _bound(statement: ast.stmt) -> set[str]:
    """Names that the statement binds at its own level."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names: set[str] = set()
    level: list[ast.AST] = [statement]
    scopes = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    while level:
        node = level.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        if not isinstance(node, scopes):
            level.extend(ast.iter_child_nodes(node))
    return names


def chains(statement: ast.stmt, names: set[str]) -> set[tuple[str, ...]]:
    """How ``names`` are used: ``("losses", "nce")`` for ``losses.nce(...)``, ``("f",)`` for a bare ``f``."""
    return {chain for chain in _chains(statement) if chain[0] in names}


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    chain: list[str] = []
    inner: ast.AST = node
    while isinstance(inner, ast.Attribute):
        chain.append(inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield (inner.id, *reversed(chain))
        return
    for child in ast.iter_child_nodes(inner):
        yield from _chains(child)


def strings(statement: ast.stmt) -> set[str]:
    """Every text constant inside a (stripped) statement, the fixed parts of f-strings included."""
    return {n.value for n in ast.walk(statement) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
