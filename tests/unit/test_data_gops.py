"""Compressed clips as data: drawn as functions of (seed, epoch, index), refused with reasons, batched, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_media_compressed import HEIGHT, WIDTH, drifting, encode

from avssl_core.data import (
    ClipMemory,
    Corpus,
    CorpusError,
    GopDataset,
    NoUsableClipsError,
    PlacedGopDataset,
    SeededOrder,
    TooManyBadClipsError,
    find_structures,
    make_loader,
    open_corpus,
)
from avssl_core.media import GopSpec, MediaError, MediaReader, write_clip

SPEC = GopSpec(2, 12, 4, every_motion=True)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):
        encode(folder / f"{number}.mp4", drifting(48 + 12 * (number % 2)))
    encode(folder / "b.avi", drifting(48), b_frames=2)
    encode(folder / "long.avi", drifting(40), gop=100)
    return open_corpus(folder, progress=False)


def usable(corpus: Corpus) -> Corpus:
    return corpus.select(rows=corpus.index["uri"].str.endswith(".mp4").to_numpy())


def test_items_hold_what_the_spec_says(corpus: Corpus) -> None:
    item = GopDataset(usable(corpus), SPEC, seed=0)[0, 3]
    assert item["iframes"].shape == (3, 2, HEIGHT, WIDTH)
    assert item["motion"].shape == (2, 4, HEIGHT, WIDTH)
    assert item["residual"].shape == (3, 4, HEIGHT, WIDTH)
    assert item["every_motion"].shape == (2, 24, HEIGHT // 8, WIDTH // 8)
    assert item["row"] == 3 and item["bad"] == [] and item["start_s"].shape == (1,)


def test_clips_that_cannot_serve_are_left_out_with_their_reasons(corpus: Corpus) -> None:
    dataset = GopDataset(corpus, SPEC, seed=0)
    reasons = dict(dataset.refused)
    assert set(reasons) == {"b.avi", "long.avi"} and len(dataset) == 5
    assert "B pictures" in reasons["b.avi"] and "avssl data compress" in reasons["b.avi"]
    assert "2 groups of 12 pictures in a row" in reasons["long.avi"]
    with pytest.raises(NoUsableClipsError, match="none of the 7 clips"):
        GopDataset(corpus, GopSpec(9, 12, 2), seed=0)


def test_clips_bring_the_sound_of_their_groups_and_silent_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    pictures = torch.from_numpy(drifting(48).transpose(0, 3, 1, 2).copy())
    wave = torch.sin(torch.arange(48 * 640) / 16000 * 2 * torch.pi * torch.linspace(200, 900, 48 * 640)) * 0.5
    write_clip(folder / "loud.mp4", pictures, wave, fps=25, sample_rate=16000)
    write_clip(folder / "silent.mp4", pictures, fps=25)
    dataset = GopDataset(open_corpus(folder, progress=False), replace(SPEC, sample_rate=16000), seed=0)
    assert dict(dataset.refused) == {"silent.mp4": "has no sound"} and len(dataset) == 1
    item = dataset[0, 0]
    with MediaReader(folder / "loud.mp4") as plain:
        expected = plain.samples(float(item["start_s"]), num_samples=24 * 640, sample_rate=16000)
    assert item["waveform"].shape == (24 * 640,)
    torch.testing.assert_close(item["waveform"], expected)


def test_draws_depend_on_seed_epoch_and_index_alone(corpus: Corpus) -> None:
    clips = usable(corpus)
    one, two, other = GopDataset(clips, SPEC, seed=0), GopDataset(clips, SPEC, seed=0), GopDataset(clips, SPEC, seed=1)
    starts = [float(one[epoch, 1]["start_s"]) for epoch in range(12)]
    assert starts == [float(two[epoch, 1]["start_s"]) for epoch in reversed(range(12))][::-1]
    assert starts != [float(other[epoch, 1]["start_s"]) for epoch in range(12)]
    assert sorted(set(starts)) == pytest.approx([0.0, 0.48, 0.96, 1.44])  # all four places of a clip of five groups


def test_batches_resume(corpus: Corpus) -> None:
    dataset = GopDataset(usable(corpus), SPEC, seed=0)
    loader = make_loader(dataset, SeededOrder(len(dataset), 2, seed=0))
    batches = loader.batches()
    for _ in range(3):
        next(batches)
    fourth, again = next(batches), next(loader.batches(3))
    assert fourth["iframes"].shape == (2, 3, 2, HEIGHT, WIDTH)
    for name in ("iframes", "motion", "residual", "intra", "start_s", "row"):
        assert torch.equal(fourth[name], again[name]), name


def test_structures_are_found_once_and_again_when_the_file_changes(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avssl_core.data import gop_dataset

    first = find_structures(corpus, progress=False)
    opened: list[object] = []
    reader = gop_dataset.media.CompressedReader

    def counting(source: object, **options: object) -> object:
        opened.append(source)
        return reader(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gop_dataset.media, "CompressedReader", counting)
    assert find_structures(corpus, progress=False) == first and not opened
    encode(Path(str(corpus.source(0))), drifting(60))
    assert find_structures(corpus, progress=False) != first and len(opened) == 1


def test_a_file_that_breaks_later_is_replaced_in_the_open(corpus: Corpus) -> None:
    clips = usable(corpus)
    dataset = GopDataset(clips, SPEC, seed=0, max_bad_share=0.5)
    Path(str(clips.source(2))).write_bytes(b"gone")
    item = dataset[0, 2]
    assert item["row"] != 2 and [row for row, _, _ in item["bad"]] == [2]
    with pytest.raises(MediaError):
        PlacedGopDataset(clips, SPEC, seed=0, structures=dataset._windows.structures)[2]
    strict = GopDataset(clips, SPEC, seed=0, structures=dataset._windows.structures, max_bad_share=0.0)
    with pytest.raises(TooManyBadClipsError):
        for _, _ in zip(range(6), make_loader(strict, SeededOrder(len(strict), 2, seed=0)), strict=False):
            pass


def test_placed_clips_lie_in_the_middle(corpus: Corpus) -> None:
    placed = PlacedGopDataset(usable(corpus), SPEC, seed=0)
    assert float(placed[1]["start_s"]) == pytest.approx(0.96)  # of four places, the third
    batch = next(iter(make_loader(placed, 2)))
    assert batch["row"].tolist() == [0, 1]


def test_placed_clips_lie_where_they_are_asked_to(corpus: Corpus) -> None:
    clips = usable(corpus)
    starts = [float(PlacedGopDataset(clips, SPEC, seed=0, at=at)[1]["start_s"]) for at in (0, 1)]
    assert starts == pytest.approx([0.0, 0.48])
    with pytest.raises(ValueError, match="at=99, but there is a clip with"):
        PlacedGopDataset(clips, SPEC, seed=0, at=99)


def test_structures_of_another_corpus_are_refused(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="1 structures for 7 clips"):
        GopDataset(corpus, SPEC, seed=0, structures=find_structures(corpus, progress=False)[:1])


def test_squares_of_one_size_and_memory(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = usable(corpus)
    spec = GopSpec(2, 12, 4, dense=False, every_motion=True)
    memory: ClipMemory = {}
    small, plain = (GopDataset(clips, spec, seed=0, size=size, memory=memory) for size in (32, None))
    first, whole = small[0, 1], plain[0, 1]
    assert first["iframes"].shape == (3, 2, 32, 32) and first["residual"].shape == (3, 4, 32, 32)
    edge = (WIDTH - HEIGHT) // 2 // 8
    middle = whole["motion"][..., edge : edge + HEIGHT // 8]
    torch.testing.assert_close(first["motion"], middle, atol=1e-4, rtol=0)
    inside = whole["iframes"][..., (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
    halved = torch.nn.functional.avg_pool2d(inside.float(), 2)
    assert (halved - first["iframes"].float()).abs().mean() < 1
    monkeypatch.setattr("avssl_core.media.CompressedReader", None)  # from here on memory serves
    again = small[0, 1]
    assert torch.equal(again["iframes"], first["iframes"])
    assert len(memory) == 2  # one clip, at two sizes
    last = clips.select(rows=[1])  # another corpus, the same file
    shared = GopDataset(last, spec, seed=0, size=32, memory=memory)
    start = next(key[1] for key in memory)
    found = shared._windows.read(0, torch.tensor([start]))
    assert torch.equal(found["iframes"], first["iframes"]) and (found["row"], first["row"]) == (0, 1)
