"""Names people type (claims, arms, keys, metrics): a wrong one is an error that says which were meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, valid: Iterable[object]) -> str:
    """Message for a name that does not exist: the nearest valid ones first, then every one.

    Args:
        kind: what was named, in the singular: ``"claim"``, ``"arm"``, ``"key of a claim"``.
        name: what was given.
        valid: every name that would have been accepted.

    Returns:
        The text for an exception, ending in a full stop.
    """
    names = [str(each) for each in valid]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    nearest = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else "."
    return f"unknown {kind} {str(name)!r}{nearest} Valid: {', '.join(names) or 'none'}."
