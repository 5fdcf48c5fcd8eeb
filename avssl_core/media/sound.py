"""Samples at asked times: mono, properly resampled, on the picture's clock.

Two things are commonly skipped. A transform codec's first block after a seek is not the recorded sound (its overlap is
missing), so decoding starts a little earlier than the window; and AAC starts with a block of priming that the
container's edit list cuts, so sample positions must come from time stamps, never from counting decoded blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt

from avssl_core.media.errors import DecodeError, NoAudioError, WindowError
from avssl_core.media.resample import resample
from avssl_core.media.tracks import RETREATS, Track, is_flush, stamp

Samples: TypeAlias = npt.NDArray[np.float32]

# Decoded before the window and thrown away: MP3 needs its bit reservoir of up to nine frames; Opus at least 80 ms (RFC
# 7845, 4.6), after which it is still 4 % of full scale off, and 0.1 % after 200 ms; the rest one block of overlap.
_PREROLL_S = {"mp3": 0.3, "mp3float": 0.3, "opus": 0.2, "libopus": 0.2}
_DEFAULT_PREROLL_S = 0.1
# Resampling needs neighbours on both sides of the window: this many samples at the lower of the two rates.
_FILTER_REACH = 40
# Matroska rounds times to milliseconds; blocks that meet within this are one continuous sound.
_JITTER_S = 0.005


@dataclass
class Sound:
    """A stretch of mono sound at its own rate.

    Attributes:
        samples: shape ``(L,)``.
        rate: samples a second.
        start_s: time of the first sample on the container's clock.
        ended: the track holds nothing later.
        damaged: it ended at a packet that the file holds only in part.
    """

    samples: Samples
    rate: int
    start_s: float
    ended: bool
    damaged: bool

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.samples) / self.rate

    def at(self, start_s: float, *, num_samples: int, sample_rate: int) -> Samples:
        """Cut and resample; silence where the stretch has nothing."""
        reach = _FILTER_REACH / min(sample_rate, self.rate)
        first = max(0, math.floor((start_s - reach - self.start_s) * self.rate))
        last = math.ceil((start_s + num_samples / sample_rate + reach - self.start_s) * self.rate)
        if sample_rate != self.rate:
            first = _aligned(first, (start_s - self.start_s) * sample_rate, sample_rate / self.rate)
        near = self.samples[first : max(first, last)]
        if sample_rate != self.rate and len(near):
            near = resample(near, self.rate, sample_rate)
        skip = round((start_s - self.start_s - first / self.rate) * sample_rate)
        out = np.zeros(num_samples, np.float32)
        inside = near[max(0, skip) : max(0, skip + num_samples)]
        out[max(0, -skip) : max(0, -skip) + len(inside)] = inside
        return np.clip(out, -1.0, 1.0, out=out)


class SoundTrack(Track):
    """Random access to the samples of one stream."""

    def window(self, start_s: float, *, num_samples: int, sample_rate: int, tolerance_s: float) -> Samples:
        """Samples from a time on the container's clock.

        Gaps between packets are silence, as in every player; so is up to ``tolerance_s`` beyond an end of the track.

        Returns:
            float32 of shape ``(num_samples,)`` in [−1, 1].

        Raises:
            WindowError: more than the tolerance lies outside the track.
            NoAudioError: the track has no samples at all.
            DecodeError: samples that are needed are damaged or missing.
        """
        end_s = start_s + num_samples / sample_rate
        reach = _FILTER_REACH / min(sample_rate, self.stream.codec_context.sample_rate or sample_rate)
        sound = self._between(start_s - reach, end_s + reach)
        self._require_inside(start_s, end_s, sound, tolerance_s)
        return sound.at(start_s, num_samples=num_samples, sample_rate=sample_rate)

    def whole(self, start_s: float, *, sample_rate: int, until_s: float) -> Samples:
        """Samples from a time to the end of the track or ``until_s``; silent until the track begins."""
        sound = self._between(-math.inf, until_s)
        if sound.damaged and sound.end_s < until_s:
            reason = f"the sound is cut off at {sound.end_s:.3f} s; copy the file again, or ask for less than that"
            raise DecodeError(self.name, reason)
        end_s = sound.end_s
        if self.header_end_s is not None and 0 < end_s - self.header_end_s < self._preroll_s:
            end_s = self.header_end_s  # the rest of the last block is the encoder's padding
        count = round((min(end_s, until_s) - start_s) * sample_rate)
        return sound.at(start_s, num_samples=max(0, count), sample_rate=sample_rate)

    @property
    def _preroll_s(self) -> float:
        context = self.stream.codec_context
        return max(2 * self._block_s, _PREROLL_S.get(context.name, _DEFAULT_PREROLL_S))

    @property
    def _block_s(self) -> float:
        context = self.stream.codec_context
        return context.frame_size / context.sample_rate if context.sample_rate else 0.0

    def _between(self, first_s: float, last_s: float) -> Sound:
        """At least the samples from one time to another, as far as the track has them."""
        for retreat in RETREATS:
            sound = self._from(first_s - self._preroll_s - retreat, first_s, last_s)
            if sound is not None:
                return sound
        if self.header_end_s is not None and self.header_end_s > self.start_s:
            reason = "none of the sound that its header promises is there; the file is truncated: copy it again"
            raise DecodeError(self.name, reason)
        raise NoAudioError(
            self.name, "has a sound track without a single sample; leave it out or ask for pictures only"
        )

    def _from(self, seek_s: float, first_s: float, last_s: float) -> Sound | None:
        """The same, decoding from a given time; ``None`` if the decoder could not start early enough there."""
        from_start = self.seek(seek_s)
        blocks: list[tuple[float, Samples]] = []
        rate, ended, damaged = 0, True, False
        for packet in self.packets():
            if packet.is_corrupt:
                damaged = True
                break
            at = stamp(packet)
            needed = at is None or (at + (packet.duration or 0)) * self.tick_s > first_s
            try:
                frames = self.decode(packet) if packet.size or is_flush(packet) else []
            except DecodeError:
                if needed and from_start:
                    raise
                if needed:
                    return None
                continue  # in the run-up a decoder may lack what a packet refers to
            for frame in frames:
                rate = frame.sample_rate
                blocks.append((self._place(frame, blocks, rate), mono(frame)))
            if blocks and not from_start and blocks[0][0] > first_s:
                return None
            if blocks and blocks[-1][0] + len(blocks[-1][1]) / rate >= last_s:
                ended = False
                break
        return Sound(*self._cut(blocks, rate, first_s), ended, damaged) if blocks else None

    def _cut(self, blocks: list[tuple[float, Samples]], rate: int, first_s: float) -> tuple[Samples, int, float]:
        """Samples, rate and time of the blocks from ``first_s`` on, without what precedes the track's first sample."""
        first_s = max(first_s, self.start_s)
        kept = [(at, block) for at, block in blocks if at + len(block) / rate > first_s] or blocks[-1:]
        start_s = kept[0][0]
        priming = max(0, round((self.start_s - start_s) * rate))
        return _joined(kept, rate)[priming:], rate, start_s + priming / rate

    def _place(self, frame: Any, blocks: list[tuple[float, Samples]], rate: int) -> float:
        """Time of a block: right behind the one before it unless its stamp clearly disagrees."""
        at = stamp(frame)
        expected = blocks[-1][0] + len(blocks[-1][1]) / rate if blocks else None
        if at is None:
            return self.start_s if expected is None else expected
        stamped = at * self.tick_s
        close = expected is not None and abs(stamped - expected) <= _JITTER_S
        return expected if close and expected is not None else stamped

    def _require_inside(self, start_s: float, end_s: float, sound: Sound, tolerance_s: float) -> None:
        begins_s = sound.start_s
        if begins_s - self.start_s <= self._block_s + _JITTER_S:
            begins_s = self.start_s  # decoders lose the first block where the container does not mark it as priming
        early, late = begins_s - start_s > tolerance_s, sound.ended and end_s - sound.end_s > tolerance_s
        if not early and not late:
            return
        if late and sound.damaged:
            reason = (
                f"the sound is cut off at {sound.end_s:.3f} s; asked for {start_s:.3f}–{end_s:.3f} s: copy it again"
            )
            raise DecodeError(self.name, reason)
        has = f"begins at {sound.start_s:.3f} s" if early else f"ends at {sound.end_s:.3f} s"
        raise WindowError(self.name, f"sound was asked from {start_s:.3f} to {end_s:.3f} s, but it {has}; ask for less")


