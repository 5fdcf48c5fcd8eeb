"""Clusters, the selection and where it goes on, scores and ranks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_curate import settings, write_pair
from torch import Tensor

from avssl_core.curation import PairwiseInformation, pairing
from data_prep.curate import curate_folder
from data_prep.curate.select import (
    Selecting,
    choose,
    cluster_layer,
    deal,
    default_clusters,
    kept_count,
    pointwise_information,
    rank_clips,
)


def pool(classes: int = 5) -> Tensor:
    """Labels ``(N, 2)``: first as many clips that agree as there are wrong pairs, then each of those once."""
    true = [(label, label) for label in range(classes) for _ in range(classes - 1)]
    return torch.tensor([*true, *itertools.permutations(range(classes), 2)])


def chosen(labels: Tensor, size: int, how: Selecting, path: Path) -> Tensor:
    path.unlink(missing_ok=True)
    return choose(labels, (1, 1), size, how, saved=path, advanced=lambda _: None)


def test_most_of_what_is_kept_belongs_together(tmp_path: Path) -> None:
    labels = pool(6)
    shares = [
        float((chosen(labels, 30, Selecting(seed=seed), tmp_path / "s") < 30).double().mean()) for seed in range(5)
    ]
    assert np.mean(shares) > 0.8 and min(shares) > 0.6  # half of the pool does


def test_a_selection_goes_on_from_its_state(tmp_path: Path) -> None:
    how, labels = Selecting(batch=10, picks=2), pool()
    whole = chosen(labels, 20, how, tmp_path / "a")
    counts: list[int] = []

    class StoppedError(Exception):
        pass

    def stop(done: int) -> None:
        counts.append(done)
        if len(counts) == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        choose(labels, (1, 1), 20, how, saved=tmp_path / "b", advanced=stop)
    rest = choose(labels, (1, 1), 20, how, saved=tmp_path / "b", advanced=counts.append)
    assert counts[3:5] == [8, 8] and rest.tolist() == whole.tolist()


def test_the_score_is_the_clips_own_term_of_the_information() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (50, 5), generator=generator)
    pairs, inside = pairing("bipartite", (2, 3)), torch.rand(50, generator=generator) < 0.4
    score = pointwise_information(labels, pairs, inside)
    information = PairwiseInformation(labels, pairs)
    ids = inside.nonzero()[:, 0]
    assert score[inside.numpy()].mean() == pytest.approx(information(ids))
    outside = int((~inside).nonzero()[0])
    grown = inside.clone()
    grown[outside] = True
    assert score[outside] == pytest.approx(pointwise_information(labels, pairs, grown)[outside])


def test_ranks_put_the_chosen_first_and_sort_by_score() -> None:
    labels = pool()
    found = rank_clips(labels, (1, 1), torch.tensor([3, 30, 5, 9]), Selecting())
    assert found.picked[[3, 30, 5, 9]].tolist() == [1, 2, 3, 4] and (found.picked > 0).sum() == 4
    order = np.argsort(found.rank)
    assert set(order[:4]) == {3, 30, 5, 9} and sorted(found.rank) == list(range(1, 41))
    assert (np.diff(found.score[order[:4]]) <= 0).all() and (np.diff(found.score[order[4:]]) <= 0).all()


def test_chunks_share_what_is_to_be_kept() -> None:
    parts = deal(103, 26, 20, seed=1)
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(103))
    assert sum(share for _, share in parts) == 26 and max(len(rows) for rows, _ in parts) <= 20
    assert {share for _, share in parts} <= {4, 5}
    ((rows, share),) = deal(7, 3, 20, seed=1)
    assert rows.tolist() == list(range(7)) and share == 3


def test_clusters_follow_the_number_of_clips() -> None:
    counts = [default_clusters(kept) for kept in (1, 800, 25_000, 2_000_000, 10**9)]
    assert counts == sorted(counts) and counts[0] == 2 and counts[-1] == 2000
    assert all((c - 1) ** 2 / 2 / kept < 0.16 for c, kept in zip(counts[1:4], (800, 25_000, 2_000_000), strict=True))
    assert [kept_count(share, 10) for share in (0.01, 0.25, 1.0)] == [1, 2, 10]


def test_clusters_do_not_depend_on_the_scale_of_a_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.eye(3).repeat_interleave(10, 0) + 0.01 * torch.randn(30, 3, generator=generator)
    labels = cluster_layer(blobs * torch.tensor([1.0, 1000.0, 1e-3]), 3, seed=0)
    assert labels.dtype == torch.int32 and [len(labels[i : i + 10].unique()) for i in (0, 10, 20)] == [1, 1, 1]
    assert len(labels.unique()) == 3 and len(cluster_layer(blobs[:2], 9, seed=0).unique()) == 2


def test_chunks_are_merged(tmp_path: Path) -> None:
    for number in range(8):
        write_pair(tmp_path / "films" / f"{number}.mp4", number % 2, number % 2, number=number)
    how = settings(clusters=2, selecting=Selecting(chunk=3, batch=3, picks=1))
    report = curate_folder(tmp_path / "films", tmp_path / "out", how, workers=0, progress=False)
    assert report.kept == 4 and report.information > 0.5
