"""``avssl data``: index, inspect and verify a folder, transcode it, build the book's corpora."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avssl.curate_cli import curate
from avssl.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from avssl_core.media import Source
    from data_prep.compress import Report

data_app = typer.Typer(no_args_is_help=True, help="Build, inspect and verify corpora.")
console = Console()

Folder = Annotated[Path, typer.Argument(help="A folder of video files, or one that holds index.parquet.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; all cores by default.")]


def _existing(folder: Path) -> Path:
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder.")
    return folder.parent if folder.name == "index.parquet" else folder


@contextmanager
def _named_errors() -> Iterator[None]:
    """What the data room says about a folder is the caller's to mend; it needs no traceback."""
    from avssl_core.data import CorpusError

    try:
        yield
    except (CorpusError, NotADirectoryError) as error:
        raise UsageError(str(error)) from error


@data_app.command()
def index(folder: Folder, workers: Workers = None) -> None:
    """Probe every file of a folder and write its index; says what was refused, and why."""
    folder = _existing(folder)
    from avssl_core.data import index_folder, refusal_report

    with _named_errors():
        corpus, refused = index_folder(folder, workers=workers, progress=True)
    console.print(f"{len(corpus)} clips indexed")
    if len(refused):
        console.print(refusal_report(refused, shown=20), markup=False, highlight=False, soft_wrap=True)


@data_app.command()
def inspect(folder: Folder) -> None:
    """Clips, hours, sizes, codecs, splits and labels of a corpus."""
    folder = _existing(folder)
    from avssl_core.data import open_corpus

    with _named_errors():
        corpus = open_corpus(folder)
    table = Table("what", "value", header_style="bold")
    for what, value in summary(corpus.index).items():
        table.add_row(what, escape(value))
    if corpus.timed is not None:
        kinds = corpus.timed["kind"].value_counts()
        table.add_row("timed labels", escape(", ".join(f"{kind} ({n})" for kind, n in kinds.items())))
    console.print(table)


def summary(clips: pd.DataFrame) -> dict[str, str]:
    """A corpus in a few lines: counts, durations, and how often each size, rate and codec occurs."""
    seconds = clips["duration_s"]
    rows = {"clips": str(len(clips))}
    if len(clips):
        rows["hours"] = f"{seconds.sum() / 3600:.2f}"
        rows["seconds a clip"] = f"{seconds.min():.2f} to {seconds.max():.2f}, median {seconds.median():.2f}"
        rows["size"] = _counts(_whole(clips["width"]) + "×" + _whole(clips["height"]))
    for column in ("fps", "video_codec", "audio_codec", "sample_rate", "split"):
        if column in clips:
            rows[column] = _counts(clips[column])
    for column in (name for name in clips.columns if name.startswith("label_")):
        rows[column] = f"{clips[column].nunique()} values"
    if "group" in clips:
        rows["groups"] = str(clips["group"].nunique())
    return rows


def _whole(numbers: pd.Series) -> pd.Series:
    """Pixels as text (a column with gaps holds floats)."""
    return numbers.astype("Int64").astype(str)


def _counts(values: pd.Series, most: int = 4) -> str:
    counts = values.astype(object).where(values.notna(), "none").value_counts()
    shown = ", ".join(f"{value} ({n})" for value, n in counts.head(most).items())
    return shown + (f", {len(counts) - most} more" if len(counts) > most else "")


