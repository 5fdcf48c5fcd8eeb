"""Captions: what a person would say happens in a scene, from a small English template."""

from __future__ import annotations

from .scene import Actor, Scene

VERBS = {"hop": "hops", "sway": "sways", "spin": "spins", "throb": "throbs", "orbit": "circles", "rest": "lies still"}
WAYS = {
    "grow": "coming nearer",
    "shrink": "going away",
    "right": "moving right",
    "left": "moving left",
    "up": "rising",
    "down": "sinking",
}


def phrase(actor: Actor) -> str:
    """``a star hops, coming nearer``."""
    words = f"a {actor.shape} {VERBS[actor.motion.programme]}"
    return words if actor.direction is None else f"{words}, {WAYS[actor.direction]}"


def caption(scene: Scene) -> str:
    """One sentence a scene, in the order of the actors; later ones follow a *then*, repetitions are said once."""
    parts: list[str] = []
    previous: Actor | None = None
    for actor in scene.actors:
        words = phrase(actor)
        if parts and words == parts[-1].removeprefix("then "):
            continue
        follows = previous is not None and actor.start_s >= previous.end_s - 1e-6
        parts.append(f"then {words}" if follows else words)
        previous = actor
    joined = "; ".join(parts)
    return joined[:1].upper() + joined[1:] + "." if joined else ""
