"""Random one-second clips from ten-second files: our reader beside plain sequential PyAV decoding and torchcodec.

    python benchmarks/clip_loading.py [--size 112] [--clips 48] [--rounds 5] [--workers 1 2]
    python benchmarks/clip_loading.py --profile          # where a clip's time goes, ours and torchcodec's

Every contestant returns the same batches: 16 RGB frames a clip at ``size`` × ``size`` and a log-mel spectrogram of one
second at 24 kHz, from the same files at the same moments, through the same ``DataLoader``. torchcodec runs in four
settings (seeking by its own scan or by the header; resizing while decoding or after) and each file kind is scored
against its best. Contestants take turns within a round, so a busy machine slows all alike; ratios are medians over the
rounds of (our clips a second / theirs), above 1 where ours is faster. Figures go to
``benchmarks/results/clip_loading.json``; those of ``--profile``, CPU milliseconds a clip by stage in one process, under
a key of their own there, beside what the last full run has left.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avssl_core.media import read_clip, reader, sound, tracks, write_clip
from avssl_core.media.convert import Converter
from avssl_core.transforms import LogMelSpectrogram

FRAMES, FPS, RATE, SECONDS = 16, 16, 24_000, 10
RESULT = Path(__file__).parent / "results" / "clip_loading.json"
Clip = tuple[Tensor, Tensor]  # frames (16, 3, S, S) uint8, waveform (24000,)
Figures = dict[str, dict[str, float]]  # contestant: clips_per_s, ours_over_this
Load = Callable[[str, float, int], Clip]

OPEN, REST, BATCH = "open and close the file", "everything in between", "log-mel and batch"
PACKETS = {"video": "find and read the pictures' packets", "audio": "find and read the sound's packets"}
DECODING = {"video": "decode pictures", "audio": "decode sound"}
COLOUR, RESAMPLING, UNWATCHED = "colour and size", "resample sound", "all of it, without the clock"
THEIR_PICTURES, THEIR_SOUND = "pictures: find, decode, colour", "sound: find, decode, resample"
STAGES = (
    OPEN, *PACKETS.values(), *DECODING.values(), THEIR_PICTURES, COLOUR, THEIR_SOUND, RESAMPLING, BATCH, REST, UNWATCHED
)  # fmt: skip
RIVAL = "torchcodec, approximate seek, resize after decoding"


def ours(path: str, start: float, size: int) -> Clip:
    clip = read_clip(path, start, num_frames=FRAMES, fps=FPS, size=(size, size), sample_rate=RATE)
    assert clip.waveform is not None
    return clip.frames, clip.waveform


def sequential_pyav(path: str, start: float, size: int) -> Clip:
    """What a first attempt looks like: decode from the beginning until the window is complete."""
    times = [start + k / FPS for k in range(FRAMES)]
    with av.open(path) as container:
        container.streams.video[0].thread_count = 1
        frames: list[np.ndarray] = []
        previous: av.VideoFrame | None = None
        for frame in container.decode(video=0):
            while (
                previous is not None and len(frames) < FRAMES and times[len(frames)] < (previous.time + frame.time) / 2
            ):
                frames.append(previous.reformat(size, size, "rgb24", threads=1).to_ndarray())
            previous = frame
            if len(frames) == FRAMES:
                break
    with av.open(path) as container:
        resampler, parts, first = av.AudioResampler("fltp", "mono", RATE), [], None
        for block in container.decode(audio=0):
            if block.time + block.samples / block.sample_rate < start:
                continue
            first = block.time if first is None else first
            block.pts = None
            parts += [part.to_ndarray()[0] for part in resampler.resample(block)]
            if sum(map(len, parts)) >= RATE + round((start - first) * RATE):
                break
    assert first is not None
    skip = max(0, round((start - first) * RATE))
    wave = np.concatenate(parts)[skip : skip + RATE]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(wave)


def torchcodec(seek_mode: str, *, resize_while_decoding: bool) -> Load:
    from torchcodec.decoders import AudioDecoder, VideoDecoder
    from torchcodec.transforms import Resize

    def load(path: str, start: float, size: int) -> Clip:
        transforms = [Resize((size, size))] if resize_while_decoding else None
        decoder = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, transforms=transforms)
        half = 0.5 / 25  # it returns the frame on display at a time, which is the nearest one half a frame earlier
        frames = decoder.get_frames_played_at([start + k / FPS + half for k in range(FRAMES)]).data
        if frames.shape[-2:] != (size, size):
            frames = F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True)
        sound = AudioDecoder(path, sample_rate=RATE, num_channels=1).get_samples_played_in_range(start, start + 1).data
        return frames.contiguous(), sound[0, :RATE]

    return load


def contestants(probe: str, size: int) -> dict[str, Load]:
    """All that load a first clip: torchcodec looks for FFmpeg's libraries only when it opens a file."""
    found: dict[str, Load] = {"ours": ours, "sequential PyAV": sequential_pyav}
    try:
        for mode in ("approximate", "exact"):
            for early in (True, False):
                name = f"torchcodec, {mode} seek, resize {'while' if early else 'after'} decoding"
                load = torchcodec(mode, resize_while_decoding=early)
                load(probe, 0.0, size)
                found[name] = load
    except Exception as error:  # a missing FFmpeg shows as RuntimeError, a missing package as ImportError
        print(f"torchcodec is left out, it does not load: {str(error).splitlines()[0]}")
    return found


