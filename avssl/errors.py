"""Errors that are the caller's to mend: the command line prints them without a traceback and exits with code 2."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(Exception):
    """A command that cannot be carried out as given; the message says what to write instead."""


def unknown(kind: str, given: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist: it names the nearest valid ones first.

    Args:
        kind: what was named, e.g. ``"chapter"``.
        given: the name that does not exist.
        valid: every name that would have been accepted.
    """
    from avssl_core.reporting.names import unknown_name  # here: importing the room takes a second

    return UsageError(unknown_name(kind, given, valid))
