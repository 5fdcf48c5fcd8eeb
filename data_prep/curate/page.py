"""One page to judge a curation by: the best and the worst clips with players, and what was refused.

The page is one file without a script. Names of files are data: escaped in text, quoted in links; links are relative, so
that both folders can be moved together. Browsers do not play MPEG-4 Part 2, AVI or what lies inside a tar shard; for
such clips a small H.264 copy of the stretch is written beside the page.
"""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from avssl_core.media import MediaReader, write_clip
from data_prep.curate.candidates import Refusal
from data_prep.curate.clips import Clip, fatal

PREVIEWS = "previews"
_PLAYED = {".mp4": ("h264", "av1"), ".m4v": ("h264",), ".webm": ("vp8", "vp9", "av1")}  # containers, their codecs
_PREVIEW_SIZE, _PREVIEW_FPS, _PREVIEW_RATE, _PREVIEW_QP = 160, 25.0, 24_000, 26
_LISTED = 50

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
video { width: 100%; aspect-ratio: 4 / 3; background: #222; }
figcaption { font-size: 0.85rem; overflow-wrap: anywhere; }
.note { border-left: 0.3rem solid #c80; padding-left: 0.8rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
td, th { border: 1px solid #8888; padding: 0.2rem 0.5rem; text-align: left; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Shown:
    """A clip on the page.

    Attributes:
        clip: which.
        rank: from 1.
        score: in nats.
        link: of its player, ready for an attribute.
    """

    clip: Clip
    rank: int
    score: float
    link: str


def page_text(
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str],
    best: Sequence[Shown],
    worst: Sequence[Shown],
    refused: Sequence[Refusal],
) -> str:
    """The page.

    Args:
        title: its heading.
        facts: lines of the table on top.
        notes: warnings.
        best: kept clips of the highest scores.
        worst: clips of the lowest scores that were not kept.
        refused: ``(id, uri, stage, reason)``; the first fifty are listed, all are counted.
    """
    body = [f"<h1>{_text(title)}</h1>", *(f'<p class="note">{_text(note)}</p>' for note in notes)]
    body.append(_table(("what", "value"), list(facts.items())))
    body.append(
        "<p>The score of a clip is the information that its sight and its sound have of each other among the kept "
        "clips, in nats: high where what is seen and what is heard are often met together, below zero where they "
        "are met less often than by chance.</p>"
    )
    body += [_section("Best of the kept", best), _section("Worst of the others", worst)]
    if refused:
        stages = Counter(stage for _, _, stage, _ in refused)
        count = ", ".join(f"{number} at {stage}" for stage, number in stages.items())
        body.append(f"<h2>Refused: {_text(count)}</h2>")
        body.append(_table(("clip", "reason"), [(name, reason) for name, _, _, reason in refused[:_LISTED]]))
        if len(refused) > _LISTED:
            body.append(f"<p>… and {len(refused) - _LISTED} more, all in the manifest.</p>")
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    text = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'


def player_link(clip: Clip, out: Path, source: Path) -> str:
    """Where a player on a page in ``out`` finds a clip, relative and quoted.

    A copy is written for what browsers do not play; where that fails, the link is to the file itself.

    Args:
        clip: of a film below ``source``.
        out: folder of the page.
        source: folder that uris are relative to.
    """
    if _plays(clip):
        return _link(source.resolve() / clip.film.uri, out, clip)
    copy = out / PREVIEWS / f"{clip.digest}-{clip.start_s:.2f}.mp4"
    try:
        if not copy.is_file():
            _write_preview(clip, copy)
    except Exception as error:  # a player that shows nothing is no reason to end a run
        if fatal(error):
            raise
        return _link(source.resolve() / clip.film.uri, out, clip)
    return _link(copy, out, None)


def _plays(clip: Clip) -> bool:
    path = clip.film.source
    return isinstance(path, Path) and clip.film.codec in _PLAYED.get(path.suffix.lower(), ())


def _link(path: Path, out: Path, clip: Clip | None) -> str:
    """Relative to the page; with the stretch of a film as a media fragment."""
    relative = PurePosixPath(Path(os.path.relpath(path, out.resolve()))).as_posix()
    # A first part with a colon would be read as a protocol.
    there = quote(relative if relative.startswith("..") else f"./{relative}")
    return there if clip is None else f"{there}#t={clip.start_s:.2f},{clip.start_s + clip.length_s:.2f}"


def _write_preview(clip: Clip, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with MediaReader(clip.film.source) as reader:
        video = reader.info.video
        fps = min(_PREVIEW_FPS, video.fps) if video is not None else _PREVIEW_FPS
        count = max(1, int(clip.length_s * fps))
        frames = reader.frames(clip.start_s, num_frames=count, fps=fps, size=_PREVIEW_SIZE).frames
        samples = max(1, int(clip.length_s * _PREVIEW_RATE))
        waveform = reader.samples(clip.start_s, num_samples=samples, sample_rate=_PREVIEW_RATE)
    even = frames[..., : frames.shape[2] // 2 * 2, : frames.shape[3] // 2 * 2]  # as H.264 in 4:2:0 wants it
    write_clip(
        path, even, waveform, fps=fps, sample_rate=_PREVIEW_RATE, video_codec="libx264", quantiser=_PREVIEW_QP, gop=50
    )


def _section(heading: str, clips: Sequence[Shown]) -> str:
    figures = "\n".join(
        f'<figure><video controls preload="metadata" src="{html.escape(shown.link)}"></video>'
        f"<figcaption>{_text(shown.clip.clip_id)}<br>rank {shown.rank}, score {shown.score:+.3f}</figcaption></figure>"
        for shown in clips
    )
    return f'<h2>{_text(heading)}</h2>\n<div class="clips">\n{figures or "<p>None.</p>"}\n</div>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in (head, *lines)) + "</table>"


def _text(text: str) -> str:
    return html.escape(str(text))
