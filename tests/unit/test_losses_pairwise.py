"""The released pairwise loss against slow loops over explicit lists of rows, in every reading."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.losses import PairwiseGDTLoss, info_nce, symmetric_info_nce

IDS = range(1, 10)
T = 0.07
Embeddings = dict[str, tuple[Tensor, Tensor]]


def embeddings(rows: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(4, 2, rows, 5, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    return {x: (z[k, 0].clone().requires_grad_(), z[k, 1].clone().requires_grad_()) for k, x in enumerate("ABCD")}


class Remote:
    """Stands for process ``rank`` of ``world_size``: what it gathers was computed beforehand, from everybody's rows."""

    def __init__(self, parts: list[Embeddings], rank: int) -> None:
        self.rank, self.world_size, self._parts = rank, len(parts), parts
        self._pending = [1, 0]  # the loss gathers the keys of v queries (audio) first

    def gather(self, x: Tensor) -> Tensor:
        modality = self._pending.pop(0)
        width = self._parts[0]["A"][0].shape[1]
        names = "ABCD" if x.shape[1] == 4 * width else self.variants
        rows = [torch.cat([part[name][modality] for name in names], dim=1) for part in self._parts]
        torch.testing.assert_close(rows[self.rank].detach(), x.detach(), msg="gathered something else")
        return torch.cat(rows).detach()

    def sum(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    mean = sum


# The card's table, written out as (mode, X, Y); order of evaluation as in the release.
TERMS = {
    1: [("single", "A", "A")],
    2: [("variant", "A", "C")],
    3: [("base", "A", "C"), ("invariant", "A", "C")],
    4: [("variant", "A", "B")],
    5: [("base", "A", "B"), ("invariant", "A", "B")],
    6: [("variant", *p) for p in ("AC", "BD", "AB", "CD")],
    7: [("base", *"AC"), ("invariant", *"AC"), ("invariant", *"BD"), ("variant", *"AB"), ("variant", *"CD")],
    8: [("base", *"AB"), ("variant", *"AC"), ("variant", *"BD"), ("invariant", *"AB"), ("invariant", *"CD")],
    9: [("base", *"AC"), ("base", *"AB"), *(("invariant", *p) for p in ("AC", "BD", "AB", "CD"))],
}


def slow_loss(parts: list[Embeddings], rank: int, release_id: int, *, as_coded: bool, local_all: bool) -> float:
    """Lists of rows as the release keeps them, one scalar at a time."""
    local = parts[rank]
    others = [part for r, part in enumerate(parts) if r != rank]
    grown = [{x: [row for part in others for row in part[x][m]] for x in "ABCD"} for m in range(2)]
    sub_losses = []
    for mode, first, second in TERMS[release_id]:
        remote = []
        for m in range(2):
            a, b = (second, first) if mode == "invariant" else (first, second)
            rows = list(grown[m][a]) if mode == "single" else grown[m][a] + grown[m][b]
            if as_coded:
                grown[m][a] = rows
            remote.append(rows)
        entropies = []
        for query, other in ((first, second), (second, first)):
            for q_modality, k_modality in ((0, 1), (1, 0)):
                queries = local[query][q_modality]
                target = local[other if mode == "invariant" else query][k_modality]
                unused = local[query if mode == "invariant" else other][k_modality]
                for i, q in enumerate(queries):
                    keys = list(target)
                    if mode == "variant":
                        keys += list(unused)
                    elif mode != "single" and local_all:
                        keys += [row for j, row in enumerate(unused) if j != i]
                    keys += remote[k_modality]
                    total = sum(math.exp(float(q.detach() @ key.detach()) / T) for key in keys)
                    entropies.append(math.log(total) - float(q.detach() @ target[i].detach()) / T)
        sub_losses.append(sum(entropies) / len(entropies))
    return sum(sub_losses) / len(sub_losses)


@pytest.mark.parametrize("local_negatives", ["release", "all"])
@pytest.mark.parametrize("release_id", IDS)
def test_one_process_matches_slow_loops(release_id: int, local_negatives: str) -> None:
    z = embeddings()
    found = PairwiseGDTLoss(release_id, local_negatives=local_negatives)(z)
    expected = slow_loss([z], 0, release_id, as_coded=False, local_all=local_negatives == "all")
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("as_coded", [False, True])
@pytest.mark.parametrize("local_negatives", ["release", "all"])
@pytest.mark.parametrize("release_id", IDS)
def test_three_processes_match_slow_loops(release_id: int, local_negatives: str, as_coded: bool) -> None:
    parts = [embeddings(3, seed=seed) for seed in range(3)]
    remote = Remote(parts, rank=1)
    loss = PairwiseGDTLoss(release_id, as_coded=as_coded, local_negatives=local_negatives, collectives=remote)
    remote.variants = loss.hypothesis.variants
    expected = slow_loss(parts, 1, release_id, as_coded=as_coded, local_all=local_negatives == "all")
    assert loss(parts[1]).item() == pytest.approx(expected, abs=1e-12)


def test_id_1_is_symmetric_info_nce() -> None:
    z = embeddings()
    torch.testing.assert_close(PairwiseGDTLoss(1)(z), symmetric_info_nce(*z["A"], temperature=T))


def test_gradients_flow_through_queries_only() -> None:
    """With detached keys the gradient of v_A is that of its own cross-entropies, a_A's that of the other direction."""
    z = embeddings()
    PairwiseGDTLoss(1)(z).backward()
    v, a = z["A"]
    (expected,) = torch.autograd.grad(info_nce(v, a, temperature=T, detach_keys=True) / 2, v)
    torch.testing.assert_close(v.grad, expected)
    (full,) = torch.autograd.grad(symmetric_info_nce(v, a, temperature=T), v)
    assert (v.grad - full).abs().max() > 1e-3
    live = embeddings()
    PairwiseGDTLoss(1, stop_grad_keys=False)(live).backward()
    torch.testing.assert_close(live["A"][0].grad, full)


@pytest.mark.parametrize("local_negatives", ["release", "all"])
@pytest.mark.parametrize("release_id", [1, 6, 7, 9])
def test_gradients_of_live_keys(release_id: int, local_negatives: str) -> None:
    z = embeddings(3)
    loss = PairwiseGDTLoss(release_id, temperature=0.5, stop_grad_keys=False, local_negatives=local_negatives)
    names = loss.hypothesis.variants
    flat = [x for name in names for x in z[name]]

    def value(*rows: Tensor) -> Tensor:
        return loss({name: (rows[2 * k], rows[2 * k + 1]) for k, name in enumerate(names)})

    assert torch.autograd.gradcheck(value, tuple(flat))


def test_stopping_gradients_changes_no_value() -> None:
    z = embeddings()
    for release_id in IDS:
        torch.testing.assert_close(PairwiseGDTLoss(release_id, stop_grad_keys=False)(z), PairwiseGDTLoss(release_id)(z))


@pytest.mark.parametrize("release_id", [2, 3, 7, 9])
def test_own_row_of_the_other_variant_is_a_negative_only_where_distinctive(release_id: int) -> None:
    """A twin in the variant to be told apart from costs log 2; a twin in the invariant variant costs nothing."""
    z = {x: (torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)) for x in "ABCD"}
    for local_negatives in ("release", "all"):
        loss = PairwiseGDTLoss(release_id, local_negatives=local_negatives)(z)
        hard = {2: 1.0, 3: 0.0, 7: 2 / 5, 9: 0.0}[release_id]  # share of `variant` sub-losses, each log 2 here
        assert loss.item() == pytest.approx(hard * math.log(2), abs=1e-4)