def pictures(height: int, width: int, seed: int) -> np.ndarray:
    """Ten seconds of drifting soft texture with camera noise, ``(250, H, W, 3)``."""
    generator = np.random.default_rng(seed)
    small = torch.from_numpy(generator.integers(0, 256, (1, 3, 12, 16)).astype(np.float32))
    canvas = F.interpolate(small, size=(height + 250, width + 250), mode="bicubic")[0].clamp(0, 255).numpy()
    noise = generator.normal(0, 3, (16, height, width, 3)).astype(np.float32)
    frames = np.empty((SECONDS * 25, height, width, 3), np.uint8)
    for t in range(len(frames)):
        y, x = t, int(125 + 120 * np.sin(t / 20))
        view = canvas[:, y : y + height, x : x + width].transpose(1, 2, 0)
        frames[t] = np.clip(view + noise[generator.integers(16)], 0, 255)
    return frames


def tones(rate: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    at = np.arange(SECONDS * rate) / rate
    chord = sum(np.sin(2 * np.pi * hertz * at + at**2) for hertz in generator.uniform(100, 3000, 4))
    return (0.1 * chord + 0.02 * generator.standard_normal(len(at))).astype(np.float32)


def write_h264(path: Path, frames: np.ndarray, wave: np.ndarray, rate: int) -> None:
    """As data sets are usually re-encoded: x264's defaults, a key frame every 250, B frames, AAC."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "23"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.gop_size = 250
        audio = out.add_stream("aac", rate=rate, layout="mono")
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        block.sample_rate, block.pts = rate, 0
        out.mux(audio.encode(block))
        out.mux(audio.encode(None))


def make_files(folder: Path, count: int) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {"96x96 MPEG-4 GOP 12": [], "340x256 MPEG-4 GOP 12": [], "340x256 H.264 GOP 250": []}
    for seed in range(count):
        small, large = pictures(96, 96, seed), pictures(256, 340, seed)
        paths = [folder / f"{name}{seed}.mp4" for name in ("small", "large", "h264")]
        write_clip(paths[0], small, tones(16_000, seed), sample_rate=16_000)
        write_clip(paths[1], large, tones(44_100, seed), sample_rate=44_100, quantiser=4)
        write_h264(paths[2], large, tones(44_100, seed), 44_100)
        for kind, path in zip(kinds, paths, strict=True):
            kinds[kind].append(str(path))
    return kinds


class Clips(Dataset[Clip]):
    """The same random moments for every contestant."""

    def __init__(self, load: Load, paths: list[str], clips: int, size: int) -> None:
        generator = np.random.default_rng(0)
        self.load, self.size = load, size
        self.asked = [
            (paths[int(generator.integers(len(paths)))], generator.uniform(0, SECONDS - 1.1)) for _ in range(clips)
        ]

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> Clip:
        path, start = self.asked[index]
        return self.load(path, start, self.size)


class Collate:
    def __init__(self) -> None:
        self.log_mel = LogMelSpectrogram(sample_rate=RATE)

    def __call__(self, clips: list[Clip]) -> Clip:
        return torch.stack([frames for frames, _ in clips]), self.log_mel(torch.stack([wave for _, wave in clips]))


def agree(loads: dict[str, Load], paths: list[str], size: int) -> None:
    """All must return the same moments before anything is timed."""
    reference = [ours(path, start, size) for path, start in Clips(ours, paths, 4, size).asked]
    for name, load in loads.items():
        for (frames, wave), (other, heard) in zip(
            reference, map(Clips(load, paths, 4, size).__getitem__, range(4)), strict=True
        ):
            assert other.shape == (FRAMES, 3, size, size) and heard.shape == (RATE,), name
            assert (frames.float() - other.float()).abs().mean() < 6, f"{name} returns other pictures"
            assert torch.corrcoef(torch.stack([wave, heard]))[0, 1] > 0.95, f"{name} returns other sound"


def passes(loader: DataLoader[Clip], clips: int) -> Iterator[float]:
    """Clips a second of one pass after the other; the first, with the workers' start, is not counted."""
    list(loader)
    while True:
        start = time.perf_counter()
        for frames, spectrograms in loader:
            assert len(frames) == len(spectrograms)
        yield clips / (time.perf_counter() - start)


def compare(loads: dict[str, Load], paths: list[str], workers: int, args: argparse.Namespace) -> Figures:
    running = {}
    for name, load in loads.items():
        data = Clips(load, paths, args.clips, args.size)
        loader = DataLoader(
            data,
            batch_size=args.batch,
            num_workers=workers,
            persistent_workers=True,
            collate_fn=Collate(),
            prefetch_factor=4,
        )
        running[name] = passes(loader, args.clips)
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(args.rounds):
        for name, passing in running.items():
            rates[name].append(next(passing))
    figures: Figures = {}
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(rates["ours"], found, strict=True)]
        figures[name] = {"clips_per_s": statistics.median(found), "ours_over_this": statistics.median(ratios)}
    return figures


