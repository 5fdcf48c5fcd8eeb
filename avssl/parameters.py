"""A chapter's parameters: read from its typed parameters cell, set by a budget and by ``-p``, checked before anything
starts.

Papermill only warns about a parameter that the notebook does not have; here it is an error that names the nearest
ones.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from avssl.errors import UsageError, unknown

TAG = "parameters"
_SIMPLE: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
}


@dataclass(frozen=True)
class Parameter:
    """One annotated assignment of the parameters cell, with the comment at its end."""

    name: str
    annotation: str
    comment: str = ""

    def parse(self, text: str) -> Any:
        """The value of ``-p name=text``, read as YAML unless the parameter is a string."""
        alternatives = _alternatives(self.annotation)
        if "str" in alternatives:
            is_none = "None" in alternatives and text.lower() in ("none", "null", "~", "")
            return None if is_none else text
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if "float" in alternatives and isinstance(value, str):
            value = _as_float(value)  # YAML 1.1 reads 1e-3 as a string
        return self.check(value)

    def check(self, value: Any) -> Any:
        """``value`` if it has the parameter's type.

        Raises:
            UsageError: it has another type.
        """
        alternatives = _alternatives(self.annotation)
        if not all(name in _SIMPLE for name in alternatives):
            return value  # a list or tuple: the chapter's own configuration checks it
        if "float" in alternatives and isinstance(value, str):
            value = _as_float(value)
        allowed = tuple(kind for name in alternatives for kind in _SIMPLE[name])
        wrong_bool = isinstance(value, bool) and bool not in allowed
        if wrong_bool or not isinstance(value, allowed):
            raise UsageError(f"parameter {self.name} is {self.annotation}, got {value!r} ({type(value).__name__}).")
        return value


def _as_float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _alternatives(annotation: str) -> list[str]:
    return [part.strip() for part in annotation.split("|")]


def declared(notebook: nbformat.NotebookNode) -> dict[str, Parameter]:
    """The parameters a notebook takes, from its cell tagged ``parameters``.

    Raises:
        UsageError: there is not exactly one such cell, or it holds an assignment without a type.
    """
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UsageError(f"expected one cell tagged {TAG!r}, found {len(cells)}.")
    comments = _comments(cells[0].source)
    parameters: dict[str, Parameter] = {}
    for node in ast.parse(cells[0].source).body:
        if isinstance(node, ast.Assign):
            raise UsageError(f"parameter without a type in the parameters cell: {ast.unparse(node)}")
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            comment = comments.get(node.end_lineno or node.lineno, "")
            parameters[name] = Parameter(name, ast.unparse(node.annotation).strip("'\""), comment)
    return parameters


def _comments(source: str) -> dict[int, str]:
    """The comment on each line that has one, without its mark."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def read_budget(path: Path, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values of one budget file, checked against the parameters cell.

    Raises:
        UsageError: the file is not a flat mapping, or names or types do not fit.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a flat mapping of parameter: value.")
    return {name: _known(name, parameters, f"parameter in {path.name}").check(value) for name, value in content.items()}


def read_overrides(pairs: list[str], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """``["name=value", …]`` of the command line as typed values.

    Raises:
        UsageError: no ``=``, an unknown name (the nearest are named), or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"-p takes name=value, got {pair!r}.")
        values[name] = _known(name, parameters, "parameter").parse(text)
    return values


def _known(name: str, parameters: Mapping[str, Parameter], kind: str) -> Parameter:
    if name not in parameters:
        raise unknown(kind, str(name), parameters)
    return parameters[name]