@pytest.mark.parametrize("release_id", IDS)
def test_permuting_videos_changes_nothing(release_id: int) -> None:
    z, order = embeddings(), torch.tensor([2, 0, 3, 1])
    permuted = {x: (v[order], a[order]) for x, (v, a) in z.items()}
    torch.testing.assert_close(PairwiseGDTLoss(release_id)(permuted), PairwiseGDTLoss(release_id)(z))


@pytest.mark.parametrize("release_id", IDS)
def test_swapping_modalities_changes_nothing(release_id: int) -> None:
    z = embeddings()
    swapped = {x: (a, v) for x, (v, a) in z.items()}
    torch.testing.assert_close(PairwiseGDTLoss(release_id)(swapped), PairwiseGDTLoss(release_id)(z))


def test_terms_and_negative_counts_of_one_process() -> None:
    """Hypothesis 7: four cross-entropies a sub-loss; 4 rows of the other variant in mode variant."""
    terms, rows = PairwiseGDTLoss(7).cross_entropies(embeddings())
    assert len(terms) == 20 and rows == [0] * 12 + [4] * 8
    assert PairwiseGDTLoss(7, local_negatives="all").cross_entropies(embeddings())[1] == [3] * 12 + [4] * 8
    torch.testing.assert_close(torch.stack(terms).mean(), PairwiseGDTLoss(7)(embeddings()))


def test_a_single_row_next_to_other_processes() -> None:
    """One video a process: no local negatives in the modes base and invariant, and no NaN from empty sums."""
    parts = [embeddings(1, seed=seed) for seed in range(2)]
    for local_negatives in ("release", "all"):
        remote = Remote(parts, rank=0)
        loss = PairwiseGDTLoss(9, local_negatives=local_negatives, collectives=remote)(parts[0])
        loss.backward()
        expected = slow_loss(parts, 0, 9, as_coded=False, local_all=True)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert all(z.grad is None or z.grad.isfinite().all() for both in parts[0].values() for z in both)


@pytest.mark.parametrize("release_id", [1, 7])
def test_half_precision(release_id: int) -> None:
    z = embeddings(32, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PairwiseGDTLoss(release_id, temperature=0.01)(z)
    exact = {x: (v.detach().double(), a.detach().double()) for x, (v, a) in z.items()}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), PairwiseGDTLoss(release_id, temperature=0.01)(exact), rtol=1e-5, atol=0)
    loss.backward()
    assert z["A"][0].grad is not None and z["A"][0].grad.isfinite().all()


def test_hypotheses_by_letter_or_number() -> None:
    z = embeddings()
    torch.testing.assert_close(PairwiseGDTLoss("l")(z), PairwiseGDTLoss(7)(z))
    assert repr(PairwiseGDTLoss("l")).startswith("PairwiseGDTLoss(row='l', temperature=0.07, stop_grad_keys=True")


def test_messages() -> None:
    z = embeddings()
    with pytest.raises(ValueError, match=r"row \(a\) of Table 1 is within-modal"):
        PairwiseGDTLoss("a")
    with pytest.raises(ValueError, match="no hypothesis 10"):
        PairwiseGDTLoss(10)
    with pytest.raises(ValueError, match="temperature must be positive"):
        PairwiseGDTLoss(1, temperature=-1)
    with pytest.raises(ValueError, match="'release' or 'all', got 'none'"):
        PairwiseGDTLoss(1, local_negatives="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\['C', 'D'\] are missing"):
        PairwiseGDTLoss(7)({x: z[x] for x in "AB"})
    with pytest.raises(ValueError, match=r"one shape, got \[\(3, 5\), \(4, 5\)\]"):
        PairwiseGDTLoss(2)({"A": z["A"], "C": (z["C"][0], z["C"][1][:3])})
    with pytest.raises(ValueError, match="use N >= 2"):
        PairwiseGDTLoss(1)(embeddings(1))