def show(kind: str, workers: int, figures: Figures) -> None:
    print(f"\n{kind}, {workers} worker{'s' if workers > 1 else ''}")
    for name, figure in figures.items():
        speed, ratio = figure["clips_per_s"], figure["ours_over_this"]
        print(f"  {name:54s} {speed:7.1f} clips/s {speed / workers:7.1f} a worker   ours/this {ratio:.2f}")
    best = min((name for name in figures if name != "ours"), key=lambda name: figures[name]["ours_over_this"])
    print(f"  best rival: {best}; ours is {figures[best]['ours_over_this']:.2f} times as fast")


class Stages:
    """CPU seconds of nested stages: a stage within another is charged to itself alone, other programs to nobody.

    Args:
        cost: seconds that entering or leaving a stage takes, not charged to any; reading a process's clock is a call
            into the kernel, hundreds of them a clip.
    """

    def __init__(self, cost: float = 0.0) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cost, self._since = cost, 0.0
        self._open: list[str] = []

    @classmethod
    def calibrated(cls, count: int = 5000) -> Stages:
        """With the cost measured on stages without contents."""
        empty = cls()
        with empty.stage("outer"):
            for _ in range(count):
                with empty.stage("inner"):
                    pass
        return cls(sum(empty.seconds.values()) / (2 * count + 1))

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since - self._cost
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def timed(self, function: Callable[..., Any], names: str | dict[str, str]) -> Callable[..., Any]:
        """The function, charged to a stage: of that name, or of the name for its track's type."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(names if isinstance(names, str) else names[args[0].stream.type]):
                return function(*args, **kwargs)

        return call

    def timed_steps(
        self, function: Callable[..., Iterator[Any]], names: dict[str, str]
    ) -> Callable[..., Iterator[Any]]:
        """The same for a generator, step by step: what happens between its steps is not its own."""

        def call(track: Any) -> Iterator[Any]:
            steps = function(track)
            while True:
                with self.stage(names[track.stream.type]):
                    item = next(steps, None)
                if item is None:
                    return
                yield item

        return call


@contextmanager
def watched(stages: Stages, rivals: bool) -> Iterator[None]:
    """Charge the readers' parts to their stages."""
    parts: list[tuple[Any, str, str | dict[str, str]]] = [
        (reader, "open_container", OPEN), (reader.MediaReader, "_find_tracks", OPEN),
        (reader.MediaReader, "close", OPEN), (tracks.Track, "seek", PACKETS), (tracks.Track, "decode", DECODING),
        (Converter, "to_rgb", COLOUR), (F, "interpolate", COLOUR), (sound, "resample", RESAMPLING),
    ]  # fmt: skip
    if rivals:
        from torchcodec.decoders import AudioDecoder, VideoDecoder

        parts += [(VideoDecoder, "__init__", OPEN), (AudioDecoder, "__init__", OPEN)]
        parts += [(VideoDecoder, "get_frames_played_at", THEIR_PICTURES)]
        parts += [(AudioDecoder, "get_samples_played_in_range", THEIR_SOUND)]
    with ExitStack() as stack:
        for owner, name, stage in parts:
            stack.enter_context(patch.object(owner, name, stages.timed(getattr(owner, name), stage)))
        steps = stages.timed_steps(tracks.Track.packets, PACKETS)
        stack.enter_context(patch.object(tracks.Track, "packets", steps))
        yield


