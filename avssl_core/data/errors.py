"""What can be wrong with the clips of a corpus."""

from __future__ import annotations

from collections.abc import Iterable

# Reasons shown in a message; the rest is counted.
_SHOWN = 5


def listed(reasons: Iterable[tuple[str, str]]) -> str:
    """``(uri, reason)`` pairs as an indented list, cut off after a few."""
    pairs = list(reasons)
    lines = [f"  {uri}: {reason}" for uri, reason in pairs[:_SHOWN]]
    if len(pairs) > _SHOWN:
        lines.append(f"  … and {len(pairs) - _SHOWN} more")
    return "\n".join(lines)


class CorpusError(ValueError):
    """An index that cannot be used: missing columns, impossible values, nothing in it."""


class NoUsableClipsError(CorpusError):
    """Every clip was refused; the message lists reasons. ``refused`` holds all ``(uri, reason)`` pairs."""

    def __init__(self, message: str, refused: list[tuple[str, str]]) -> None:
        super().__init__(f"{message}\n{listed(refused)}" if refused else message)
        self.refused = refused


class ClipError(ValueError):
    """A clip that the decoded cache could not decode, or a window outside it."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class TooManyBadClipsError(RuntimeError):
    """More clips failed to decode than the stated share; training on what is left would be another experiment.

    Built from its message alone, so that it keeps its class on the way out of a worker process.

    Attributes:
        bad: ``(uri, reason)`` pairs, where the error was raised in this process.
    """

    def __init__(self, message: str, bad: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.bad = list(bad)

    @classmethod
    def counted(cls, bad: list[tuple[str, str]], total: int, max_share: float) -> TooManyBadClipsError:
        """The error for ``bad`` clips out of ``total``, of which a share of ``max_share`` was allowed."""
        return cls(
            f"{len(bad)} of {total} clips failed to decode, more than the allowed share of {max_share:g}. Repair or "
            f"remove the files (a new index leaves them out), or raise max_bad_share:\n{listed(bad)}",
            bad,
        )
