"""The playground: a small procedural audio-visual world, written as real video files, whose every factor is known.

It answers the question that real corpora cannot: *is the claim false when it should be?* What sight and sound share,
what is private to each and what is mere nuisance are separate knobs, and each clip carries its ground truth.

    folder = build_playground(Actions(), clips=400, seed=0)          # real .mp4 files with an index
    describe("actions")                                              # what can be asked, chance, and ceilings

A *recipe* is a distribution over scenes; the parts (shapes, motions, voices, places, event rules) are shared by all
recipes:

* ``actions``: a place that stays, events that change, a direction that only time reveals;
* ``web``: the same with sound tracks that do not belong, music, or none;
* ``correspondence``: one event a clip, half of the clips with another's sound, to be found;
* ``boxes``: a few objects with exact boxes, one of which sounds;
* ``binding``: equal I pictures; which of two shapes moves is told by I and P pictures together only;
* ``travel``: one sprite that travels or swings, under a camera that rests or pans;
* ``trajectories``: a thing crosses the picture, and opposite classes hold the same pictures in another order;
* ``labels``: a class that both streams share, under nuisances of each that are easier to cluster.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from .build import build_playground, render_clip
from .recipes import (
    Actions,
    Binding,
    Boxes,
    Correspondence,
    LabelKind,
    Labels,
    Recipe,
    Trajectories,
    Travel,
    Web,
    make_recipe,
)
from .scene import Actor, Clip, Scene
from .truth import analytic_flow

__all__ = [
    "Actions",
    "Actor",
    "Binding",
    "Boxes",
    "Clip",
    "Correspondence",
    "LabelKind",
    "Labels",
    "Recipe",
    "Scene",
    "Trajectories",
    "Travel",
    "Web",
    "analytic_flow",
    "build_playground",
    "describe",
    "make_recipe",
    "render_clip",
]


def describe(recipe: str | Recipe, **params: Any) -> pd.DataFrame:
    """What can be asked of a recipe's clips, and how well it can be answered.

    Args:
        recipe: a recipe, or its name with ``params``.
        **params: parameters of the named recipe.

    Returns:
        One row a label kind, indexed by kind: ``timed`` (holds for a part of the clip), ``classes`` (their number),
        ``chance``, ``sight`` and ``sound`` (accuracy of the best answer from that modality alone) and ``names``.
    """
    made = make_recipe(recipe, **params) if isinstance(recipe, str) else recipe
    rows = [(k.kind, k.timed, len(k.classes), k.chance, k.sight, k.sound, ", ".join(k.classes)) for k in made.kinds()]
    columns = ["kind", "timed", "classes", "chance", "sight", "sound", "names"]
    return pd.DataFrame(rows, columns=columns).set_index("kind")
