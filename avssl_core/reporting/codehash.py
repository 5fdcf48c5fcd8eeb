"""The hash of the code a cell depends on, at the level of definitions.

A recorded figure stays valid while the code that made it stays the same. Hashing whole files or the commit would
throw hours of cells away for a comment; hashing nothing would keep figures that their code no longer gives. So: start
at the chapter's ``run_cell``, follow every name it reads (functions, classes whole, constants, through imports and
re-exports) inside the first-party packages, and hash the syntax trees that are reached. Prose, docstrings, comments,
annotations and unrelated definitions do not count; any change of a definition that the cell can reach does.

The walk over-approximates: a module passed around as a value, or named in a string (``importlib``), counts as a
whole. What it cannot see is a name put together at run time; dispatch by dictionary instead. Third-party code is not
hashed: its versions are recorded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from avssl_core.reporting.codetext import canonical, chains, global_names, strings, stripped
from avssl_core.reporting.definitions import definition_statements

FIRST_PARTY = ("avssl_core", "data_prep")
CHAPTER = "chapter"  # the script's module name in keys: moving or renaming a chapter's folder changes nothing
_COMPOUND = (ast.If, ast.Try, ast.With, ast.For, ast.While)


@dataclass(frozen=True)
class CodeHash:
    """SHA-256 over all definitions reached, and of each alone (``"package.module:name"``), to say what changed."""

    sha256: str
    definitions: Mapping[str, str]

    def changed_from(self, other: CodeHash) -> list[str]:
        """Definitions that were added, removed or edited between two hashes, sorted."""
        names = set(self.definitions) | set(other.definitions)
        return sorted(name for name in names if self.definitions.get(name) != other.definitions.get(name))


def code_hash(
    script: str | Path,
    *,
    roots: Iterable[str] = ("run_cell", "make_config"),
    packages: Mapping[str, Path] | None = None,
) -> CodeHash:
    """Hash everything that ``roots`` of a chapter script reach.

    Args:
        script: the chapter's py:percent script.
        roots: names to start from; those the script does not define are skipped, but one must exist.
        packages: first-party package name → its folder; the installed ``avssl_core`` and ``data_prep`` by default.

    Raises:
        ValueError: none of ``roots`` is defined in the script.
        SyntaxError: a file that was reached does not parse.
    """
    path = Path(script)
    walk = _Walk(dict(packages) if packages is not None else _installed(), path)
    chapter = walk.chapter
    present = [name for name in roots if name in chapter.statements or name in chapter.imports]
    if not present:
        raise ValueError(
            f"{path} defines none of {', '.join(roots)}: a chapter that records needs run_cell(arm, seed, config)"
        )
    for name in present:
        walk.reach(CHAPTER, name)
    definitions = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in sorted(walk.texts.items())}
    whole = hashlib.sha256("\n".join(f"{key} {value}" for key, value in definitions.items()).encode()).hexdigest()
    return CodeHash(whole, definitions)


def _installed() -> dict[str, Path]:
    found = {}
    for name in FIRST_PARTY:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


@dataclass
class _Module:
    """Top level of one source file: what binds a name, where imported names come from, what only has effects."""

    name: str
    package: str
    statements: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # alias → (module, attribute or "")
    stars: list[str] = field(default_factory=list)
    effects: list[ast.stmt] = field(default_factory=list)

    def add(self, statement: ast.stmt) -> None:
        nested = list(ast.walk(statement))
        simple = isinstance(statement, ast.Import | ast.ImportFrom)
        compound = isinstance(statement, _COMPOUND)
        for node in nested if compound else nested[:1]:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update(import_bindings(node, self.package))
                if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                    self.stars.append(_absolute(node, self.package))
        bound = _bound_names(statement, compound=compound)
        for name in bound:
            self.statements.setdefault(name, []).append(statement)
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not bound and not simple and not is_text:
            self.effects.append(statement)


class _Walk:
    """Depth-first over (module, name); ``texts`` has one text a definition, with what its names lead to."""

    def __init__(self, packages: dict[str, Path], script: Path) -> None:
        self.packages = packages
        self.texts: dict[str, str] = {}
        self.modules: dict[str, _Module | None] = {}
        tree = ast.parse(script.read_text(encoding="utf-8"), filename=str(script))
        chapter = _Module(CHAPTER, "")
        for statement in definition_statements(tree):
            chapter.add(statement)
        self.chapter = chapter
        self.modules[CHAPTER] = chapter
        self._seen: dict[tuple[str, str], str] = {}

    def module(self, name: str) -> _Module | None:
        """The parsed module, or ``None`` when not first-party. Asking makes its and its parents' effects count."""
        if name not in self.modules:
            self.modules[name] = None
            path = self._find(name)
            if path is not None:
                if "." in name:
                    self.module(name.rpartition(".")[0])
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                module = _Module(name, package)
                for statement in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
                    module.add(statement)
                self.modules[name] = module
                self._describe(module, "<effects>", module.effects)
        return self.modules[name]

    def reach(self, module_name: str, name: str) -> str:
        """Follow one name of a module; returns the key of what it is (a definition, a module, or something outside)."""
        key = (module_name, name)
        if key in self._seen:
            return self._seen[key]
        label = f"{module_name}:{name}"
        self._seen[key] = label
        module = self.module(module_name)
        if module is None:
            return label
        if name in module.statements:
            self._describe(module, name, module.statements[name])
        if name in module.imports:
            imported = self._imported(*module.imports[name])
            label = imported if name not in module.statements else f"{label}|{imported}"
        elif name not in module.statements:
            label = self._elsewhere(module, name)
        self._seen[key] = label
        return label

    def _elsewhere(self, module: _Module, name: str) -> str:
        """A name that a module does not bind itself: from a star import, a submodule, or a built-in."""
        for star in module.stars:
            source = self.module(star)
            if source is not None and (name in source.statements or name in source.imports or source.stars):
                return self.reach(star, name)
        if self._find(f"{module.name}.{name}") is not None:
            return self._whole(f"{module.name}.{name}")
        return f"builtin:{name}"

    def _imported(self, module_name: str, attribute: str, rest: tuple[str, ...] = ()) -> str:
        """What an import leads to, after as many attributes as name submodules."""
        path = (attribute, *rest) if attribute else rest
        if self._find(module_name) is None:
            return f"{module_name}:{'.'.join(path)}"  # third-party: by name only
        if not path:
            return self._whole(module_name)
        module = self.module(module_name)
        own = module is not None and (path[0] in module.statements or path[0] in module.imports)
        if own and module is not None and path[0] not in module.statements:
            return self._imported(*module.imports[path[0]], rest=path[1:])
        if not own and self._find(f"{module_name}.{path[0]}") is not None:
            return self._imported(f"{module_name}.{path[0]}", "", path[1:])
        return self.reach(module_name, path[0])

    def _whole(self, module_name: str) -> str:
        """A module used as a value: everything in it may be reached."""
        label = f"{module_name}:*"
        if (module_name, "*") not in self._seen:
            self._seen[module_name, "*"] = label
            module = self.module(module_name)
            for name in [*module.statements] if module is not None else []:
                self.reach(module_name, name)
        return label

    def _describe(self, module: _Module, name: str, statements: list[ast.stmt]) -> None:
        """Write the text of a definition (all statements that bind it, and what each name in them leads to)."""
        lines: set[str] = set()
        texts = []
        for statement in statements:
            plain = stripped(statement)
            texts.append(canonical(plain))
            local = _local_imports(statement, module.package)
            for chain in chains(plain, global_names(plain) | set(local)):
                lines.add(f"{'.'.join(chain)} -> {self._resolve(module, chain, local)}")
            for text in strings(plain):
                lines |= {f"{text!r} -> {self._whole(found)}" for found in self._modules_named(text)}
        if texts:
            self.texts[f"{module.name}:{name}"] = "\n".join([*texts, *sorted(lines)])

    def _resolve(self, module: _Module, chain: tuple[str, ...], local: Mapping[str, tuple[str, str]]) -> str:
        first, rest = chain[0], chain[1:]
        imports = local if first in local else module.imports
        if first in imports and (first in local or first not in module.statements):
            return self._imported(*imports[first], rest=rest)
        return self.reach(module.name, first)

    def _modules_named(self, text: str) -> list[str]:
        """First-party modules a string names: exactly, or as the fixed beginning (``"pkg.recipes."``) of a name."""
        if text.split(".")[0] not in self.packages or "." not in text or not text.replace(".", "").isidentifier():
            return []
        if not text.endswith("."):
            return [text] if self._find(text) is not None else []
        package = self._find(text[:-1])
        names = sorted(path.stem for path in package.parent.glob("*.py")) if package is not None else []
        return [f"{text}{name}" for name in names if name != "__init__"]

    def _find(self, name: str) -> Path | None:
        if name == CHAPTER:
            return None
        first, *rest = name.split(".")
        if first not in self.packages:
            return None
        base = self.packages[first].joinpath(*rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file() and (rest or path.name == "__init__.py"):
                return path
        return None


def import_bindings(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str]]:
    """Names an import statement binds, each with (module, attribute); the attribute is empty for a module itself."""
    if isinstance(node, ast.Import):
        # "import a.b" binds a; "import a.b as c" binds a.b
        pairs = ((a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2 for a in node.names)
        return {alias: (module, "") for alias, module in pairs}
    source = _absolute(node, package)
    return {a.asname or a.name: (source, a.name) for a in node.names if a.name != "*"}


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)


def _local_imports(statement: ast.stmt, package: str) -> dict[str, tuple[str, str]]:
    """Imports inside a function or class body."""
    bindings: dict[str, tuple[str, str]] = {}
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bindings.update(import_bindings(node, package))
    return bindings


def _bound_names(statement: ast.stmt, *, compound: bool) -> set[str]:
    """Names a top-level statement defines or changes: ``A, B = …``, ``TABLE["x"] = …``, all that an ``if`` binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if compound:
        names: set[str] = set()
        for child in ast.iter_child_nodes(statement):
            body = child.body if isinstance(child, ast.ExceptHandler) else [child]
            for each in body:
                if isinstance(each, ast.stmt):
                    names |= _bound_names(each, compound=isinstance(each, _COMPOUND))
        return names
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    elif type(statement).__name__ == "TypeAlias":  # Python 3.12
        targets = [statement.name]  # type: ignore[attr-defined]
    return {root for target in targets for root in _target_roots(target)}


def _target_roots(target: ast.expr) -> set[str]:
    if isinstance(target, ast.Tuple | ast.List):
        return {root for each in target.elts for root in _target_roots(each)}
    while isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
        target = target.value
    return {target.id} if isinstance(target, ast.Name) else set()
