"""The page: names are data, players find their films."""

from __future__ import annotations

import html.parser
import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from helpers_curate import made_up, write_pair
from helpers_media import encode, numbered, tone

from avssl_core.media import TarMember, probe, read_all
from data_prep.curate.page import Shown, page_text, player_link

NASTY = "a'<script>alert(1)</script>&\"#?%41 ü:.mp4"


class Links(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.data += data


def test_names_are_data_on_the_page() -> None:
    shown = Shown(made_up(NASTY), 1, 0.5, "../films/x%20y.mp4#t=0.00,1.00")
    text = page_text(NASTY, {NASTY: NASTY}, [NASTY], [shown], [], [(NASTY, NASTY, "index", NASTY)] * 60)
    page = Links(text)
    assert "script" not in page.tags and page.data.count(NASTY) >= 5
    assert page.links == [shown.link] and page.tags.count("video") == 1
    assert "60 at index" in page.data and "and 10 more" in page.data


def test_players_find_their_films(tmp_path: Path) -> None:
    """A file that browsers play is linked in place; of another, a copy is made that they play."""
    (tmp_path / "films").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    playable = encode(
        tmp_path / "films" / NASTY.replace("/", ""), numbered(10), tone(0.4, rate=16_000), codec="libx264"
    )
    one = made_up(playable.name, source=playable, codec="h264", usable_s=0.4)
    link = player_link(replace(one, start_s=0.0, length_s=0.4), out, tmp_path / "films")
    path, _, part = link.partition("#")
    assert (out / unquote(path)).resolve() == playable.resolve() and part == "t=0.00,0.40"
    assert path.startswith("../films/") and not set(path) & set("<>\"'&?: ")
    other = write_pair(tmp_path / "films" / "b.mp4", 1, 1)
    for source in (other, TarMember(str(other), 0, other.stat().st_size)):
        two = replace(
            made_up("b.mp4", source=source, codec="mpeg4"), start_s=0.2, length_s=0.6, digest=str(type(source))
        )
        link = player_link(two, out, tmp_path / "films")
        copy = out / unquote(link)
        assert link.startswith("./previews/") and probe(copy).video.codec == "h264"
        assert read_all(copy, fps=None, size=None, sample_rate=8000).waveform.abs().max() > 0.2
        assert math.isclose(probe(copy).video.duration_s, 0.6, abs_tol=0.11)
    gone = made_up("c.avi", source=tmp_path / "films" / "c.avi", codec="mpeg4")
    assert player_link(gone, out, tmp_path / "films") == "../films/c.avi#t=0.00,1.00"  # nothing better is there
