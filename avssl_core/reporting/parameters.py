"""Where a chapter's parameters come from, inside the notebook.

Precedence: what papermill injected, then the budget that ``AVSSL_BUDGET`` names, then what the parameters cell says.
Papermill only warns about a parameter that the notebook does not have; here it is an error that names the nearest ones.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from avssl_core.reporting.names import unknown_name

_INJECTED = "# Parameters"  # the first line of the cell that papermill adds
T = TypeVar("T")


def chapter_dir(name: str, start: Path | None = None) -> Path:
    """The folder of chapter ``name``: ``chapters/NN_name`` of the nearest folder upwards that holds ``book.yml``.

    Raises:
        FileNotFoundError: not inside the book, or no such chapter.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "book.yml").is_file():
            found = sorted((folder / "chapters").glob(f"[0-9][0-9]_{name}"))
            if found:
                return found[0]
            raise FileNotFoundError(f"no chapter {name!r} under {folder / 'chapters'}; folders are named NN_name")
    raise FileNotFoundError(f"{here} is not inside the book (no book.yml upwards); start Jupyter in the book's folder")


def injected_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The names and values that papermill injected, read from IPython's input history.

    Empty outside a notebook. The history is read, rather than the namespace, because a misspelt name is visible only
    there.
    """
    history = namespace.get("In") or []
    cells = [text for text in history if isinstance(text, str) and text.startswith(_INJECTED)]
    if not cells:
        return {}
    found: dict[str, Any] = {}
    for node in ast.parse(cells[-1]).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def read_budget(chapter: Path, budget: str) -> dict[str, Any]:
    """The flat mapping in ``<chapter>/<budget>.yaml``.

    Raises:
        FileNotFoundError: no such budget; the message names those there are.
        ValueError: the file is not a flat mapping.
    """
    path = chapter / f"{budget}.yaml"
    if not path.is_file():
        there = [each.stem for each in sorted(chapter.glob("*.yaml")) if each.stem != "claims"]
        raise FileNotFoundError(f"{chapter.name}: {unknown_name('budget', budget, there)}")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise ValueError(f"{path} must be a flat mapping of parameter to value")
    return values


def build_config(kind: type[T], values: Mapping[str, Any]) -> T:
    """``kind(**values)`` for a frozen dataclass of flat scalars; integers are taken where floats are asked for.

    Raises:
        ValueError: an unknown name (the nearest valid ones are given), or a value of another type.
    """
    kinds = {field.name: type(field.default) for field in fields(kind)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(unknown_name("parameter", name, kinds))
        built[name] = _as_kind(name, value, kinds[name])
    return kind(**built)


def _as_kind(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"parameter {name}={value!r} must be of type {kind.__name__}")
    return value


def notebook_parameters(chapter: Path, kind: type[T], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values for ``kind``'s fields in a running notebook, by the precedence of this module.

    Args:
        chapter: the chapter's folder, where the budget files lie.
        kind: the chapter's configuration, a dataclass whose fields are the names in the parameters cell.
        namespace: the notebook's ``globals()``.

    Raises:
        ValueError: papermill injected a name that the configuration does not have.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    injected = injected_parameters(namespace)
    for name in injected:
        if name not in names:
            raise ValueError(unknown_name("parameter", name, names))
    values = {name: namespace[name] for name in names}
    budget = os.environ.get("AVSSL_BUDGET")
    from_budget = read_budget(chapter, budget) if budget else {}
    return values | from_budget | injected
