"""What compressed-domain reading saves: clips of 60 pictures to network-ready tensors, by every route.

    python benchmarks/compressed_reading.py [--rounds 9] [--files 3]

A clip is five groups of twelve pictures from somewhere in a ten-second file; the result is normalised tensors, cropped
and resized to the network's size. Routes: all pictures decoded to RGB (PyAV, torchcodec, the book's own reader); intra
pictures only; those and the vectors of 25 predicted pictures; those and pixel residuals; those and coded residuals; and
CoViAR's way, every asked picture decoded from the beginning of its group, the file opened for each of them or kept
open. Files at 340x256 and 112x112, at a high and a low bit rate; one thread, but for one row of two; routes take turns
within a round, and ratios are medians over rounds of (fastest full decode on one thread / this route). Two routes are
also taken apart: what decoding, colours, vectors, residuals, and crop and scale cost of each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.media import CompressedClip, CompressedReader, GopSpec, MediaReader, Structure, write_clip
from avssl_core.media.convert import unscaled_rgb
from avssl_core.media.motion_vectors import accumulate, block_motion, blocks_of, dense_motion, displaced
from avssl_core.transforms import CropDraw, fixed_crop, normalise_motion, normalise_pictures, normalise_residual

GOPS, GOP_SIZE, FPS, SECONDS = 5, 12, 30, 10
PICTURES = GOPS * GOP_SIZE
RESULT = Path(__file__).parent / "results" / "compressed_reading.json"
Outcome = tuple[list[Tensor], int]  # network-ready tensors, bytes that the reader handed on
Route = Callable[[Path, int, int], Outcome]  # (file, first group, side of the network's input)
BLOCKS = GopSpec(GOPS, GOP_SIZE, 2, residual=None, dense=False)


def ready(size: int, crop: CropDraw, pictures: Tensor, motion: Tensor | None, residual: Tensor | None) -> list[Tensor]:
    """Crop, resize and normalise what was read; vectors of blocks become vectors of pixels here."""
    out = [normalise_pictures(crop.cut(pictures[None], size))]
    if motion is not None:
        out.append(normalise_motion(crop.cut_motion(motion[None], size)))
    if residual is not None:
        out.append(normalise_residual(crop.cut(residual[None], size)))
    return out


def finish(size: int, pictures: Tensor, motion: Tensor | None = None, residual: Tensor | None = None) -> Outcome:
    height, width = pictures.shape[-2:]
    read = sum(x.nbytes for x in (pictures, motion, residual) if x is not None)
    return ready(size, fixed_crop(1, (height, width)), pictures, motion, residual), read


def pyav(path: Path, gop: int, size: int, threads: int = 1) -> Outcome:
    """The usual loader: seek, decode, convert every picture."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = threads, "FRAME" if threads > 1 else "NONE"
        container.seek(round(gop * GOP_SIZE / FPS / stream.time_base), stream=stream)
        decoded = (frame for _, frame in zip(range(PICTURES), container.decode(stream), strict=False))
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    return finish(size, torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2))


def own_reader(path: Path, gop: int, size: int) -> Outcome:
    """What the book's other chapters read clips with: pictures are resized while their colours are converted."""
    with MediaReader(path) as reader:
        frames = reader.frames(gop * GOP_SIZE / FPS, num_frames=PICTURES, fps=FPS, size=size).frames
    return finish(size, frames.transpose(0, 1))


def with_torchcodec(path: Path, gop: int, size: int) -> Outcome:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_in_range(gop * GOP_SIZE, gop * GOP_SIZE + PICTURES).data
    return finish(size, frames.transpose(0, 1))


@cache
def structure_of(path: Path) -> Structure:
    """A file's groups, found once, as a data set's index keeps them; the decoders' counterpart is the container's own
    index."""
    with CompressedReader(path) as reader:
        return reader.structure


def intra_only(path: Path, gop: int, size: int) -> Outcome:
    with CompressedReader(path, structure=structure_of(path)) as reader:
        return finish(size, reader.iframes(list(range(gop, gop + GOPS))))


def with_vectors(path: Path, gop: int, size: int) -> Outcome:
    with CompressedReader(path, structure=structure_of(path)) as reader:
        clip = reader.clip(gop, BLOCKS)
    return finish(size, clip.iframes, clip.motion)


def with_pixel_residuals(path: Path, gop: int, size: int) -> Outcome:
    with CompressedReader(path, structure=structure_of(path)) as reader:
        clip = reader.clip(gop, GopSpec(GOPS, GOP_SIZE, 2, motion="coviar", residual="pixel"))
    return finish(size, clip.iframes, clip.motion, clip.residual)


