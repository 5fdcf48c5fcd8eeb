"""The decoded cache: equal to the reader, resumable, aware of changed and broken files."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tiny_corpora import FPS, RATE, first_level, write_corpus, write_ramp

from avssl_core import media
from avssl_core.data import ClipError, Corpus, DecodedCache, NoUsableClipsError, WindowSpec

SPEC = WindowSpec(8, FPS, size=(16, 20), sample_rate=RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=5)


@pytest.fixture(scope="module")
def cache(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> DecodedCache:
    return DecodedCache.build(corpus, SPEC, tmp_path_factory.mktemp("cache"), progress=False)


@pytest.mark.parametrize("start", [0.0, 0.13, 0.5, 0.6, 1.68])
def test_windows_equal_those_of_the_reader(corpus: Corpus, cache: DecodedCache, start: float) -> None:
    clip = media.read_clip(corpus.source(2), start, num_frames=8, fps=FPS, size=(16, 20), sample_rate=RATE)
    assert torch.equal(cache.frames(2, start, 8, FPS), clip.frames)
    ours = cache.samples(2, start, 8 * RATE // FPS, RATE)
    assert clip.waveform is not None and ours.dtype == torch.float32
    # One int16 step of rounding, and what is left of the codec's run-up at the start of a window.
    assert (ours - clip.waveform).abs().max() < 5e-3
    assert ours.abs().max() > 0.01 * start


def test_a_window_starts_at_the_nearest_frame(cache: DecodedCache) -> None:
    for start in (0.0, 0.019, 0.021, 0.52, 1.0):
        assert first_level(cache.frames(0, start, 4, FPS)) == pytest.approx(round(start * FPS), abs=0.4)


def test_lower_rates_step_through_the_cached_frames(cache: DecodedCache) -> None:
    levels = cache.frames(0, 0.2, 5, 10)[:, None]
    # Instants 5, 7.5, 10, 12.5, 15 in frames of the cache; ties go to the earlier frame.
    assert [round(first_level(frame)) for frame in levels] == [5, 7, 10, 12, 15]
    with pytest.raises(ValueError, match="cannot give 50"):
        cache.frames(0, 0.0, 4, 50)


def test_windows_outside_the_clip_are_refused(cache: DecodedCache) -> None:
    for start in (-0.5, 1.8):
        with pytest.raises(ClipError, match=rf"clip_0.mp4: .*{start:.3f} s lies? outside"):
            cache.frames(0, start, 8, FPS)
        with pytest.raises(ClipError, match="outside the sound"):
            cache.samples(0, start, 8 * RATE // FPS, RATE)
    with pytest.raises(ValueError, match="holds sound at 16000 Hz, not 8000"):
        cache.samples(0, 0.0, 100, 8000)
    # Half a frame beyond is the reader's tolerance; the sound is then taken that much earlier, nothing is filled in.
    assert cache.frames(0, 1.69, 8, FPS).shape[0] == 8
    assert torch.equal(cache.samples(0, 1.69, 5120, RATE), cache.samples(0, 1.68, 5120, RATE))


def test_windows_are_copies(cache: DecodedCache) -> None:
    before = cache.frames(1, 0.0, 4, FPS).clone()
    cache.frames(1, 0.0, 4, FPS).zero_()
    assert torch.equal(cache.frames(1, 0.0, 4, FPS), before)


def test_it_survives_the_way_to_a_worker(cache: DecodedCache) -> None:
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.frames(3, 0.4, 4, FPS), cache.frames(3, 0.4, 4, FPS))


def test_a_second_build_decodes_nothing(corpus: Corpus, cache: DecodedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(media, "read_all", refuse)
    again = DecodedCache.build(corpus, SPEC, cache.folder.parents[1], progress=False)
    assert torch.equal(again.frames(4, 0.2, 4, FPS), cache.frames(4, 0.2, 4, FPS))
    part = DecodedCache.build(corpus.select(rows=[3, 1]), SPEC, cache.folder.parents[1], progress=False)
    assert torch.equal(part.frames(0, 0.2, 4, FPS), cache.frames(3, 0.2, 4, FPS))


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=6)
    real, done = media.read_all, []

    def stop_after_three(source: media.Source, **settings: object) -> media.AVClip:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(source)
        return real(source, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(media, "read_all", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        DecodedCache.build(corpus, SPEC, tmp_path / "cache", workers=1, progress=False)
    (folder,) = (tmp_path / "cache" / "decoded").iterdir()
    finished = {path.stem for path in folder.glob("*.parquet")}
    assert {path.stem for path in folder.iterdir()} == finished  # no half-written pack is left
    decoded_again: list[object] = []
    monkeypatch.setattr(media, "read_all", lambda source, **s: decoded_again.append(source) or real(source, **s))
    cache = DecodedCache.build(corpus, SPEC, tmp_path / "cache", workers=1, progress=False)
    # Packs of two: the first was finished, the third clip's was not.
    assert not set(decoded_again) & set(done[:2]) and len(decoded_again) == 4
    assert all(cache.frames(row, 0.0, 8, FPS).shape == (8, 3, 16, 20) for row in range(6))


def test_the_number_of_workers_changes_nothing(corpus: Corpus, cache: DecodedCache, tmp_path: Path) -> None:
    other = DecodedCache.build(corpus, SPEC, tmp_path, workers=4, progress=False)
    for row in range(len(corpus)):
        assert torch.equal(other.frames(row, 0.3, 8, FPS), cache.frames(row, 0.3, 8, FPS))
        assert torch.equal(other.samples(row, 0.3, 500, RATE), cache.samples(row, 0.3, 500, RATE))


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=2, frames=30)
    before = DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False)
    shutil.copy(write_ramp(tmp_path / "longer.mp4", frames=40), corpus.root / "clip_1.mp4")
    after = DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False)
    assert before.duration_s(1) == pytest.approx(1.2, abs=0.05)
    assert after.duration_s(1) == pytest.approx(1.6, abs=0.05)
    assert after.duration_s(0) == before.duration_s(0)


def test_settings_have_caches_of_their_own(corpus: Corpus, cache: DecodedCache) -> None:
    root = cache.folder.parents[1]
    smaller = DecodedCache.build(corpus, WindowSpec(8, 10, size=12), root, progress=False)
    assert smaller.folder != cache.folder
    assert smaller.frames(0, 0.0, 8, 10).shape == (8, 3, 12, 15)  # an integer is the shorter side
    with pytest.raises(ValueError, match="holds sound at None Hz"):
        smaller.samples(0, 0.0, 10, RATE)


def test_broken_files_are_recorded_and_raise_in_use(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=4)
    (corpus.root / "clip_1.mp4").write_text("not a video")
    os.remove(corpus.root / "clip_2.mp4")
    cache = DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False)
    assert set(cache.bad) == {1, 2}
    for row in (1, 2):
        with pytest.raises(ClipError, match=f"clip_{row}.mp4"):
            cache.frames(row, 0.0, 8, FPS)
    assert cache.frames(3, 0.0, 8, FPS).shape == (8, 3, 16, 20)
    write_ramp(corpus.root / "clip_2.mp4")  # back again: found at the next build
    assert set(DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False).bad) == {1}


def test_a_corpus_without_one_good_file_is_an_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=2)
    for path in corpus.root.glob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(NoUsableClipsError, match=r"none of the 2 clips (.|\n)*clip_0.mp4"):
        DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False)


def test_the_disk_is_not_filled(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="GiB free; choose a smaller"):
        DecodedCache.build(corpus, WindowSpec(8, 1e6, size=(100_000, 100_000)), tmp_path, progress=False)


def test_the_default_place_is_the_users_cache(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "here"))
    cache = DecodedCache.build(corpus.select(rows=[0]), WindowSpec(2, 5, size=8), progress=False)
    assert cache.folder.is_relative_to(tmp_path / "here" / "decoded")
