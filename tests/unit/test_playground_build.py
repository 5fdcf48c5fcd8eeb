"""Building corpora: the same files whatever the workers, found again, resumed, and readable by the ordinary reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avssl_core.data import Corpus
from avssl_core.media import probe, read_clip
from data_prep.playground import Actions, Boxes, Web, build_playground, render_clip
from data_prep.playground import build as building
from data_prep.playground.build import content_hash, split_of

SMALL = {"size": 48, "duration_s": 1.0, "sample_rate": 8000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("playground")
    return build_playground(Actions(duration_s=2.0), clips=10, seed=0, root=root, progress=False)


def test_a_corpus_is_what_the_core_loads(corpus: Path) -> None:
    loaded = Corpus.load(corpus)
    assert len(loaded) == 10
    info = probe(loaded.source(3))
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.codec) == (96, 96, "mpeg4")
    assert info.video.fps == 25 and info.audio.sample_rate == 16000 and info.audio.codec == "aac"
    assert loaded.timed is not None and set(loaded.timed.kind) == {"event", "shape", "motion", "direction"}
    assert set(loaded.index.columns) >= {"label_identity", "label_ambience", "label_match", "split", "group"}


def test_the_files_hold_what_was_drawn_and_heard(corpus: Path) -> None:
    """Through encoder and decoder: the right frame at the right time, and the sound in step with it."""
    frames, waveform = render_clip(Actions(duration_s=2.0).clip(0, 4))
    read = read_clip(Corpus.load(corpus).source(4), 0.4, num_frames=16, fps=25, sample_rate=16000, audio_s=0.64)
    drawn = frames[10:26].transpose(0, 3, 1, 2).astype(np.float64)
    error = [np.abs(read.frames.numpy() - np.roll(drawn, shift, axis=0)).mean() for shift in (-1, 0, 1)]
    assert error[1] < 6 and error[1] == min(error)
    assert read.waveform is not None
    heard = read.waveform.numpy()
    lags = range(-160, 161, 4)
    match = [np.dot(heard[200:-200], waveform[6400 + lag :][: len(heard)][200:-200]) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 8  # half a millisecond
    assert np.corrcoef(heard, waveform[6400 : 6400 + len(heard)])[0, 1] > 0.9


def test_truth_lies_beside_the_clips(corpus: Path) -> None:
    truth, actors, boxes = (pd.read_parquet(corpus / f"{name}.parquet") for name in ("truth", "actors", "boxes"))
    assert list(truth.clip_id) == [f"{n:06d}" for n in range(10)]
    assert truth.caption.str.endswith(".").all()
    assert set(actors.track) == {"seen", "heard"}
    assert (boxes.groupby("clip_id").frame.nunique() == 50).all()  # every frame has its box
    assert (boxes.x1 > boxes.x0).all() and (boxes.y1 > boxes.y0).all()
    onsets = pd.read_parquet(corpus / "onsets.parquet")
    assert onsets.time_s.between(0, 2).all()
    about = json.loads((corpus / "recipe.json").read_text())
    assert about["params"]["duration_s"] == 2.0 and about["seed"] == 0


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    folders = [
        build_playground(Web(**SMALL), clips=26, seed=5, root=tmp_path / str(workers), workers=workers, progress=False)
        for workers in (1, 2)
    ]
    assert folders[0].name == folders[1].name
    one, two = ({path.relative_to(f): path.read_bytes() for path in f.rglob("*.mp4")} for f in folders)
    assert len(one) == 26 and one == two
    for name in ("index", "timed", "truth", "actors", "onsets", "boxes"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(folder / f"{name}.parquet") for folder in folders))


def test_a_finished_corpus_is_found_and_a_broken_one_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    write = building.write_clip

    def counting(path: Path, *args: object, **kwargs: object) -> None:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(int(path.stem))
        write(path, *args, **kwargs)

    monkeypatch.setattr(building, "write_clip", counting)
    with pytest.raises(KeyboardInterrupt):
        build_playground(Boxes(**SMALL), clips=8, seed=0, root=tmp_path, workers=1, progress=False)
    folder = next(tmp_path.iterdir())
    assert not (folder / "index.parquet").exists()
    made.clear()
    assert build_playground(Boxes(**SMALL), clips=8, seed=0, root=tmp_path, workers=1, progress=False) == folder
    assert made == [5, 6, 7]  # the first five were found
    assert len(pd.read_parquet(folder / "index.parquet")) == 8
    made.clear()
    build_playground(Boxes(**SMALL), clips=8, seed=0, root=tmp_path, workers=1, progress=False)
    assert made == []


def test_a_worker_that_dies_ends_the_build_with_the_remedy(tmp_path: Path) -> None:
    """A worker killed from outside: no hang, and the next call finishes what is missing."""
    with pytest.raises(RuntimeError, match="Finished clips are kept: call again"):
        list(building._in_parallel(partial(_die, tmp_path), [range(0, 2), range(2, 4)], 2, tmp_path))


def test_a_plain_script_may_build_in_parallel(tmp_path: Path) -> None:
    """Workers that import the main module again would run an unguarded script again, and wait for its lock forever."""
    script = tmp_path / "script.py"
    script.write_text(
        "from data_prep.playground import Boxes, build_playground\n"
        "recipe = Boxes(size=32, duration_s=0.5)\n"
        f"print(build_playground(recipe, clips=26, seed=0, root={str(tmp_path)!r}, workers=2, progress=False))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, script], cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert len(list(Path(done.stdout.strip()).glob("clips/*.mp4"))) == 26


def _die(folder: Path, numbers: range) -> dict[str, list[object]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_everything_that_determines_the_contents_is_in_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    base = content_hash(Actions(), clips=10, seed=0)
    assert base == content_hash(Actions(), clips=10, seed=0)
    others = [
        content_hash(Actions(grain=0.02), clips=10, seed=0),
        content_hash(Actions(), clips=11, seed=0),
        content_hash(Actions(), clips=10, seed=1),
    ]
    monkeypatch.setattr(building, "code_version", lambda: "another")
    others.append(content_hash(Actions(), clips=10, seed=0))
    assert len({base, *others}) == 5


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path))
    folder = build_playground(Boxes(**SMALL), clips=1, seed=0, progress=False)
    assert folder.parent == tmp_path / "playground" and folder.name.startswith("boxes-")


def test_a_quarter_is_for_testing_whatever_the_size_of_the_corpus() -> None:
    splits = [split_of(number) for number in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.25, abs=0.02)
    assert set(splits) == {"train", "test"}


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build_playground(Actions(), clips=0, seed=0, root=tmp_path)
