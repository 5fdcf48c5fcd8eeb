"""Pictures at asked times: demux a little, decide which frames are nearest, decode only what those need.

Loaders commonly decode from a key frame and compare time stamps as frames arrive, so every frame up to and inside the
window is decoded and most are thrown away. The packets' presentation times are known before any decoding. We choose
first, then let the decoder skip pictures that nothing refers to (most B pictures) unless they were chosen, and stop at
the last chosen one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet

from avssl_core.media.errors import DecodeError, WindowError
from avssl_core.media.tracks import RETREATS, Run, Track, is_flush, stamp

# No codec in use holds back more pictures than this between decoding and display order (H.264 and HEVC: 16).
_MAX_REORDER = 17
# Of two equally near frames the earlier one is taken; within this many ticks, rounding cannot decide.
_TIE = 1e-3

Times: TypeAlias = npt.NDArray[np.float64]


class PictureTrack(Track):
    """Random access to the pictures of one stream.

    Args:
        container: the open container.
        stream: its video stream.
        name: the source, for messages.
        threads: decoder threads. One is best inside data workers, which are parallel already.
    """

    def __init__(self, container: InputContainer, stream: Any, name: str, *, threads: int = 1) -> None:
        super().__init__(container, stream, name)
        stream.codec_context.thread_count = threads
        if threads != 1:
            stream.codec_context.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.interval_s = 1.0 / float(rate) if rate else 0.04
        self._codec = stream.codec_context.name
        # AVI stores no presentation times. libav makes some up, wrongly where pictures are reordered.
        self._untimed = container.format.name == "avi" and stream.codec_context.has_b_frames

    def nearest(self, times_s: Times) -> list[av.VideoFrame]:
        """The frame nearest to each of some ascending times on the container's clock; neighbours may share one.

        Raises:
            WindowError: a time lies outside the track.
            DecodeError: a frame that is needed is damaged or missing.
        """
        ticks = times_s / self.tick_s
        for retreat in RETREATS:
            run = self._run(ticks, self.seek(float(times_s[0]) - retreat))
            frames = None
            if run.packets and (run.from_start or (stamp(run.packets[0]) or 0) <= ticks[0]):
                frames = self._decode_chosen(run, ticks) or self._decode_every(run, ticks)
            if frames is not None:
                return frames
            if run.from_start:
                break
        reason = f"no picture can be decoded at {times_s[0]:.3f} s; the file is truncated or damaged: leave it out"
        raise DecodeError(self.name, reason)

    def paced(self, start_s: float, fps: float, until_s: float) -> Iterator[av.VideoFrame]:
        """Every picture of the file, re-timed: the frame nearest to ``start_s + k / fps``, for k = 0, 1, …

        Decodes in order from the beginning and stops at ``until_s`` or the end of the track, whichever comes first.
        """
        step, index, previous, last = 1.0 / fps, 0, None, 0.0
        for at, frame in self._every():
            middle = 0.5 * (last + at) + _TIE * self.tick_s
            while previous is not None and start_s + index * step < min(middle, until_s):
                yield previous
                index += 1
            previous, last = frame, at
            if at > until_s:
                return
        if previous is None:
            raise DecodeError(self.name, "not one picture can be decoded; the file is damaged: leave it out")
        self._require_complete(last)
        slack = max(0.5 * self.interval_s, self.interval_s - 0.5 * step)
        while start_s + index * step < min(last + slack, until_s):
            yield previous
            index += 1

    def _every(self) -> Iterator[tuple[float, Any]]:
        """``(time, frame)`` of each picture from the first, in display order."""
        self.seek(self.start_s)
        run, previous = Run(from_start=True), None
        for frame in self._shown(self._whole_packets(run)):
            if run.ended and previous is not None and self._cut_off(run, np.asarray([previous, frame.pts])):
                raise self._truncated(previous)
            previous = frame.pts
            yield frame.pts * self.tick_s, frame

    def _whole_packets(self, run: Run) -> Iterator[Packet[Any]]:
        """Packets to the end of the file; the run notes how many they were, and the first and last of them."""
        for packet in self.packets():
            if packet.is_corrupt:
                raise self._truncated(stamp(packet) or 0)
            if packet.size:
                run.packets[1:] = [packet]
                run.count += 1
                yield packet
        run.ended = True

    def _shown(self, packets: Iterable[Packet[Any]]) -> Iterator[Any]:
        """Decode packets and drain the decoder; every frame comes with its presentation time.

        Where the container has none to offer, count: pictures come out in display order, as many as go in and a fixed
        number of packets late, so the n-th gets the n-th packet's time.
        """
        entered: list[int | None] = []
        delay = None
        for packet in chain(packets, [None]):
            drained = 0 if packet is not None else 1
            if packet is not None:
                entered.append(packet.dts if self._untimed else stamp(packet))
            for extra, frame in enumerate(self.decode(packet)):
                position = len(entered) - 1 + drained + extra
                delay = position if delay is None else delay
                if self._untimed or frame.pts is None:
                    frame.pts = entered[min(position - delay, len(entered) - 1)]
                if frame.pts is None:
                    remedy = "remux it with `ffmpeg -fflags +genpts`"
                    raise DecodeError(self.name, f"holds a picture without a time stamp; {remedy}")
                self._require_whole(frame)
                yield frame

    def _run(self, ticks: Times, from_start: bool) -> Run:
        """Packets from a key packet to the first one after which no nearer picture can come."""
        run, after, beyond = Run(from_start=from_start), np.inf, 0
        for packet in self.packets():
            if is_flush(packet) or packet.is_corrupt:
                run.ended, run.damaged = True, packet.is_corrupt
                break
            if not packet.size or not (run.packets or packet.is_keyframe):
                continue
            run.packets.append(packet)
            run.count += 1
            at = stamp(packet)
            if at is not None and at > ticks[-1]:
                after, beyond = min(after, at), beyond + 1
                # No later packet is shown before it is decoded, so none can come nearer than `after`.
                settled = packet.pts is not None and packet.dts is not None and packet.dts >= after
                if beyond >= _MAX_REORDER or (settled and not self._untimed):
                    break
        return run

    def _decode_chosen(self, run: Run, ticks: Times) -> list[av.VideoFrame] | None:
        """Choose by the packets' presentation times and decode those; ``None`` where the packets do not tell."""
        if self._untimed or any(packet.pts is None for packet in run.packets):
            return None
        key = run.packets[0].pts or 0
        shown = [p.pts for p in run.packets if p.pts is not None and p.pts >= key and self._visible(p)]
        stamps = np.sort(np.asarray(shown, dtype=np.int64))
        if run.ended:
            stamps = self._certain(run, stamps)
        if not len(stamps):
            return None
        self._require_inside(ticks, run, stamps[0], stamps[-1])
        chosen = stamps[_nearest(stamps, ticks)].tolist()
        found = self._decode_run(run, set(chosen))
        return [found[at] for at in chosen] if found is not None else None

    def _decode_run(self, run: Run, wanted: set[int]) -> dict[int, av.VideoFrame] | None:
        """Decode until all wanted frames are out, skipping what nothing refers to; ``None`` if one stays missing."""
        found: dict[int, av.VideoFrame] = {}
        context, skipping, skips = self.stream.codec_context, "DEFAULT", self.stream.codec_context.has_b_frames
        last = max(i for i, packet in enumerate(run.packets) if packet.pts in wanted)
        for packet in [*run.packets[: last + 1], None]:
            skip = "DEFAULT" if packet is None or packet.pts in wanted else "NONREF"
            if skips and skip != skipping:
                context.skip_frame = skipping = skip
            for frame in self.decode(packet):
                if frame.pts is not None and frame.pts >= run.packets[0].pts:
                    self._require_whole(frame)
                if frame.pts in wanted:
                    found[frame.pts] = frame
            if len(found) == len(wanted):
                break
        context.skip_frame = "DEFAULT"
        return found if len(found) == len(wanted) else None

    def _decode_every(self, run: Run, ticks: Times) -> list[av.VideoFrame] | None:
        """Choose among the frames that really come out: for packets without presentation times or without pictures."""
        if not run.from_start and (self._untimed or any(packet.pts is None for packet in run.packets)):
            return None  # frames without times of their own can only be counted from the first
        self.stream.codec_context.flush_buffers()
        kept: list[Any] = []
        for frame in self._shown(run.packets):
            if kept and frame.pts <= ticks[0]:
                kept.clear()  # both lie before the window and this one is nearer
            kept.append(frame)
            if frame.pts > ticks[-1]:
                break
        if not kept or (not run.from_start and kept[0].pts > ticks[0]):
            return None
        stamps = np.asarray([frame.pts for frame in kept], dtype=np.int64)
        self._require_inside(ticks, run, stamps[0], stamps[-1])
        return [kept[i] for i in _nearest(stamps, ticks)]

    def _visible(self, packet: Packet[Any]) -> bool:
        """Whether a packet holds a picture to be shown, not one cut by an edit list or an alternate reference."""
        if packet.is_discard:
            return False
        # RFC 6386, 9.1: bit 4 of a VP8 frame is show_frame. Other codecs hide such frames inside a shown packet.
        return self._codec != "vp8" or bool(memoryview(packet)[0] & 0x10)

    def _require_whole(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            at = (stamp(frame) or 0) * self.tick_s
            reason = f"the picture at {at:.3f} s is damaged and the decoder could only guess it: leave the file out"
            raise DecodeError(self.name, reason)

    def _certain(self, run: Run, stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """At the end of a file that was cut off, the stamps between which no picture can be missing.

        What was cut off is shown after the last packet is decoded, but maybe before pictures that were decoded earlier.
        """
        run.damaged = run.damaged or self._cut_off(run, stamps)
        last = run.packets[-1].dts
        return stamps[stamps <= last] if run.damaged and last is not None else stamps

    def _cut_off(self, run: Run, stamps: npt.NDArray[np.int64]) -> bool:
        """Whether packets are missing from the end of a run to the end of the file.

        An MP4's sample table tells. Elsewhere a hole among the pictures that are shown after the last packet is decoded
        does, because the encoder would have put a picture there.
        """
        entries, first, last = self.stream.index_entries, run.packets[0].dts, run.packets[-1].dts
        if self.container.format.name.startswith("mov") and len(entries) and first is not None:
            return bool(len(entries) - entries.search_timestamp(first, any_frame=True) > run.count)
        if last is None:
            return False
        return bool((np.diff(stamps[stamps >= last]) > 1.5 * self.interval_s / self.tick_s).any())

    def _truncated(self, at: int) -> DecodeError:
        reason = f"truncated at {at * self.tick_s:.3f} s; copy it again, or pass max_s to take what is there"
        return DecodeError(self.name, reason)

    def _require_complete(self, last_s: float) -> None:
        if self.header_end_s is not None and last_s + 2.5 * self.interval_s < self.header_end_s:
            end = last_s + self.interval_s
            reason = (
                f"ends at {end:.3f} s although its header promises {self.header_end_s:.3f} s; truncated, or a wrong "
            )
            raise DecodeError(self.name, reason + "header: copy it again, or pass max_s to take what is there")

    def _require_inside(self, ticks: Times, run: Run, first: int, last: int) -> None:
        """Every asked time must be the nearest time of a real frame: see :meth:`MediaReader.frames`."""
        half = 0.5 * self.interval_s / self.tick_s
        length = max(run.packets[-1].duration or 0, 2 * half)
        asked = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
        slack = max(half, length - 0.5 * asked)
        early, late = ticks[0] < first - half, run.ended and ticks[-1] > last + slack
        if not early and not late:
            return
        span = f"{ticks[0] * self.tick_s:.3f}–{ticks[-1] * self.tick_s:.3f} s"
        if late and run.damaged:
            reason = f"the file is cut off at {last * self.tick_s:.3f} s; pictures were asked at {span}: copy it again"
            raise DecodeError(self.name, reason)
        lies = (
            f"pictures from {first * self.tick_s:.3f} s" if early else f"the last picture at {last * self.tick_s:.3f} s"
        )
        raise WindowError(self.name, f"pictures were asked at {span}, but the file has {lies}; ask for less")


def _nearest(stamps: npt.NDArray[np.int64], ticks: Times) -> npt.NDArray[np.intp]:
    """Index of the nearest of some ascending stamps to each time; the earlier one where two are equally near."""
    after = np.clip(np.searchsorted(stamps, ticks), 1, max(1, len(stamps) - 1))
    before = after - 1
    after = np.minimum(after, len(stamps) - 1)
    return np.where(ticks - stamps[before] <= stamps[after] - ticks + 2 * _TIE, before, after)