def with_coded_residuals(path: Path, gop: int, size: int) -> Outcome:
    with CompressedReader(path, structure=structure_of(path)) as reader:
        clip = reader.clip(gop, GopSpec(GOPS, GOP_SIZE, 2, residual="coded", dense=False))
    return finish(size, clip.iframes, clip.motion, clip.residual)


def coviar(path: Path, gop: int, size: int, reopen: bool = True) -> Outcome:
    """One call a picture, each decoding its group from the beginning; accumulated vectors, as CoViAR's default."""
    pictures, motions, residuals = [], [], []
    with ExitStack() as held:
        kept = None if reopen else held.enter_context(av.open(str(path)))
        for number in range(gop, gop + GOPS):
            pictures.append(_one_call(path, number, 0, kept)[0])
            for position in BLOCKS.positions:
                _, motion, residual = _one_call(path, number, position, kept)
                motions.append(motion)
                residuals.append(residual)
    stacked = (torch.from_numpy(np.stack(x, 1)) for x in (pictures, motions, residuals))
    return finish(size, *stacked)


def _one_call(path: Path, gop: int, position: int, kept: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with nullcontext(kept) if kept is not None else av.open(str(path)) as container:
        stream = container.streams.video[0]
        if not stream.codec_context.is_open:
            stream.thread_count, stream.codec_context.options = 1, {"flags2": "+export_mvs"}
        container.seek(round(gop * GOP_SIZE / FPS / stream.time_base), stream=stream)
        frames = [frame for _, frame in zip(range(position + 1), container.decode(stream), strict=False)]
    first, last = unscaled_rgb([frames[0], frames[-1]])
    if position == 0:
        return first, np.empty(0), np.empty(0)
    height, width = first.shape[1:]
    cells = block_motion([blocks_of(frame) for frame in frames[1:]], height, width)
    motion = accumulate(dense_motion(cells, height, width, rule="coviar"))[:, -1]
    return first, motion, last.astype(np.int16) - displaced(first, motion).astype(np.int16)


def routes() -> dict[str, Route]:
    return {
        "all pictures, PyAV": pyav,
        "all pictures, the book's": own_reader,
        "all pictures, torchcodec": with_torchcodec,
        "I only": intra_only,
        "I + M": with_vectors,
        "I + M + pixel residual": with_pixel_residuals,
        "I + M + coded residual": with_coded_residuals,
        "CoViAR's way": coviar,
        "CoViAR's way, file kept open": partial(coviar, reopen=False),
        "two threads: all pictures, PyAV": partial(pyav, threads=2),
    }


def stages(path: Path, gop: int, size: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage of plain decoding and of the book's way; the latter's are differences of two reads."""
    at = [time.perf_counter()]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(round(gop * GOP_SIZE / FPS / stream.time_base), stream=stream)
        decoded = [frame for _, frame in zip(range(PICTURES), container.decode(stream), strict=False)]
        at.append(time.perf_counter())
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    at.append(time.perf_counter())
    finish(size, torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2))
    at.append(time.perf_counter())
    plain = dict(zip(("decoding", "colours", "crop and scale"), 1e3 * np.diff(at), strict=True))
    specs = (BLOCKS, GopSpec(GOPS, GOP_SIZE, 2, residual="coded", dense=False))
    reads = [
        lambda reader: reader.iframes(list(range(gop, gop + GOPS))),
        *(partial(_clip, gop, spec) for spec in specs),
    ]
    taken = []
    for read in reads:
        began = time.perf_counter()
        with CompressedReader(path, structure=structure_of(path)) as reader:
            found = read(reader)
        taken.append(time.perf_counter() - began)
    began = time.perf_counter()
    finish(size, found.iframes, found.motion, found.residual)
    own = [*np.diff([0.0, *taken]), time.perf_counter() - began]
    names = ("intra pictures", "vectors", "coded residuals", "crop and scale")
    return {"all pictures, PyAV": plain, "I + M + coded residual": dict(zip(names, 1e3 * np.array(own), strict=True))}


def _clip(gop: int, spec: GopSpec, reader: CompressedReader) -> CompressedClip:
    return reader.clip(gop, spec)


def median_stages(paths: list[Path], size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, the first of which is not counted."""
    each = [stages(paths[turn % len(paths)], 3 + turn % 5, size) for turn in range(rounds + 1)][1:]
    return {way: {k: statistics.median(e[way][k] for e in each) for k in each[0][way]} for way in each[0]}


def that_load(path: Path) -> dict[str, Route]:
    """All routes but torchcodec's where it does not read ``path``: it looks for FFmpeg only when it opens a file."""
    found = routes()
    try:
        with_torchcodec(path, 0, 112)
    except Exception as error:  # a missing FFmpeg shows as RuntimeError, a missing package as ImportError
        print(f"torchcodec is left out, it does not load: {str(error).splitlines()[0]}")
        del found["all pictures, torchcodec"]
    return found


def scene(height: int, width: int, seed: int) -> Tensor:
    """Ten seconds of a panned texture with three discs that cross it, and camera noise; ``(T, 3, H, W)``."""
    rng = np.random.default_rng(seed)
    count = SECONDS * FPS
    small = torch.from_numpy(rng.integers(0, 256, (1, 3, height // 6, width // 6)).astype(np.float32))
    canvas = F.interpolate(small, size=(height + 40, width + count // 2), mode="bicubic")[0].clamp(0, 255)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise = torch.from_numpy(rng.normal(0, 2.5, (8, 3, height, width)).astype(np.float32))
    out = torch.empty(count, 3, height, width, dtype=torch.uint8)
    for t in range(count):
        picture = canvas[:, 20 : 20 + height, t // 2 : t // 2 + width].clone()
        for disc in range(3):
            cx = (width * (0.2 + 0.3 * disc) + 3.3 * t * (1 - 2 * (disc % 2))) % width
            cy = height * (0.5 + 0.3 * np.sin(t / 15 + disc))
            inside = (x - cx) ** 2 + (y - cy) ** 2 < (height / 9) ** 2
            picture[:, inside] = 40.0 + 80 * disc + 30 * torch.sin((x[inside] - cx) / 3)
        out[t] = (picture + noise[t % 8]).clamp(0, 255).to(torch.uint8)
    return out


def make_files(folder: Path, count: int) -> dict[str, list[Path]]:
    kinds: dict[str, list[Path]] = {}
    for height, width in ((256, 340), (112, 112)):
        for seed in range(count):
            pictures = scene(height, width, seed)
            for rate, quantiser in (("high", 2), ("low", 12)):
                path = folder / f"{width}x{height}_{rate}_{seed}.mp4"
                write_clip(path, pictures, fps=FPS, quantiser=quantiser)
                kinds.setdefault(f"{width}x{height}, {rate} bit rate", []).append(path)
    return kinds


def compare(found: dict[str, Route], paths: list[Path], size: int, rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):  # the first is not counted
        path, gop = paths[turn % len(paths)], (7 * turn) % (SECONDS * FPS // GOP_SIZE - GOPS)
        for name, route in found.items():
            began = time.perf_counter()
            route(path, gop, size)
            times[name].append(time.perf_counter() - began)
    full = [min(several) for several in zip(*(t for name, t in times.items() if name.startswith("all")), strict=True)]
    out = {}
    for name, route in found.items():
        tensors, read = route(paths[0], 3, size)
        out[name] = {
            "ms_per_clip": 1e3 * statistics.median(times[name][1:]),
            "full_over_this": statistics.median(f / t for f, t in zip(full[1:], times[name][1:], strict=True)),
            "MB_read": read / 1e6,
            "MB_to_network": sum(x.nbytes for x in tensors) / 1e6,
            "MB_peak": peak_of(name, paths[0], size),
        }
    return out


def peak_of(name: str, path: Path, size: int) -> float:
    """Growth of the resident memory of a fresh process that runs the route once."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, path, size))


def _peak(name: str, path: Path, size: int) -> float:
    torch.set_num_threads(1)
    route = routes()[name]
    structure_of(path)
    route(path, 2, size)  # imports and decoders are not the clip's
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = _resident("VmRSS")
    route(path, 3, size)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """A line of Linux's account of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def show(kind: str, figures: dict[str, dict[str, float]], rate: float) -> None:
    print(f"\n{kind} ({rate:.2f} Mbit/s)")
    print(f"  {'':31s} {'ms a clip':>10s} {'full / this':>12s} {'MB read':>8s} {'MB to net':>10s} {'MB peak':>8s}")
    for name, f in figures.items():
        print(
            f"  {name:31s} {f['ms_per_clip']:10.1f} {f['full_over_this']:12.2f} {f['MB_read']:8.1f} "
            f"{f['MB_to_network']:10.1f} {f['MB_peak']:8.0f}"
        )


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", type=int, default=3, help="files of each kind")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), args.files)
        found = that_load(next(iter(files.values()))[0])
        for kind, paths in files.items():
            rate = 8e-6 * statistics.mean(path.stat().st_size for path in paths) / SECONDS
            figures = compare(found, paths, 224 if "340" in kind else 112, args.rounds)
            parts = median_stages(paths, 224 if "340" in kind else 112, args.rounds)
            show(kind, figures, rate)
            for way, of in parts.items():
                print(f"  {way}: " + ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in of.items()))
            results[kind] = {"Mbit_per_s": rate, "routes": figures, "stages_ms": parts}
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    versions = {name: installed(name) for name in ("torch", "av", "torchcodec")}
    report = {"settings": settings, "versions": versions, "machine": platform.machine(), "results": results}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
