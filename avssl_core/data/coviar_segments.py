"""Which picture CoViAR takes from a video: the middle of a segment in a test, any of a range in training.

CoViAR (Wu et al., CVPR 2018) samples as temporal segment networks do: a video is cut into segments of equal length and
gives one picture of each, found by its group of pictures and its place therein. Streams of motion and of residuals have
nothing to take from an I-frame; the release counts them from the second picture on, and where the draw hits an I-frame
it takes the last P-frame of the group before. IMRNet's clips are not drawn so: see
:class:`~avssl_core.data.GopDataset`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

CoviarStream = Literal["iframe", "motion", "residual"]
COVIAR_STREAMS: tuple[CoviarStream, ...] = ("iframe", "motion", "residual")  # in the order of the release's codes


class GopPlace(NamedTuple):
    """A picture of a video: group of pictures, from 0, and place in it; 0 is the I-frame."""

    gop: int
    position: int


def segment_range(frames: int, segments: int, segment: int, stream: CoviarStream) -> tuple[int, int]:
    """Pictures that a segment may give in training, from the first to before the last, at least one.

    Args:
        frames: pictures of the video, as the loader reports them.
        segments: how many the video is cut into.
        segment: which one, from 0.
        stream: what is taken of a picture.

    Raises:
        ValueError: for a segment that does not exist, an unknown stream, or a video too short to give a picture.
    """
    length, skipped = _segment_length(frames, segments, segment, stream)
    begin, end = round(length * segment), round(length * (segment + 1))
    return begin + skipped, max(end, begin + 1) + skipped


def segment_centre(frames: int, segments: int, segment: int, stream: CoviarStream, *, gop_size: int = 12) -> GopPlace:
    """The picture that a segment gives in a test; arguments and errors as :func:`segment_range`."""
    length, skipped = _segment_length(frames, segments, segment, stream)
    return gop_place(round(length * (segment + 0.5)) + skipped, stream, gop_size=gop_size)


def gop_place(frame: int, stream: CoviarStream, *, gop_size: int = 12) -> GopPlace:
    """Where a picture, counted from 0, stands: always an I-frame for that stream, never one for the others."""
    gop, position = divmod(frame, gop_size)
    if stream == "iframe":
        return GopPlace(gop, 0)
    return GopPlace(gop, position) if position else GopPlace(gop - 1, gop_size - 1)


def _segment_length(frames: int, segments: int, segment: int, stream: CoviarStream) -> tuple[float, int]:
    """Pictures of a segment, which need not be whole, and how many at the beginning of the video are left out."""
    if stream not in COVIAR_STREAMS:
        raise ValueError(f"unknown stream {stream!r}: use one of {', '.join(COVIAR_STREAMS)}")
    skipped = 0 if stream == "iframe" else 1
    if not 0 <= segment < segments or frames < 1 + skipped:
        raise ValueError(
            f"segment={segment} of {segments} in {frames} pictures: count segments from 0, in at least {1 + skipped}"
        )
    return (frames - skipped - 1) / segments, skipped
