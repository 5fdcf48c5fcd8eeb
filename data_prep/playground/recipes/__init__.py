"""Recipes: named distributions over clips, composed from the same scenes, actors, voices and rules."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from .actions import Actions
from .base import LabelKind, Recipe
from .binding import Binding
from .boxes import Boxes
from .correspondence import Correspondence
from .labels import Labels
from .trajectories import Trajectories
from .travel import Travel
from .web import Web

__all__ = [
    "Actions",
    "Binding",
    "Boxes",
    "Correspondence",
    "LabelKind",
    "Labels",
    "Recipe",
    "Trajectories",
    "Travel",
    "Web",
    "make_recipe",
]

_BY_NAME: dict[str, type[Recipe]] = {
    "actions": Actions,
    "web": Web,
    "boxes": Boxes,
    "binding": Binding,
    "travel": Travel,
    "trajectories": Trajectories,
    "correspondence": Correspondence,
    "labels": Labels,
}


def make_recipe(name: str, **params: Any) -> Recipe:
    """The recipe ``name`` with its defaults overridden by ``params``.

    Raises:
        ValueError: unknown recipe or parameter (the nearest valid ones are named), or an invalid value.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown recipe {name!r}; choose one of {', '.join(_BY_NAME)}")
    known = [field.name for field in dataclasses.fields(_BY_NAME[name])]
    for param in params:
        if param not in known:
            near = difflib.get_close_matches(param, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"recipe {name!r} has no parameter {param!r}; {hint}")
    return _BY_NAME[name](**params)