@data_app.command()
def verify(
    folder: Folder,
    quarantine: Annotated[Path | None, typer.Option(help="Where to write the list of bad clips (CSV).")] = None,
) -> None:
    """Decode every clip from beginning to end; lists the ones that fail. Exit code 1 if any does."""
    folder = _existing(folder)
    import pandas as pd
    from tqdm import tqdm

    from avssl_core.data import open_corpus, refusal_report

    with _named_errors():
        corpus = open_corpus(folder)
    reasons = [undecodable(corpus.source(row)) for row in tqdm(range(len(corpus)), desc="verify", unit="clip")]
    rows = [(uri, reason) for uri, reason in zip(corpus.index["uri"], reasons, strict=True) if reason is not None]
    bad = pd.DataFrame(rows, columns=["uri", "reason"])
    console.print(f"{len(corpus) - len(bad)} of {len(corpus)} clips decode")
    if quarantine is not None:
        bad.to_csv(quarantine, index=False)
    if len(bad):
        console.print(refusal_report(bad, shown=20), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def undecodable(source: Source) -> str | None:
    """Why a clip does not decode from beginning to end, pictures and sound; None when it does."""
    from avssl_core.media import MediaError, probe, read_all

    try:
        info = probe(source, verify=True)
        fps = info.video.fps if info.video else None
        read_all(source, fps=fps, size=(32, 32), sample_rate=16000 if info.audio else None)
    except (MediaError, OSError) as error:
        return str(error)
    return None


@data_app.command()
def playground(
    recipe: Annotated[str, typer.Argument(help="actions, web, boxes, binding, travel, trajectories.")],
    clips: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    parameter: Annotated[list[str] | None, typer.Option("-p", "--parameter", help="name=value of the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of corpora; the cache by default.")] = None,
    workers: Workers = None,
) -> None:
    """Write clips of the procedural world as real video files, with their ground truth."""
    import yaml

    from data_prep.playground import build_playground, make_recipe

    pairs = [pair.partition("=") for pair in parameter or []]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"-p takes name=value, got {wrong[0]!r}.")
    params = {name: yaml.safe_load(text) for name, _, text in pairs}
    try:
        path = build_playground(
            make_recipe(recipe, **params), clips=clips, seed=seed, root=out, workers=workers, progress=True
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    console.print(f"{clips} clips: {path}", soft_wrap=True, highlight=False, markup=False)


@data_app.command()
def grid(
    sources: Annotated[list[Path], typer.Argument(help="Archives of the GRID corpus, or folders that hold them.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    speakers: Annotated[str | None, typer.Option(help="Only these, e.g. s1,s2; all that are there by default.")] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the written pictures.")] = 112,
    checksums: Annotated[Path | None, typer.Option(help="File as sha256sum or md5sum writes it.")] = None,
    workers: Workers = None,
) -> None:
    """Make the GRID lips corpus from the public archives, downloaded beforehand."""
    from data_prep.grid import GridError, build_grid

    wanted = [name.strip() for name in speakers.split(",")] if speakers else None
    try:
        path = build_grid(sources, out, speakers=wanted, size=size, checksums=checksums, workers=workers)
    except (GridError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)


@data_app.command()
def compress(
    source: Folder,
    out: Annotated[Path, typer.Argument(help="Folder to write, elsewhere.")],
    size: Annotated[
        str, typer.Option(help="256: the short side; 340x256: width x height; same: as each film is.")
    ] = "256",
    gop: Annotated[int, typer.Option(help="Pictures from one I picture to the next.")] = 12,
    quantiser: Annotated[int, typer.Option(help="Constant quantiser, 1 (best) to 31.")] = 3,
    fps: Annotated[float | None, typer.Option(help="Pictures a second; each film's own rate by default.")] = None,
    again_all: Annotated[
        bool, typer.Option("--again-all", help="Also transcode films that have the form already, instead of a copy.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Transcode a folder to what is read without decoding: MPEG-4 Part 2 without B pictures, verified, resumable."""
    source = _existing(source)
    from data_prep.compress import CompressError, compress_folder

    chosen = parse_size(size)
    try:
        with _named_errors():
            report = compress_folder(
                source, out, size=chosen, gop=gop, quantiser=quantiser, fps=fps, keep=not again_all, workers=workers
            )
    except (CompressError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    console.print(compressed(report), soft_wrap=True, highlight=False, markup=False)


def parse_size(text: str) -> int | tuple[int, int] | None:
    """``256`` as a short side, ``340x256`` (width x height) as ``(height, width)``, ``same`` as ``None``."""
    if text == "same":
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size takes a short side (256), WIDTHxHEIGHT (340x256) or same, got {text!r}.")
    return int(text) if len(sides) == 1 else (int(sides[1]), int(sides[0]))


def compressed(report: Report) -> str:
    """The end of ``compress``: what became of the films, and how large they were and are."""
    from data_prep.compress import QUARANTINE_FILE

    counts = [f"{report.transcoded} transcoded", f"{report.kept} kept as they were"]
    counts += [f"{report.earlier} finished earlier"] * bool(report.earlier)
    refused = f"{len(report.refused)} refused"
    counts.append(f"{refused} (see {report.out / QUARANTINE_FILE})" if report.refused else refused)
    before, after = (f"{count / 1e6:.1f} MB" for count in (report.bytes_before, report.bytes_after))
    return f"{report.out}: {', '.join(counts)}; {before} before, {after} after"


data_app.command()(curate)
