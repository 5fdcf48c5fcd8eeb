"""What bad media gets: an error that names the file, what was expected and what to do.

A released loader commonly swallows a decoding error and returns another sample, or repeats the last frame until the
window is full. Both corrupt a run in silence. Here every such case is one of five errors; choosing a replacement clip
is the data room's decision, made in the open and counted.
"""

from __future__ import annotations


class MediaError(ValueError):
    """Base of everything that :mod:`avssl_core.media` raises about a file.

    Args:
        source: name of the file, tar member or byte string, as given by :func:`~avssl_core.media.source.describe`.
        reason: what was found, what was expected, and what to do about it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        # Without this an error from a data worker cannot be unpickled in the parent, and the worker seems to hang.
        return type(self), (self.source, self.reason)


class NotMediaError(MediaError):
    """The source is missing, empty, unreadable, or not a container that holds audio or video."""


class NoVideoError(MediaError):
    """Frames were asked of a source that has no picture."""


class NoAudioError(MediaError):
    """Samples were asked of a source that has no sound track, or one without a single decodable sample."""


class DecodeError(MediaError):
    """The container opened, but what the window needs is damaged or missing."""


class WindowError(MediaError):
    """The window asked for lies outside the file."""


class StructureError(MediaError):
    """The stream decodes, but is not built of the intra and predicted pictures that a compressed-domain read needs."""
