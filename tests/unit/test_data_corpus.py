"""The index: round trip, selection, and what a broken one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avssl_core.data import Corpus, CorpusError
from avssl_core.data.corpus import INDEX_COLUMNS, is_shard, split_of
from avssl_core.media import TarMember


def index(**columns: object) -> pd.DataFrame:
    base = {"clip_id": ["a", "b", "c"], "uri": ["a.mp4", "sub/b.mp4", "c.mp4"], "duration_s": [1.0, 2.0, 3.0]}
    return pd.DataFrame({**base, **columns})


def timed(**columns: object) -> pd.DataFrame:
    base = {"clip_id": ["a", "c"], "start_s": [0, 1], "end_s": [1, 2], "kind": ["word"] * 2, "label": ["x", "y"]}
    return pd.DataFrame({**base, **columns})


def test_round_trip_keeps_every_column(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, index(label_x=["p", "q", "p"], sample_rate=[16000, None, 8000]), timed())
    corpus.save()
    again = Corpus.load(tmp_path)
    pd.testing.assert_frame_equal(corpus.index, again.index)
    assert again.timed is not None and corpus.timed is not None
    pd.testing.assert_frame_equal(corpus.timed, again.timed)
    assert not list(tmp_path.glob(".*.tmp"))  # nothing half-written is left


def test_three_columns_are_enough(tmp_path: Path) -> None:
    """Someone's own table needs no more than names and durations; the rest is filled in."""
    corpus = Corpus(tmp_path, index())
    assert list(corpus.index.columns) == list(INDEX_COLUMNS)
    assert corpus.index["split"].tolist() == [split_of(name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert corpus.index["group"].tolist() == ["a", "b", "c"]
    assert len(corpus) == 3 and corpus.source(1) == tmp_path / "sub" / "b.mp4"


def test_the_default_split_is_the_crc_rule() -> None:
    """CRC-32 of the bare name with its extension, 0 modulo 5: the rule that real_data's README states (208 of
    1,000)."""
    assert split_of("deep/er/s1_bbaf2n.mp4") == split_of("s1_bbaf2n.mp4")
    shares = [split_of(f"clip_{n}.mp4") == "test" for n in range(2000)]
    assert 0.15 < np.mean(shares) < 0.25


def test_shard_members_have_an_offset(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, index(uri=["s.tar", "s.tar", "c.mp4"], offset=[512, 4096, None], length=[100, 50, None]))
    assert corpus.source(1) == TarMember(str(tmp_path / "s.tar"), 4096, 50)
    assert corpus.source(2) == tmp_path / "c.mp4"
    assert is_shard("X.TAR") and not is_shard("x.tar.gz")


def test_selection_takes_timed_labels_along(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, index(split=["train", "train", "test"]), timed())
    train = corpus.select(split="train")
    assert train.index["clip_id"].tolist() == ["a", "b"]
    assert train.timed is not None and train.timed["clip_id"].tolist() == ["a"]
    assert corpus.select(rows=[2, 0]).index["clip_id"].tolist() == ["c", "a"]
    assert corpus.select(rows=np.array([True, False, True]), split="test").index["clip_id"].tolist() == ["c"]
    with pytest.raises(CorpusError, match=r"split 'val'.*\['test', 'train'\]"):
        corpus.select(split="val")
    with pytest.raises(CorpusError, match="mask of 2"):
        corpus.select(rows=np.array([True, False]))


def test_codes_are_sorted_names(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, index(label_x=["q", "p", "q"], label_y=["q", None, "q"]))
    codes, names = corpus.codes("label_x")
    assert codes.tolist() == [1, 0, 1] and names == ["p", "q"]
    with pytest.raises(CorpusError, match=r"'label_z'.*\['label_x', 'label_y'\]"):
        corpus.codes("label_z")
    with pytest.raises(CorpusError, match=r"1 clips .* no 'label_y'"):
        corpus.codes("label_y")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (index().drop(columns="uri"), r"columns \['uri'\] are missing"),
        (index().iloc[:0], "no rows"),
        (index(clip_id=["a", "a", "c"]), "clip_id must be present and unique; 1 rows .* row 1 with 'a'"),
        (index(clip_id=["a", None, "c"]), "clip_id must be present"),
        (index(duration_s=[1, 0, 2]), "duration_s must be a positive number .* row 1 with 0.0"),
        (index(duration_s=[1, float("nan"), 2]), "row 1 with nan"),
        (index(duration_s=["one", "2", "3"]), "'duration_s' must hold numbers"),
        (index(uri=["a.mp4", "../b.mp4", "c.mp4"]), r"row 1 with '\.\./b.mp4'"),
        (index(uri=["a.mp4", "/etc/passwd", "c.mp4"]), "below the folder of the corpus"),
        (index(uri=["a.mp4", None, "c.mp4"]), "uri must be"),
        (index(uri=["a.mp4", "b.tar", "c.mp4"]), "offset and length must be given .* row 1"),
    ],
)
def test_a_broken_index_is_told_what_is_wrong(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        Corpus(tmp_path, table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (timed().drop(columns="kind"), r"\['kind'\] are missing"),
        (timed(clip_id=["a", "z"]), "one of the index's clips; .* 'z'"),
        (timed(start_s=[0, 5]), "start_s must not be later than end_s"),
        (timed(start_s=[0, None]), "start_s must not be later"),
        (timed(end_s=["x", 1]), "'end_s' must hold numbers"),
        (timed(label=["x", None]), "label must be present"),
    ],
)
def test_broken_timed_labels_are_told_what_is_wrong(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        Corpus(tmp_path, index(), table)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="open_corpus"):
        Corpus.load(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"not a table")
    with pytest.raises(CorpusError, match="not a readable Parquet"):
        Corpus.load(tmp_path)
