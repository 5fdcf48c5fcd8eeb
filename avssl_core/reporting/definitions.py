"""A chapter's definitions without its run: imports, functions, classes and CONSTANTS of a py:percent script.

A chapter is notebook, script and importable module at once. Its cells train and draw when run top to bottom; tests
and the recording of claims need only what it defines. Anything else at the top level (calls, loops, lower-case
assignments) is left out.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType

_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")


def definition_statements(tree: ast.Module) -> list[ast.stmt]:
    """The top-level statements that define: imports, ``def``, ``class``, and assignments to UPPER_CASE names only."""
    return [statement for statement in tree.body if _defines(statement)]


def load_definitions(script: str | Path) -> ModuleType:
    """Execute only the definitions of a chapter script and return them as a module.

    The module is registered in ``sys.modules`` under a name made from the file's path, so that its functions and
    classes can be pickled in this process and reach forked DataLoader workers. Loading the unchanged script again
    returns the same module. Line numbers are the script's own: tracebacks and ``inspect.getsource`` work.

    Args:
        script: path of the ``.py`` script.

    Raises:
        FileNotFoundError: there is no such script.
        SyntaxError: it does not parse.
        Exception: whatever an import or a constant of the script raises.
    """
    path = Path(script).resolve()
    source = path.read_text(encoding="utf-8")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    known = sys.modules.get(name)
    if known is not None and known.__dict__.get("__definitions_source__") == source:
        return known
    tree = ast.parse(source, filename=str(path))
    tree.body = definition_statements(tree)
    module = ModuleType(name, ast.get_docstring(ast.parse(source)))
    module.__file__ = str(path)
    module.__dict__["__definitions_source__"] = source
    sys.modules[name] = module  # before executing: dataclasses look their own module up
    try:
        exec(compile(tree, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _defines(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Assign(targets=targets):
            return all(_is_constant(target) for target in targets)
        case ast.AnnAssign(target=target, value=value):
            return value is not None and _is_constant(target)
        case _:
            return False


def _is_constant(target: ast.expr) -> bool:
    if isinstance(target, ast.Tuple | ast.List):
        return all(_is_constant(each) for each in target.elts)
    return isinstance(target, ast.Name) and _CONSTANT.fullmatch(target.id) is not None