def one_pass(load: Load, paths: list[str], args: argparse.Namespace) -> dict[str, float]:
    """CPU milliseconds a clip of every stage, over one pass of all clips, and of another that nobody watches."""
    stages, data, collate = Stages.calibrated(), Clips(load, paths, args.clips, args.size), Collate()
    begun = time.process_time()
    for first in range(0, args.clips, args.batch):
        collate([data[index] for index in range(first, min(first + args.batch, args.clips))])
    stages.seconds[UNWATCHED] = time.process_time() - begun
    with watched(stages, rivals=load is not ours):
        for first in range(0, args.clips, args.batch):
            with stages.stage(REST):
                clips = [data[index] for index in range(first, min(first + args.batch, args.clips))]
            with stages.stage(BATCH):
                collate(clips)
    return {name: 1000 * stages.seconds[name] / args.clips for name in STAGES if name in stages.seconds}


def profile(loads: dict[str, Load], paths: list[str], args: argparse.Namespace) -> Figures:
    """Medians over rounds in which ours and torchcodec take turns; the first round warms up."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", RIVAL) if name in loads}
    for _ in range(args.rounds + 1):
        for name, found in turns.items():
            found.append(one_pass(loads[name], paths, args))
    return {
        name: {stage: statistics.median(each[stage] for each in found[1:]) for stage in found[1]}
        for name, found in turns.items()
    }


def show_profile(kind: str, figures: Figures) -> None:
    print(f"\n{kind}: CPU milliseconds a clip  " + " | ".join(figures))
    for stage in STAGES:
        if any(stage in found for found in figures.values()):
            cells = [f"{found[stage]:8.2f}" if stage in found else " " * 7 + "-" for found in figures.values()]
            print(f"  {stage:40s}" + "".join(cells))
    alone = [found[UNWATCHED] for found in figures.values()]
    shared = sum(figures["ours"][stage] for stage in (*DECODING.values(), BATCH))  # the same libav and spectrograms
    print(f"  nobody can leave out decoding and log-mel, {shared:.2f} of our {alone[0]:.2f}", end="")
    print(f": a reader without other costs: {alone[1] / shared:.2f} times torchcodec" if len(alone) > 1 else "")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--clips", type=int, default=48, help="clips of one pass")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--files", type=int, default=6, help="files of each kind")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--profile", action="store_true", help="only where the time goes; kept under its own key")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), args.files)
        loads = contestants(next(iter(files.values()))[0], args.size)
        for kind, paths in files.items():
            agree(loads, paths, args.size)
            if args.profile:
                results[kind] = profile(loads, paths, args)
                show_profile(kind, results[kind])
                continue
            for workers in args.workers:
                figures = compare(loads, paths, workers, args)
                show(kind, workers, figures)
                results[f"{kind}, {workers} workers"] = figures
    write(args, results)


def write(args: argparse.Namespace, results: dict[str, Figures]) -> None:
    """Figures with their settings; a profile and a comparison leave each other's alone."""
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "profile")}
    versions = {name: installed(name) for name in ("torch", "av", "torchcodec")}
    report: dict[str, Any] = {
        "settings": settings, "versions": versions, "machine": platform.machine(), "results": results
    }  # fmt: skip
    known = json.loads(args.json.read_text()) if args.json.exists() else {}
    if args.profile:
        report = {**known, "profile": report}
    elif "profile" in known:
        report["profile"] = known["profile"]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
