"""A folder of videos to a manifest of the clips worth learning from: stage by stage, each of which is done once."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from avssl_core.data.corpus import write_table
from avssl_core.data.locations import digest
from data_prep.compress.build import cores
from data_prep.compress.pool import outcomes
from data_prep.compress.records import QUARANTINE_FILE, exclusive, write_quarantine, write_text
from data_prep.curate.candidates import REFUSED_COLUMNS, Candidates, Refusal, list_candidates
from data_prep.curate.clips import Clip, cut_films, read_clips
from data_prep.curate.duplicates import drop_duplicates
from data_prep.curate.features import Described, Describing, describe_clips, read_described, read_layer, refusals
from data_prep.curate.networks import chosen
from data_prep.curate.page import PREVIEWS, Shown, page_text, player_link
from data_prep.curate.select import choose, cluster_layer, deal, default_clusters, kept_count, rank_clips
from data_prep.curate.settings import Report, Settings
from data_prep.curate.stages import CurateError, Mapper, Stages, run_shards, tidy

SETTINGS_FILE = "curate.json"
MANIFEST_FILE = "manifest.parquet"
PAGE_FILE = "best-and-worst.html"
MANIFEST_COLUMNS = (
    "clip_id", "uri", "offset", "length", "start_s", "end_s", "rank", "kept", "score", "picked", "stage", "reason",
)  # fmt: skip
UNTRAINED = "The networks have random weights (--random-features): what is best and worst here means next to nothing."


def curate_folder(
    source: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    workers: int | None = None,
    progress: bool = True,
    said: Callable[[str], None] = lambda _: None,
    mapper: Mapper | None = None,
) -> Report:
    """Find the clips of a folder whose sight and sound belong together.

    Writes ``manifest.parquet`` (a row for every clip, the refused ones with their reasons), ``best-and-worst.html`` and
    ``quarantine.csv`` into ``out``; what the stages need lies in ``out/stages``. Nothing is written into ``source``,
    unless it has an index made by :func:`~avssl_core.data.index_folder`, which is brought up to date.

    Args:
        source: folder of videos, or a corpus.
        out: folder to write, outside ``source``.
        settings: how.
        workers: processes; by default one a core that this process may use. With 0 everything is done in this process.
        progress: show bars.
        said: takes a line on every stage.
        mapper: who runs the shards; a pool of ``workers`` processes by default.

    Returns:
        What came of it.

    Raises:
        NotADirectoryError: ``source`` is not a folder.
        CurateError: settings, weights or folders that cannot be used; too few usable clips.
        CorpusError: the source's index cannot be used, or there is no video in it.
        OSError: the disk is full or cannot be written to.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    settings = replace(settings, video=chosen(settings.video), audio=chosen(settings.audio))
    _require_apart(source, out)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        _claim(out, source, settings)
        processes = cores() if workers is None else workers
        pool: Mapper = mapper or (lambda function, jobs, limit: outcomes(function, jobs, processes, limit))
        return _Curation(source, out, settings, pool, progress, said).run()