def mono(frame: av.AudioFrame) -> Samples:
    """Mean over the channels but the subwoofer's; unlike a sum it cannot clip, whatever the layout."""
    channels = frame.layout.nb_channels
    if channels == 1 and frame.format.name == "fltp":  # most of what we read; a view, without two copies
        return np.frombuffer(memoryview(frame.planes[0]), np.float32, count=frame.samples)
    data = frame.to_ndarray()  # (C, L) planar, (1, L·C) interleaved
    if not frame.format.is_planar:
        data = data.reshape(-1, channels).T  # (C, L)
    if data.dtype.kind == "u":
        data = (data.astype(np.float32) - 128.0) / 128.0
    elif data.dtype.kind == "i":
        data = data.astype(np.float32) / float(1 << (8 * data.dtype.itemsize - 1))
    if len(data) == 1:
        return np.asarray(data[0], dtype=np.float32)
    if len(data) > 2:
        data = data[[i for i, channel in enumerate(frame.layout.channels) if channel.name != "LFE"]]
    return np.asarray(data.mean(axis=0, dtype=np.float32))


def _aligned(first: int, asked: float, ratio: float) -> int:
    """The sample at or shortly before ``first`` from which resampling hits the asked position ``asked`` best.

    Output samples lie on a grid that begins at the first input sample, so beginning elsewhere shifts the grid by a
    fraction of a sample. The grids repeat after at most 640 inputs for the rates in use (44.1 kHz to 48 kHz: 147).
    """
    starts = np.arange(max(0, first - 640), first + 1)
    offset = asked - starts * ratio
    miss = np.abs(offset - np.round(offset))
    return int(starts[np.flatnonzero(miss <= miss.min() + 1e-6)[-1]])


def _joined(blocks: list[tuple[float, Samples]], rate: int) -> Samples:
    """One array from blocks at their times; silence between blocks that do not meet."""
    starts = [round((at - blocks[0][0]) * rate) for at, _ in blocks]
    ends = [start + len(block) for start, (_, block) in zip(starts, blocks, strict=True)]
    if starts[1:] == ends[:-1]:
        return np.concatenate([block for _, block in blocks])
    out = np.zeros(max(ends), np.float32)
    for start, (_, block) in zip(starts, blocks, strict=True):
        out[max(0, start) : max(0, start) + len(block)] = block[: len(out) - max(0, start)]
    return out
