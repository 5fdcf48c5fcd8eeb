"""Building a corpus of the playground: clips in parallel, ground truth beside them, cached by what they are made of.

A corpus lies in a folder named after its recipe and a hash of everything that determines its contents: recipe,
parameters, seed, number of clips and the code that draws them. The index is written last, so a folder with an index
is complete; a build that was stopped resumes with the clips it finds (each file appears whole or not at all). A clip
is a function of (recipe, seed, number): the number of workers and the order of building cannot change it.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from avssl_core.data import Corpus
from avssl_core.media import write_clip, writer

from ..starting import without_main
from .draw import draw_scene
from .events import hear_scene
from .recipes.base import Recipe
from .scene import Clip
from .truth import TABLES, Rows, clip_truth, truth_tables

VIDEO_CODEC, AUDIO_CODEC = "mpeg4", "aac"
SERIAL_BELOW = 24  # starting workers costs about as long as drawing this many clips
CHUNK = 8


def build_playground(
    recipe: Recipe,
    *,
    clips: int,
    seed: int,
    root: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a corpus of the procedural world, or find it in the cache.

    Args:
        recipe: such as ``Actions(size=64)``; :func:`~data_prep.playground.make_recipe` makes one from its name.
        clips: number of clips; clip ``n`` does not depend on it.
        seed: of the world; another seed gives other clips of the same distribution.
        root: folder that holds corpora; by default ``$AVSSL_CACHE/playground``, or ``~/.cache/avssl/playground``.
        workers: processes; by default one a core that this process may use. Never changes the contents.
        progress: show a bar.

    Returns:
        The corpus folder ``<root>/<recipe>-<hash>``: ``clips/*.mp4``, ``index.parquet``, ``timed.parquet``, the truth
        tables (``truth``, ``actors``, ``onsets``, ``boxes``) and ``recipe.json``.

    Raises:
        ValueError: ``clips`` is below 1.
    """
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    folder = _root(root) / f"{recipe.name}-{content_hash(recipe, clips=clips, seed=seed)}"
    if (folder / "index.parquet").exists():
        return folder
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / ".lock"):
        if not (folder / "index.parquet").exists():  # another process may have finished it while this one waited
            rows = _make_all(recipe, seed, clips, folder, workers=workers, progress=progress)
            _write_tables(recipe, seed, folder, rows)
    return folder


def render_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and waveform (L,) float32 of a clip, before encoding."""
    silence = np.zeros(clip.seen.num_samples, np.float32)
    return draw_scene(clip.seen), hear_scene(clip.heard) if clip.heard is not None else silence


def content_hash(recipe: Recipe, *, clips: int, seed: int) -> str:
    """Twelve hexadecimal digits of everything that determines a corpus."""
    content = {
        "recipe": recipe.name,
        "params": dataclasses.asdict(recipe),
        "seed": seed,
        "clips": clips,
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the syntax trees of the playground and of the encoder: comments and formatting do not count."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted(here.rglob("*.py")), Path(writer.__file__)]:
        digest.update(path.relative_to(here).as_posix().encode() if path.is_relative_to(here) else b"writer")
        digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()


def split_of(number: int) -> str:
    """A quarter of the clips, chosen by the hash of their number, is for testing."""
    return "test" if zlib.crc32(f"clip {number}".encode()) % 4 == 0 else "train"


def clip_id(number: int) -> str:
    return f"{number:06d}"


def _root(root: str | Path | None) -> Path:
    if root is not None:
        return Path(root)
    cache = os.environ.get("AVSSL_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "avssl") / "playground"


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time build a folder (ranks of one run ask for the same corpus at once)."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows; files are atomic anyway, only work may be done twice
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make_all(
    recipe: Recipe, seed: int, clips: int, folder: Path, *, workers: int | None, progress: bool
) -> dict[str, list[Any]]:
    """Write the missing clips and collect every clip's rows, in the order of clip numbers."""
    chunks = [range(first, min(first + CHUNK, clips)) for first in range(0, clips, CHUNK)]
    missing = sum(not _path(folder, number).exists() for number in range(clips))
    workers = 1 if missing < SERIAL_BELOW else min(workers or _cores(), len(chunks))
    one = partial(make_clips, recipe, seed, folder)
    results: dict[int, dict[str, list[Any]]] = {}
    with tqdm(total=clips, desc=f"playground {recipe.name}", unit="clip", disable=not progress) as bar:
        for chunk, rows in (
            ((c, one(c)) for c in chunks) if workers == 1 else _in_parallel(one, chunks, workers, folder)
        ):
            results[chunk.start] = rows
            bar.update(len(chunk))
    names = (*TABLES, "index", "timed")
    return {name: [row for first in sorted(results) for row in results[first][name]] for name in names}


