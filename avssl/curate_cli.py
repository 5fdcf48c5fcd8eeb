"""``avssl data curate``: which clips of a folder are worth learning from."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from avssl.errors import UsageError

if TYPE_CHECKING:
    from data_prep.curate import Report
    from data_prep.curate.stages import Mapper

console = Console()

WeightsOption = Annotated[Path | None, typer.Option(help="Checkpoint; that of a chapter's run holds both networks.")]


def curate(
    folder: Annotated[Path, typer.Argument(help="A folder of video files, or one that holds index.parquet.")],
    keep: Annotated[float, typer.Option(help="Share of the usable clips to keep, above 0, at most 1.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; FOLDER-curated by default.")] = None,
    video_weights: WeightsOption = None,
    audio_weights: WeightsOption = None,
    video: Annotated[
        str | None,
        typer.Option(help="r2plus1d, factorised, r2plus1d_18, r3d_18, mc3_18 (torchvision's), or module:function."),
    ] = None,
    audio: Annotated[str | None, typer.Option(help="resnet9, or module:function.")] = None,
    random_features: Annotated[
        bool, typer.Option("--random-features", help="Networks without training: a trial of the pipeline.")
    ] = False,
    min_seconds: Annotated[float, typer.Option(help="Shorter films are refused; the paper: 30.")] = 1.0,
    max_seconds: Annotated[float | None, typer.Option(help="Longer films are refused; the paper: 600.")] = None,
    clip_seconds: Annotated[float, typer.Option(help="Length of the clips that longer films are cut into.")] = 10.0,
    clips: Annotated[int, typer.Option(help="Clips of a film, at most.")] = 3,
    duplicates: Annotated[
        str, typer.Option(help="near: looks and sounds alike; same: equal bytes; keep: all stay.")
    ] = "near",
    clusters: Annotated[int | None, typer.Option(help="Of each layer; by the number of kept clips.")] = None,
    pairs: Annotated[str, typer.Option(help="diagonal, bipartite, combination (the paper's), intra.")] = "bipartite",
    seed: Annotated[int, typer.Option(help="Of clusters, draws and random weights.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores by default.")] = None,
    scheduler: Annotated[
        str, typer.Option(help="processes; dask (a cluster of this machine); or a Dask scheduler, tcp://HOST:8786.")
    ] = "processes",
) -> None:
    """Keep the clips whose sight and sound tell most of each other (ACAV): a manifest, a page of best and worst."""
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder.")
    from avssl_core.data import CorpusError
    from data_prep.compress import CompressError
    from data_prep.curate import Choice, CurateError, Cutting, Selecting, Settings, curate_folder

    source = folder.parent if folder.name == "index.parquet" else folder
    written = out or source.resolve().with_name(f"{source.resolve().name}-curated")
    weights = {"video": video_weights, "audio": audio_weights}
    if random_features and any(weights.values()):
        raise UsageError("--random-features means no weights; leave one of the two out.")
    if random_features:
        console.print("[bold yellow]random features:[/] the networks are not trained; the ranking is a trial only.")
    try:
        settings = Settings(
            keep=keep,
            video=Choice("video", video, _text(video_weights), random_features, seed),
            audio=Choice("audio", audio, _text(audio_weights), random_features, seed),
            min_s=min_seconds,
            max_s=math.inf if max_seconds is None else max_seconds,
            cutting=Cutting(length_s=clip_seconds, most=clips),
            duplicates=duplicates,  # type: ignore[arg-type]
            clusters=clusters,
            selecting=Selecting(pairs=pairs, seed=seed),  # type: ignore[arg-type]
            seed=seed,
        )
        with _mapper(scheduler, workers) as mapper:
            report = curate_folder(source, written, settings, workers=workers, said=_say, mapper=mapper)
    except (CurateError, CompressError, CorpusError, OSError) as error:
        raise UsageError(str(error)) from error
    _say(curated(report))


def _mapper(scheduler: str, workers: int | None) -> AbstractContextManager[Mapper | None]:
    """Who runs the shards: this machine's processes (None), or Dask."""
    if scheduler == "processes":
        return nullcontext()
    from data_prep.compress.build import cores
    from data_prep.curate import dask_mapper, scheduler_address

    return dask_mapper(scheduler_address(scheduler), workers=workers or cores())


def curated(report: Report) -> str:
    """The end of ``curate``: what was kept, and where to look."""
    from data_prep.curate import MANIFEST_FILE, PAGE_FILE

    refused = f"{len(report.refused)} refused" + (" (see quarantine.csv)" if report.refused else "")
    return f"{report.out}: {report.kept} of {report.usable} clips kept, {refused}; {MANIFEST_FILE}, {PAGE_FILE}" + (
        ". Random weights: a trial only" if report.untrained else ""
    )


def _say(text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
