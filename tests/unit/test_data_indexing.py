"""Indexing a folder: what is found, what is refused and why, what is remembered."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from tiny_corpora import FPS, RATE, write_corpus, write_ramp

from avssl_core import media
from avssl_core.data import Corpus, NoUsableClipsError, index_folder, open_corpus, refusal_report
from avssl_core.data.corpus import split_of


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ramp(tmp_path_factory.mktemp("ramp") / "ramp.mp4", frames=25)


def place(ramp: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ramp, target)


def count_probes(monkeypatch: pytest.MonkeyPatch) -> list[media.Source]:
    seen: list[media.Source] = []
    real = media.probe

    def probe(source: media.Source, *, verify: bool = False) -> media.MediaInfo:
        seen.append(source)
        return real(source, verify=verify)

    monkeypatch.setattr(media, "probe", probe)
    return seen


def test_rows_describe_the_files(tmp_path: Path) -> None:
    write_ramp(tmp_path / "with.mp4", frames=50)
    write_ramp(tmp_path / "without.mp4", frames=25, height=48, width=32, sound=False)
    corpus, refused = index_folder(tmp_path, progress=False)
    assert refused.empty and corpus.index["clip_id"].tolist() == ["with.mp4", "without.mp4"]
    first, second = (corpus.index.iloc[row] for row in range(2))
    assert first["duration_s"] == pytest.approx(2.0, abs=0.05) and first["fps"] == pytest.approx(FPS)
    assert (first["width"], first["height"], first["sample_rate"]) == (40, 32, RATE)
    assert (first["video_codec"], first["audio_codec"]) == ("mpeg4", "aac")
    assert (second["width"], second["height"], second["audio_codec"]) == (32, 48, "")
    assert second["duration_s"] == pytest.approx(1.0, abs=0.05)
    assert first["split"] == split_of("with.mp4") and first["group"] == "with.mp4"
    assert "label_folder" not in corpus.index


def test_subfolders_are_groups_and_labels(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "dog" / "a.mp4", tmp_path / "dog" / "deep" / "b.mp4", tmp_path / "cat" / "a.mp4")
    corpus, _ = index_folder(tmp_path, progress=False)
    table = corpus.index.set_index("clip_id")
    assert table["label_folder"].to_dict() == {"cat/a.mp4": "cat", "dog/a.mp4": "dog", "dog/deep/b.mp4": "dog"}
    assert table["group"].to_dict() == table["label_folder"].to_dict()


def test_top_folders_named_as_splits_are_splits(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "train" / "dog" / "a.mp4", tmp_path / "Validation" / "cat" / "b.mp4")
    table = index_folder(tmp_path, progress=False)[0].index.set_index("clip_id")
    assert table["split"].to_dict() == {"Validation/cat/b.mp4": "val", "train/dog/a.mp4": "train"}
    assert table["label_folder"].tolist() == ["cat", "dog"]


def test_what_is_refused_is_reported_with_its_reason(tmp_path: Path, ramp: Path) -> None:
    place(
        ramp,
        tmp_path / "good.mp4",
        tmp_path / "café ☕ 'n\" <b>.mp4",
        tmp_path / ".hidden.mp4",
        tmp_path / ".git" / "x.mp4",
    )
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(ramp.read_bytes()[:200])
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "notes.txt").write_text("not looked at")
    corpus, refused = index_folder(tmp_path, progress=False)
    assert corpus.index["uri"].tolist() == ["café ☕ 'n\" <b>.mp4", "good.mp4"]
    assert refused["uri"].tolist() == ["cut.mp4", "empty.mp4", "gone.mp4", "text.mp4"]
    reasons = refused.set_index("uri")["reason"]
    assert "zero bytes" in reasons["empty.mp4"] and "no such file" in reasons["gone.mp4"]
    assert (reasons.str.len() > 10).all()
    report = refusal_report(refused, shown=2)
    assert "4 files were left out" in report and "empty.mp4: " in report and "and 2 more" in report


def test_a_name_that_is_not_utf8_is_refused_not_fatal(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "good.mp4")
    try:
        os.link(tmp_path / "good.mp4", os.fsencode(tmp_path) + b"/bad\xff.mp4")
    except OSError:
        pytest.skip("this file system does not allow such names")
    corpus, refused = index_folder(tmp_path, progress=False)
    assert len(corpus) == 1 and "not valid UTF-8" in refused["reason"].iat[0]


def test_links_are_followed_and_loops_end(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "elsewhere" / "b.mp4", tmp_path / "root" / "sub" / "a.mp4")
    (tmp_path / "root" / "sub" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "self.mp4").symlink_to(tmp_path / "root" / "self.mp4")
    corpus, refused = index_folder(tmp_path / "root", progress=False)
    assert corpus.index["uri"].tolist() == ["other/b.mp4", "sub/a.mp4"]
    assert refused["uri"].tolist() == ["self.mp4"]


@pytest.mark.timeout(30)
def test_a_pipe_named_mp4_does_not_hang(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "good.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert len(index_folder(tmp_path, progress=False)[0]) == 1


def test_a_folder_without_a_usable_video_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="not a folder"):
        index_folder(tmp_path / "absent")
    with pytest.raises(NoUsableClipsError, match="no files in"):
        index_folder(tmp_path, progress=False)
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    with pytest.raises(NoUsableClipsError, match=r"no video files in .*, only 1 \.wav; .*\.mp4"):
        index_folder(tmp_path, progress=False)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(NoUsableClipsError, match=r"none of the 1 files (.|\n)*empty.mp4: .*zero bytes") as error:
        index_folder(tmp_path, progress=False)
    assert len(error.value.refused) == 1


def test_only_new_and_changed_files_are_probed_again(
    tmp_path: Path, ramp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(ramp, *(tmp_path / f"{name}.mp4" for name in "abc"))
    (tmp_path / "bad.mp4").write_bytes(b"")
    seen = count_probes(monkeypatch)
    index_folder(tmp_path, progress=False)
    assert len(seen) == 4
    seen.clear()
    corpus, refused = index_folder(tmp_path, progress=False)
    assert seen == [] and len(corpus) == 3 and refused["uri"].tolist() == ["bad.mp4"]
    write_ramp(tmp_path / "b.mp4", frames=40)
    place(ramp, tmp_path / "bad.mp4", tmp_path / "d.mp4")
    (tmp_path / "c.mp4").unlink()
    corpus, refused = index_folder(tmp_path, progress=False)
    assert sorted(Path(str(source)).name for source in seen) == ["b.mp4", "bad.mp4", "d.mp4"]
    assert corpus.index["uri"].tolist() == ["a.mp4", "b.mp4", "bad.mp4", "d.mp4"] and refused.empty
    assert corpus.index.set_index("uri")["duration_s"]["b.mp4"] == pytest.approx(1.6, abs=0.05)


def test_columns_that_someone_added_survive_an_update(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "a.mp4", tmp_path / "b.mp4")
    corpus, _ = index_folder(tmp_path, progress=False)
    corpus.index["label_mine"] = ["x", "y"]
    corpus.index.loc[0, "split"] = "val"
    corpus.save()
    place(ramp, tmp_path / "c.mp4")
    table = open_corpus(tmp_path, progress=False).index.set_index("uri")
    assert table["label_mine"].tolist()[:2] == ["x", "y"] and pd.isna(table["label_mine"]["c.mp4"])
    assert table["split"]["a.mp4"] == "val"


def test_a_corpus_that_came_with_an_index_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ramp: Path
) -> None:
    write_corpus(tmp_path, clips=2)
    place(ramp, tmp_path / "extra.mp4")
    seen = count_probes(monkeypatch)
    corpus = open_corpus(tmp_path)
    assert corpus.index["clip_id"].tolist() == ["c0", "c1"] and seen == [] and corpus.timed is not None


def test_open_corpus_reports_what_it_left_out(tmp_path: Path, ramp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(ramp, tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    assert len(open_corpus(tmp_path)) == 1
    assert "1 files were left out:\n  bad.mp4: " in capsys.readouterr().out


def test_a_read_only_folder_is_indexed_in_the_users_cache(
    tmp_path: Path, ramp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "media", tmp_path / "cache"
    place(ramp, folder / "a.mp4")
    monkeypatch.setenv("AVSSL_CACHE", str(cache))
    folder.chmod(0o555)
    try:
        index_folder(folder, progress=False)
        assert [path.name for path in folder.iterdir()] == ["a.mp4"]
        assert len(list(cache.glob("indices/*/index.parquet"))) == 1
        seen = count_probes(monkeypatch)
        corpus = open_corpus(folder, progress=False)
        assert seen == [] and corpus.source(0) == folder / "a.mp4"
    finally:
        folder.chmod(0o755)


def test_a_damaged_index_is_made_again(tmp_path: Path, ramp: Path) -> None:
    place(ramp, tmp_path / "a.mp4")
    index_folder(tmp_path, progress=False)
    (tmp_path / "refused.parquet").write_bytes(b"junk")
    assert len(index_folder(tmp_path, progress=False)[0]) == 1
    assert len(pd.read_parquet(tmp_path / "refused.parquet")) == 0


def test_shards_are_indexed_and_read_in_place(tmp_path: Path, ramp: Path) -> None:
    with tarfile.open(tmp_path / "shard-000.tar", "w") as shard:
        for name in ("dog/001.mp4", "dog/001.json", "cat/002.mp4", "cat/bad.mp4"):
            data = ramp.read_bytes() if name[4:7].isdigit() and name.endswith("mp4") else b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    (tmp_path / "junk.tar").write_bytes(b"no archive" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as shard:
        shard.add(ramp, "a.mp4")
    corpus, refused = index_folder(tmp_path, progress=False)
    assert corpus.index["clip_id"].tolist() == ["shard-000.tar#cat/002.mp4", "shard-000.tar#dog/001.mp4"]
    assert corpus.index["label_folder"].tolist() == ["cat", "dog"]
    assert refused["uri"].tolist() == ["junk.tar", "packed.tar", "shard-000.tar#cat/bad.mp4"]
    assert refused["reason"].str.contains("uncompressed tar").tolist() == [True, True, False]
    again = Corpus.load(tmp_path)
    source = again.source(1)
    assert isinstance(source, media.TarMember)
    loose = media.read_clip(ramp, 0.2, num_frames=4, fps=FPS)
    assert (media.read_clip(source, 0.2, num_frames=4, fps=FPS).frames == loose.frames).all()


def test_a_name_with_a_hash_sign_is_an_ordinary_name(
    tmp_path: Path, ramp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(ramp, tmp_path / "song #1" / "take #2.mp4")
    (tmp_path / "bad #3.mp4").write_bytes(b"")
    corpus, refused = index_folder(tmp_path, progress=False)
    assert corpus.index["group"].tolist() == ["song #1"] and refused["uri"].tolist() == ["bad #3.mp4"]
    seen = count_probes(monkeypatch)
    index_folder(tmp_path, progress=False)
    assert seen == []


def test_the_number_of_workers_changes_nothing(tmp_path: Path, ramp: Path) -> None:
    place(ramp, *(tmp_path / "media" / f"{n}.mp4" for n in range(12)))
    tables = [
        index_folder(tmp_path / "media", workers=workers, progress=False, index_dir=tmp_path / str(workers))[0].index
        for workers in (1, 5)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_real_clips_in_folders(real_data: Path, tmp_path: Path) -> None:
    corpus, refused = index_folder(real_data / "av_events", progress=False, index_dir=tmp_path)
    assert len(corpus) == 62 and refused.empty
    assert corpus.index["label_folder"].nunique() == 16
    manifest = pd.read_csv(real_data / "MANIFEST.csv").set_index("file")
    for row in corpus.index.itertuples():
        known = manifest.loc[f"av_events/{row.uri}"]
        assert row.duration_s == pytest.approx(known["duration_s"], abs=0.3), row.uri
