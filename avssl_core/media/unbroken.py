"""A whole sound track in order, a little at a time: for what reads a file from beginning to end.

:class:`~avssl_core.media.sound.SoundTrack` reads stretches of known length. Here the sound is handed out as far as it
is wanted, so that a film's need not be in memory at once; mixed and placed in time in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from avssl_core.media.errors import DecodeError, NoAudioError
from avssl_core.media.sound import Samples, SoundTrack, mono
from avssl_core.media.tracks import is_flush, stamp

# Containers round times to milliseconds or worse; blocks that meet within this are one continuous sound.
_JITTER_S = 0.005


class UnbrokenSound:
    """Mono samples at their own rate; gaps between blocks are silence, as in every player.

    Args:
        track: at any position; nobody else may read from its container meanwhile.
        origin_s: time 0 on the container's clock (the first picture's); what lies before is left out.

    Attributes:
        rate: samples a second.

    Raises:
        NoAudioError: there is not one sample from time 0 on.
        DecodeError: damaged.
    """

    def __init__(self, track: SoundTrack, origin_s: float) -> None:
        self._track, self._origin_s = track, origin_s
        self.name = track.name
        self.rate = 0
        self._blocks = self._placed()
        self._ahead = next(self._blocks, None)
        if self._ahead is None:
            reason = "has a sound track without a single sample after its first picture; leave it out"
            raise NoAudioError(self.name, reason)
        self._position = self._ahead[0]

    def until(self, time_s: float) -> tuple[int, Samples]:
        """What comes before a time in seconds and was not handed out yet.

        Returns:
            The first sample's number, counted from time 0, and the samples ``(L,)``; empty before the sound begins and
            after it has ended.

        Raises:
            DecodeError: damaged, cut off, or the sample rate changes.
        """
        first, stop, parts = self._position, round(time_s * self.rate), []
        while self._position < stop and self._ahead is not None:
            start, block = self._ahead
            if start > self._position:
                part = np.zeros(min(start, stop) - self._position, np.float32)
            else:  # what overlaps the block before was handed out with that
                left = block[self._position - start :]
                part = left[: stop - self._position]
                if len(part) == len(left):
                    self._ahead = next(self._blocks, None)
            parts.append(part)
            self._position += len(part)
        return first, np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _placed(self) -> Iterator[tuple[int, Samples]]:
        """Blocks with the number of their first sample, from time 0 on."""
        first_s = max(self._origin_s, self._track.start_s)  # before its own start a track has an encoder's priming
        expected_s: float | None = None
        for stamped_s, rate, block in self._decoded():
            if rate != (self.rate or rate):
                reason = f"the sample rate changes from {self.rate} to {rate} Hz; re-encode its sound, or leave it out"
                raise DecodeError(self.name, reason)
            self.rate = rate
            close = expected_s is not None and (stamped_s is None or abs(stamped_s - expected_s) <= _JITTER_S)
            at_s = expected_s if close else stamped_s
            at_s = self._track.start_s if at_s is None else at_s
            expected_s = at_s + len(block) / rate
            start, least = round((at_s - self._origin_s) * rate), round((first_s - self._origin_s) * rate)
            if start + len(block) > least:
                yield max(start, least), block[max(0, least - start) :]

    def _decoded(self) -> Iterator[tuple[float | None, int, Samples]]:
        """Time on the container's clock, rate and samples of every block."""
        track = self._track
        track.seek(-math.inf)
        for packet in track.packets():
            at = stamp(packet)
            if packet.is_corrupt:
                reason = f"the sound is cut off at {(at or 0) * track.tick_s:.3f} s; copy the file again"
                raise DecodeError(self.name, reason)
            for frame in track.decode(packet) if packet.size or is_flush(packet) else []:
                at = stamp(frame)
                yield None if at is None else at * track.tick_s, frame.sample_rate, mono(frame)