def _require_apart(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder; give the folder that holds the videos")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise CurateError(f"{out} and {source} lie one in the other; give a folder to write that is elsewhere (--out)")
    if out.exists() and not out.is_dir():
        raise CurateError(f"{out} is a file; give a folder (--out)")


def _claim(out: Path, source: Path, settings: Settings) -> None:
    """Refuse to mix the results of two folders; settings may change, as stages notice that."""
    path = out / SETTINGS_FILE
    if path.is_file():
        was = json.loads(path.read_text(encoding="utf-8"))["source"]
        if was != str(source.resolve()):
            raise CurateError(
                f"{out} holds the curation of {was}; give another folder (--out), or delete this one (where the source "
                f"was only moved, correct it in {path.name})"
            )
    elif others := sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")):
        raise CurateError(f"{out} holds other files ({others[0]}, …); give a new or an empty folder (--out)")
    longest = settings.max_s if math.isfinite(settings.max_s) else None  # JSON has no infinity
    about = {"source": str(source.resolve()), "settings": {**asdict(settings), "max_s": longest}}
    write_text(path, json.dumps(about, indent=1, sort_keys=True) + "\n")


class _Curation:
    """One run over all stages. Every method does one, or finds it done, and returns its token and its result."""

    def __init__(
        self,
        source: Path,
        out: Path,
        settings: Settings,
        mapper: Mapper,
        progress: bool,
        said: Callable[[str], None],
    ) -> None:
        self.source, self.out, self.settings = source, out, settings
        self.mapper, self.progress, self.said = mapper, progress, said
        self.stages = Stages(out, said)

    def run(self) -> Report:
        settings = self.settings
        token, candidates = self.candidates()
        token, clips, uncut = self.clips(token, candidates)
        token, clips, twins = self.unique(token, clips)
        token, described, files = self.features(token, clips)
        refused = (*candidates.refused, *uncut, *twins, *refusals(described, clips))
        self.require(len(described.clips) >= 2, refused, f"only {len(described.clips)} usable clips")
        kept = kept_count(settings.keep, len(described.clips))
        clusters = min(settings.clusters or default_clusters(kept), len(described.clips))
        token, labels = self.clusters(token, described, files, clusters)
        token, ranking = self.selection(token, described, labels, kept)
        ranked = ranking.set_index("clip_id").loc[list(described.clips)].reset_index()
        report = Report(
            out=self.out,
            films=len(candidates.films),
            usable=len(ranked),
            kept=kept,
            clusters=clusters,
            information=float(ranked["score"][ranked["picked"] > 0].mean()),
            refused=tuple(sorted(refused)),
            untrained=settings.video.random or settings.audio.random,
            ran=(),
            skipped=(),
        )
        self.report(token, report, clips, ranked)
        return replace(report, ran=tuple(self.stages.ran), skipped=tuple(self.stages.skipped))

    def candidates(self) -> tuple[str, Candidates]:
        settings = self.settings
        index = self.stages.folder("index")
        found = list_candidates(self.source, index, min_s=settings.min_s, max_s=settings.max_s, progress=self.progress)
        self.require(len(found.films) > 0, found.refused, "no film that can be used")

        def work(folder: Path) -> Iterable[Path]:
            self.said(f"candidates: {len(found.films)} films, {len(found.refused)} refused")
            columns = ["film_id", "bytes", "mtime_ns", "usable_s"]
            yield _written([film.identity for film in found.films], columns, folder / "films.parquet")
            yield _written(found.refused, REFUSED_COLUMNS, folder / "refused.parquet")

        inputs = digest([film.identity for film in found.films], found.refused)
        token, _ = self.stages.run("candidates", (settings.min_s, settings.max_s), [inputs], work)
        return token, found

    def clips(self, token: str, candidates: Candidates) -> tuple[str, list[Clip], list[Refusal]]:
        cutting, films = self.settings.cutting, candidates.films
        token, files = self.stages.run(
            "clips", cutting, [token], lambda folder: self.shards(cut_films, films, folder, cutting, "clips", "film")
        )
        clips, refused = read_clips(films, files)
        self.require(len(clips) > 0, [*candidates.refused, *refused], "no clip that can be used")
        return token, clips, refused

    def unique(self, token: str, clips: list[Clip]) -> tuple[str, list[Clip], list[Refusal]]:
        def work(folder: Path) -> Iterable[Path]:
            kept, refused = drop_duplicates(clips, self.settings.duplicates)
            self.said(f"unique: {len(kept)} of {len(clips)} clips")
            yield _written(refused, REFUSED_COLUMNS, folder / "refused.parquet")

        token, (file,) = self.stages.run("unique", self.settings.duplicates, [token], work)
        refused: list[Refusal] = list(pd.read_parquet(file).itertuples(index=False, name=None))
        twins = {row[0] for row in refused}
        return token, [clip for clip in clips if clip.clip_id not in twins], refused

    def features(self, token: str, clips: list[Clip]) -> tuple[str, Described, list[Path]]:
        settings = self.settings
        spec = Describing(settings.video, settings.audio, settings.windows)
        token, files = self.stages.run(
            "features",
            spec,
            [token],
            lambda folder: self.shards(describe_clips, clips, folder, spec, "features", "clip"),
        )
        return token, read_described(files), files

    def clusters(self, token: str, described: Described, files: list[Path], clusters: int) -> tuple[str, Tensor]:
        seed = self.settings.seed

        def work(folder: Path) -> list[Path]:
            self.said(f"clusters: {clusters} in each of {len(described.layers)} layers")
            places = [folder / f"{digest(token, layer, clusters, seed)}.shard" for layer in described.layers]
            for place, layer in zip(places, tqdm(described.layers, **self.bar("clusters", "layer")), strict=True):
                if not place.is_file():
                    labels = cluster_layer(read_layer(files, layer), clusters, seed=seed)
                    _save({"labels": labels}, place)
            tidy(folder, places)
            return places

        token_after, places = self.stages.run("clusters", (clusters, seed), [token], work)
        return token_after, torch.stack([load_file(place)["labels"] for place in places], dim=1)

    def selection(self, token: str, described: Described, labels: Tensor, size: int) -> tuple[str, pd.DataFrame]:
        how = self.settings.selecting
        sight = sum(layer.startswith("video/") for layer in described.layers)
        layers = (sight, len(described.layers) - sight)

        def work(folder: Path) -> Iterable[Path]:
            self.said(f"selection: {size} of {len(labels)} clips")
            parts: list[Tensor] = []
            with tqdm(total=size, **self.bar("selection", "clip")) as bar:
                for number, (rows, share) in enumerate(deal(len(labels), size, how.chunk, seed=how.seed)):
                    before = sum(len(part) for part in parts)
                    picks = choose(
                        labels[rows],
                        layers,
                        share,
                        how,
                        saved=folder / f"{digest(token, how, size, number)}.shard",
                        advanced=lambda done, before=before: bar.update(before + done - bar.n),  # type: ignore[misc]
                    )
                    parts.append(rows[picks])
            found = rank_clips(labels, layers, _merged(parts), how)
            columns = {"clip_id": described.clips, "picked": found.picked, "score": found.score, "rank": found.rank}
            write_table(pd.DataFrame(columns), folder / "ranking.parquet")
            tidy(folder, [folder / "ranking.parquet"])
            yield folder / "ranking.parquet"

        token_after, (file,) = self.stages.run("selection", (how, size), [token], work)
        return token_after, pd.read_parquet(file)

    def report(self, token: str, report: Report, clips: Sequence[Clip], ranked: pd.DataFrame) -> None:
        by_id = {clip.clip_id: clip for clip in clips}

        def work(folder: Path) -> Iterable[Path]:
            shutil.rmtree(self.out / PREVIEWS, ignore_errors=True)
            manifest = manifest_table([by_id[clip_id] for clip_id in ranked["clip_id"]], ranked, report.refused)
            write_table(manifest, self.out / MANIFEST_FILE)
            write_quarantine(self.out, [(name, f"{stage}: {reason}") for name, _, stage, reason in report.refused])
            best = ranked[ranked["picked"] > 0].nsmallest(self.settings.shown, "rank")
            worst = ranked[ranked["picked"] == 0].nlargest(self.settings.shown, "rank")
            best, worst = ([self.shown(by_id[row.clip_id], row) for row in part.itertuples()] for part in (best, worst))
            notes = [UNTRAINED] if report.untrained else []
            title = f"{self.source.resolve().name}: the best and the worst clips"
            write_text(self.out / PAGE_FILE, page_text(title, self.facts(report), notes, best, worst, report.refused))
            self.said(f"report: {self.out / PAGE_FILE}")
            return []

        outputs = [self.out / name for name in (MANIFEST_FILE, PAGE_FILE, QUARANTINE_FILE)]
        self.stages.run("report", self.settings.shown, [token, digest(report.refused)], work, outputs=outputs)

    def shown(self, clip: Clip, row: Any) -> Shown:
        return Shown(clip, int(row.rank), float(row.score), player_link(clip, self.out, self.source))

    def facts(self, report: Report) -> dict[str, str]:
        settings = self.settings
        return {
            "films": str(report.films),
            "clips": f"{report.usable} usable, {report.kept} kept ({settings.keep:.0%})",
            "refused": f"{len(report.refused)} (see {QUARANTINE_FILE})",
            "networks": ", ".join(_named(choice) for choice in (settings.video, settings.audio)),
            "clusters of a layer": str(report.clusters),
            "pairs of layers": settings.selecting.pairs,
            "information of sight and sound": f"{report.information:.3f} nats",
            "seed": str(settings.seed),
        }

    def shards(self, function: Any, items: Sequence[Any], folder: Path, spec: Any, what: str, unit: str) -> list[Path]:
        self.said(f"{what}: {len(items)} {unit}s to look at")
        bar = self.bar(what, unit)
        return run_shards(function, items, folder, spec=spec, size=self.settings.shard, mapper=self.mapper, bar=bar)

    def bar(self, what: str, unit: str) -> dict[str, Any]:
        return {"desc": what, "unit": unit, "disable": not self.progress, "leave": False}

    def require(self, enough: bool, refused: Sequence[Refusal], what: str) -> None:
        """Where too little is left, the list of what was refused is all there is to write."""
        if not enough:
            write_quarantine(self.out, [(name, f"{stage}: {reason}") for name, _, stage, reason in refused])
            first = f"; the first: {refused[0][0]}: {refused[0][3]}" if refused else ""
            raise CurateError(
                f"{what} in {self.source}: {len(refused)} refused, see {self.out / QUARANTINE_FILE}{first}"
            )


def manifest_table(clips: Sequence[Clip], ranked: pd.DataFrame, refused: Sequence[Refusal]) -> pd.DataFrame:
    """A row for every clip: the ranked ones by rank, then the refused ones by name.

    Args:
        clips: in the order of ``ranked``.
        ranked: ``clip_id``, ``picked``, ``score``, ``rank``.
        refused: ``(id, uri, stage, reason)``; the id of a film where it gave no clip.
    """
    rows = pd.DataFrame([clip.row for clip in clips])
    for name in ("rank", "score", "picked"):
        rows[name] = ranked[name].to_numpy()
    rows["kept"] = rows["picked"] > 0
    left = pd.DataFrame(list(refused), columns=list(REFUSED_COLUMNS)).assign(kept=False)
    table = pd.concat([rows.sort_values("rank"), left], ignore_index=True).reindex(columns=list(MANIFEST_COLUMNS))
    whole = {name: "Int64" for name in ("offset", "length", "rank", "picked")}
    table["picked"] = table["picked"].where(table["kept"])
    return table.astype({**whole, "kept": "bool", "score": "float64", "start_s": "float64", "end_s": "float64"})


def _named(choice: Any) -> str:
    weights = "random weights" if choice.random else Path(choice.weights or "").name
    return f"{choice.modality}: {choice.name or 'as the weights say'}, {weights}"


def _merged(parts: Sequence[Tensor]) -> Tensor:
    """Picks of all chunks in one order: each chunk's in its own, side by side."""
    places = np.concatenate([np.arange(len(part)) / max(len(part), 1) for part in parts])
    return torch.cat(list(parts))[torch.from_numpy(np.argsort(places, kind="stable"))]


def _written(rows: Sequence[Any], columns: Sequence[str], path: Path) -> Path:
    write_table(pd.DataFrame(list(rows), columns=list(columns)), path)
    return path


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)