def _in_parallel(
    one: Callable[[range], dict[str, list[Any]]], chunks: list[range], workers: int, folder: Path
) -> Iterator[tuple[range, dict[str, list[Any]]]]:
    """Run ``one`` on every chunk, yielding results as they come."""
    with _pool(workers) as pool:
        with without_main():  # workers start at the first submission
            futures = {pool.submit(one, chunk): chunk for chunk in chunks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker that was writing {folder} died (killed for want of memory?). Finished clips are kept: "
                "call again, with workers=1 if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(workers: int) -> ProcessPoolExecutor:
    """Workers that start clean: forking a process that runs torch's threads can hang."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])  # import once, not once a worker
    return ProcessPoolExecutor(workers, mp_context=context)


def _path(folder: Path, number: int) -> Path:
    return folder / "clips" / f"{clip_id(number)}.mp4"


def make_clips(recipe: Recipe, seed: int, folder: Path, numbers: range) -> dict[str, list[Any]]:
    """Write those of ``numbers`` that are missing; return the rows of all of them."""
    rows: dict[str, list[Any]] = {name: [] for name in (*TABLES, "index", "timed")}
    for number in numbers:
        clip = recipe.clip(seed, number)
        path = _path(folder, number)
        if not path.exists():
            frames, waveform = render_clip(clip)
            write_clip(
                path,
                frames,
                waveform,
                fps=recipe.fps,
                sample_rate=recipe.sample_rate,
                video_codec=VIDEO_CODEC,
                gop=recipe.gop,
                quantiser=recipe.quantiser,
                b_frames=0,
                audio_codec=AUDIO_CODEC,
                audio_bitrate=recipe.audio_bitrate,
            )
        for name, added in clip_truth(clip, clip_id(number)).items():
            rows[name].extend(added)
        rows["index"].append(_index_row(recipe, clip, path))
        rows["timed"].extend({"clip_id": clip_id(number), **dataclasses.asdict(label)} for label in clip.timed)
    return rows


def _index_row(recipe: Recipe, clip: Clip, path: Path) -> Rows:
    row = {
        "clip_id": clip_id(clip.number),
        "uri": f"clips/{path.name}",
        "duration_s": recipe.duration_s,
        "fps": float(recipe.fps),
        "width": recipe.size,
        "height": recipe.size,
        "video_codec": VIDEO_CODEC,
        "audio_codec": AUDIO_CODEC,
        "sample_rate": recipe.sample_rate,
        "split": split_of(clip.number),
        "group": clip.group or clip_id(clip.number),
    }
    return row | {f"label_{kind}": label for kind, label in clip.labels.items()}


def _write_tables(recipe: Recipe, seed: int, folder: Path, rows: dict[str, list[Any]]) -> None:
    """Truth first, the index last: its presence says that everything else is there."""
    for name, table in truth_tables({name: rows[name] for name in TABLES}).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    about = {"recipe": recipe.name, "seed": seed, "params": dataclasses.asdict(recipe), "code": code_version()}
    (folder / "recipe.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    Corpus(folder, pd.DataFrame(rows["index"]), pd.DataFrame(rows["timed"])).save()
