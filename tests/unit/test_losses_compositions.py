"""Sampling tree, contrast, weight and batch validation: the lemmas by enumeration, the card's tables row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from avssl_core.losses import (
    HYPOTHESES,
    Factor,
    HierarchicalSampler,
    contrast_matrix,
    find_hypothesis,
    path_codes,
    validate_batch,
    weight_matrix,
)

KIND = {"i": "invariant", "d": "distinctive"}


def endless(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def factors(kinds: str, counts: Sequence[int], *, exhaustive: Sequence[int] = ()) -> list[Factor]:
    """Factors named t0, t1, ...; endless spaces but for the columns that shall be exhausted."""
    return [
        Factor(f"t{m}", count if m in exhaustive else endless, count, KIND[kind])
        for m, (kind, count) in enumerate(zip(kinds, counts, strict=True))
    ]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_contrast(batch: Sequence[tuple[object, ...]], kinds: str) -> list[list[bool]]:
    """Product over factors, from the values themselves."""
    return [
        [all(k == "i" or a == b for k, a, b in zip(kinds, first, second, strict=True)) for second in batch]
        for first in batch
    ]


# The tree

LEMMA_CASES = [
    ("di", (4, 2), ()),
    ("ddi", (3, 2, 4), ()),
    ("dii", (2, 3, 2), ()),
    ("didi", (4, 2, 3, 2), (2,)),
    ("didi", (3, 2, 2, 3), (2,)),
    ("ddiid", (2, 3, 2, 2, 2), (4,)),
    ("id", (3, 4), (1,)),
]


@pytest.mark.parametrize(("kinds", "counts", "exhaustive"), LEMMA_CASES)
def test_lemmas_6_and_7(kinds: str, counts: tuple[int, ...], exhaustive: tuple[int, ...]) -> None:
    """Lemma 6: |T| * prod_{I} K pairs with c = 1. Lemma 7: |T| - prod_{I} K pairs with c = 0 for every T."""
    batch = HierarchicalSampler(factors(kinds, counts, exhaustive=exhaustive)).sample(generator())
    size = math.prod(counts)
    shared = math.prod(count for kind, count in zip(kinds, counts, strict=True) if kind == "i")
    contrast = slow_contrast([t.values for t in batch.transformations], kinds)
    assert len(batch) == size and sum(map(sum, contrast)) == size * shared
    assert all(row.count(False) == size - shared for row in contrast)
    assert contrast_matrix(batch.codes, batch.kinds).tolist() == contrast


@pytest.mark.parametrize(("kinds", "counts", "exhaustive"), LEMMA_CASES)
def test_path_codes_give_the_contrast_of_the_values(
    kinds: str, counts: tuple[int, ...], exhaustive: tuple[int, ...]
) -> None:
    sampler = HierarchicalSampler(factors(kinds, counts, exhaustive=exhaustive))
    batch = sampler.sample(generator(1))
    assert sampler.path_codes().tolist() == [list(t.path) for t in batch.transformations]
    by_path, by_value = (contrast_matrix(codes, sampler.kinds) for codes in (sampler.path_codes(), batch.codes))
    assert torch.equal(by_path, by_value)


def test_a_distinctive_factor_below_an_invariant_one_loses_positives() -> None:
    """The card's example: order d,i,d,i with K = 4,2,3,2 has 96 pairs with c = 1 instead of Lemma 6's 192."""
    lossy = factors("didi", (4, 2, 3, 2))
    batch = HierarchicalSampler(lossy, check=False).sample(generator())
    assert contrast_matrix(batch.codes, batch.kinds).sum() == 96
    with pytest.raises(ValueError, match=r"'t2' is drawn below the invariant factor 't1' and is not exhaustive"):
        HierarchicalSampler(lossy)
    exhausted = HierarchicalSampler(factors("didi", (4, 2, 3, 2), exhaustive=(2,))).sample(generator())
    assert contrast_matrix(exhausted.codes, exhausted.kinds).sum() == 192
    reordered = HierarchicalSampler(factors("ddii", (4, 3, 2, 2))).sample(generator())
    assert contrast_matrix(reordered.codes, reordered.kinds).sum() == 192


def test_a_single_invariant_value_above_is_harmless() -> None:
    batch = HierarchicalSampler(factors("didi", (4, 1, 3, 2))).sample(generator())
    assert contrast_matrix(batch.codes, batch.kinds).sum() == 24 * 2


def test_tree_has_no_duplicates_and_is_balanced() -> None:
    counts = (5, 3, 2, 2)
    batch = HierarchicalSampler(factors("ddid", counts, exhaustive=(3,))).sample(generator())
    assert len({t.values for t in batch.transformations}) == len({t.path for t in batch.transformations}) == 60
    for level in range(3):  # drawn from endless spaces: each value is shared by |T| / (K_1 .. K_m) leaves
        shares = Counter(t.values[level] for t in batch.transformations)
        assert set(shares.values()) == {60 // math.prod(counts[: level + 1])}
    assert batch.codes.dtype == torch.int64 and batch.codes.shape == (60, 4)


def test_branches_draw_afresh_and_without_replacement() -> None:
    sampler = HierarchicalSampler([Factor("image", 50, 8, "distinctive"), Factor("crop", 3, 2, "invariant")])
    batch = sampler.sample(generator())
    crops = [tuple(t.values[1] for t in batch.transformations[i : i + 2]) for i in range(0, 16, 2)]
    assert all(first != second for first, second in crops) and len(set(crops)) > 1
    assert len({t.values[0] for t in batch.transformations}) == 8


def test_same_generator_state_same_batch() -> None:
    sampler = HierarchicalSampler(HYPOTHESES["l"].factors(100, 6))
    first, again, other = (sampler.sample(generator(seed)).transformations for seed in (3, 3, 4))
    assert first == again and first != other


def test_exhaustive_factors_keep_the_order_of_their_space() -> None:
    factor = Factor("modality", ("video", "audio"), 2, "invariant")
    assert factor.exhaustive and factor.draw(generator()) == ["video", "audio"]
    assert not Factor("start", endless, 2, "distinctive").exhaustive


def test_simclr_is_a_special_case() -> None:
    """M = 2, B / 2 images, 2 augmentations: one positive and B - 2 negatives each."""
    batch = HierarchicalSampler(factors("di", (16, 2))).sample(generator())
    counts = validate_batch(contrast_matrix(batch.codes, batch.kinds), weight_matrix(batch.codes, "not_self"))
    assert counts.positives.tolist() == [1] * 32 and counts.negatives.tolist() == [30] * 32


def test_ranks_have_different_videos() -> None:
    codes = torch.cat([path_codes((3, 2), rank=rank) for rank in range(2)])
    assert codes[:, 0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    contrast = contrast_matrix(codes, ("distinctive", "invariant"))
    assert not contrast[:6, 6:].any() and contrast[:6, :6].sum() == 12


# Matrices


@pytest.fixture
def random_codes() -> Tensor:
    return torch.randint(3, (20, 4), generator=generator(2))


@pytest.mark.parametrize("kinds", ["".join(k) for k in product("id", repeat=4)])
def test_contrast_is_the_product_rule_and_an_equivalence(random_codes: Tensor, kinds: str) -> None:
    contrast = contrast_matrix(random_codes, [KIND[k] for k in kinds])
    assert contrast.tolist() == slow_contrast([tuple(row) for row in random_codes.tolist()], kinds)
    assert contrast.diagonal().all() and torch.equal(contrast, contrast.T)
    steps = contrast.long() @ contrast.long() > 0
    assert torch.equal(steps, contrast), "not transitive"
    assert contrast.all() == (kinds == "iiii")


def test_weights(random_codes: Tensor) -> None:
    rows = [tuple(row) for row in random_codes.tolist()]
    not_self = weight_matrix(random_codes, "not_self")
    assert not_self.tolist() == [[a != b for b in rows] for a in rows]
    cross = weight_matrix(random_codes, "cross_modal", modality=2)
    assert cross.tolist() == [[a[2] != b[2] for b in rows] for a in rows]
    assert not cross.diagonal().any() and not not_self.diagonal().any()


def test_cross_modal_weight_is_bipartite() -> None:
    codes = path_codes((3, 2, 2))
    weight = weight_matrix(codes, "cross_modal", modality=2)
    video, audio = codes[:, 2] == 0, codes[:, 2] == 1
    assert not weight[video][:, video].any() and not weight[audio][:, audio].any() and weight[video][:, audio].all()


def test_matrices_against_other_columns(random_codes: Tensor) -> None:
    kinds = [KIND[k] for k in "didi"]
    part = contrast_matrix(random_codes[5:9], kinds, others=random_codes)
    assert torch.equal(part, contrast_matrix(random_codes, kinds)[5:9])
    part = weight_matrix(random_codes[5:9], "not_self", others=random_codes)
    assert torch.equal(part, weight_matrix(random_codes, "not_self")[5:9])


# Table of section 2.3: row -> |T| / N, positives, negatives(N), of which same-video

TABLE = {
    "a": (2, 1, lambda n: 2 * n - 2, 0),
    "b": (4, 3, lambda n: 4 * n - 4, 0),
    "c": (4, 3, lambda n: 4 * n - 4, 0),
    "d": (8, 7, lambda n: 8 * n - 8, 0),
    "e": (2, 1, lambda n: n - 1, 0),
    "f": (4, 2, lambda n: 2 * n - 2, 0),
    "g": (4, 2, lambda n: 2 * n - 2, 0),
    "h": (8, 4, lambda n: 4 * n - 4, 0),
    "i": (4, 1, lambda n: 2 * n - 1, 1),
    "j": (4, 1, lambda n: 2 * n - 1, 1),
    "k": (8, 2, lambda n: 4 * n - 2, 2),
    "l": (8, 2, lambda n: 4 * n - 2, 2),
    "m": (8, 1, lambda n: 4 * n - 1, 3),
}


@pytest.mark.parametrize("videos", [2, 5])
@pytest.mark.parametrize("row", TABLE)
def test_counts_of_every_hypothesis_by_enumeration(row: str, videos: int) -> None:
    """Values drawn by the sampler, pairs counted one by one; then the library's matrices and counts."""
    h = HYPOTHESES[row]
    sampler = HierarchicalSampler(h.factors([f"clip{i}.mp4" for i in range(40)], videos))
    batch = [t.values for t in sampler.sample(generator(ord(row))).transformations]
    factor, positives, negatives, hard = TABLE[row]
    assert len(batch) == factor * videos
    kinds = "".join(kind[0] for kind in h.kinds)
    for anchor in batch:
        partners = [t for t in batch if (t[2] != anchor[2] if h.cross_modal else t != anchor)]
        (contrast,) = ([all(k == "i" or a == b for k, a, b in zip(kinds, anchor, t, strict=True)) for t in partners],)
        repelled = [t for t, c in zip(partners, contrast, strict=True) if not c]
        assert sum(contrast) == positives and len(repelled) == negatives(videos)
        assert sum(t[0] == anchor[0] for t in repelled) == hard
    counts = validate_batch(*h.matrices(videos))
    assert counts.positives.tolist() == [positives] * len(batch)
    assert counts.negatives.tolist() == [negatives(videos)] * len(batch)
    c, w = h.matrices(videos)
    same_video = h.codes(videos)[:, 0, None] == h.codes(videos)[None, :, 0]
    assert (~c & w & same_video).sum(dim=1).tolist() == [hard] * len(batch)


def test_hypotheses_of_table_1() -> None:
    assert list(HYPOTHESES) == list("abcdefghijklm")
    best = max(HYPOTHESES.values(), key=lambda h: h.hmdb_accuracy)
    assert best is HYPOTHESES["l"] and best.hmdb_recall == max(h.hmdb_recall for h in HYPOTHESES.values())
    assert (best.hmdb_accuracy, best.hmdb_recall, best.release_id) == (61.4, 27.1, 7)
    assert best.contrast_rule == "δ(i=i′) δ(τ=τ′)" and best.counts(3) == (3, 2, 2, 2, 1)
    ids = {h.release_id: h.row for h in HYPOTHESES.values() if h.release_id is not None}
    assert ids == {1: "e", 2: "i", 3: "f", 4: "j", 5: "g", 6: "m", 7: "l", 8: "k", 9: "h"}
    assert [find_hypothesis(key).row for key in ("l", 7, best)] == ["l"] * 3
    with pytest.raises(ValueError, match="no hypothesis 'z'"):
        find_hypothesis("z")
    with pytest.raises(TypeError):
        HYPOTHESES["n"] = best  # type: ignore[index]


def test_variants_are_those_the_branches_need() -> None:
    for h in HYPOTHESES.values():
        shifts, _, directions, _ = h.branches
        assert len(h.variants) == shifts * directions
        assert ("B" in h.variants) == (shifts == 2) and ("C" in h.variants) == (directions == 2)


# Degenerate cases of section 2.4


@pytest.mark.parametrize(
    ("kinds", "counts", "message"),
    [
        ("ii", (4, 2), "constant embedding would be optimal"),
        ("dii", (1, 2, 2), "no distinctive factor has two values"),
        ("di", (4, 1), "no invariant factor has two values"),
        ("dd", (4, 2), "no invariant factor has two values"),
    ],
)
def test_the_sampler_refuses_compositions_without_negatives_or_positives(
    kinds: str, counts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalSampler(factors(kinds, counts))


def matrices(kinds: str, counts: Sequence[int], mode: str, modality: int | None = None) -> tuple[Tensor, Tensor]:
    codes = path_codes(counts)
    return contrast_matrix(codes, [KIND[k] for k in kinds]), weight_matrix(codes, mode, modality=modality)


@pytest.mark.parametrize(
    ("kinds", "counts", "modality", "message"),
    [
        ("ii", (4, 2), None, r"\(iii\) fails, 8 of 8 anchors.*all factors are invariant"),
        ("ii", (4, 2), 1, r"\(iii\) fails"),
        ("di", (1, 4), None, r"\(iii\) fails.*no distinctive factor has two values"),
        ("dd", (4, 2), None, r"\(i\) fails.*no invariant factor has two values"),
        ("di", (4, 1), None, r"\(i\) fails.*no invariant factor has two values.*empty sum"),
        ("dd", (4, 2), 1, r"\(i\) fails.*no invariant factor has two values"),
        ("did", (4, 2, 2), 2, r"\(i\) fails.*the weight removes every positive.*modality declared distinctive"),
        ("di", (4, 1), 1, r"\(i\) fails.*keeps no pair at all.*K_m = 2"),
    ],
)
def test_validation_names_the_degenerate_case(
    kinds: str, counts: tuple[int, ...], modality: int | None, message: str
) -> None:
    mode = "not_self" if modality is None else "cross_modal"
    with pytest.raises(ValueError, match=message):
        validate_batch(*matrices(kinds, counts, mode, modality))


def test_the_misprinted_weight_removes_every_positive() -> None:
    codes = path_codes((4, 2, 2))
    c, w = matrices("dii", (4, 2, 2), "cross_modal", 2)
    misprint = w & (codes[:, 0, None] != codes[None, :, 0])
    assert validate_batch(c, w).positives.tolist() == [2] * 16
    with pytest.raises(ValueError, match="misprint in the paper"):
        validate_batch(c, misprint)


def test_requirement_ii_only_trivial_positives() -> None:
    """A weight that keeps T = T' hides that nothing else is positive."""
    c = contrast_matrix(path_codes((4, 2)), ("distinctive", "distinctive"))
    with pytest.raises(ValueError, match=r"\(ii\) fails, the only positives are T = T'"):
        validate_batch(c, torch.ones_like(c))


def test_requirement_iii_counts_and_names_the_first_starved_anchor() -> None:
    c, w = matrices("di", (3, 2), "not_self")
    w[2] &= c[2]  # anchor 2 loses its negatives only
    with pytest.raises(ValueError, match=r"1 of 6 anchors \(first: 2\)"):
        validate_batch(c, w)


def test_anchors_without_positives_are_counted_not_refused() -> None:
    c, w = matrices("di", (3, 2), "not_self")
    w[2] &= ~c[2]
    assert validate_batch(c, w).positives.tolist() == [1, 1, 0, 1, 1, 1]


def test_validation_of_the_rows_of_one_process() -> None:
    codes = torch.cat([path_codes((2, 2), rank=rank) for rank in range(2)])
    kinds = ("distinctive", "invariant")
    rows = codes[4:]
    counts = validate_batch(
        contrast_matrix(rows, kinds, others=codes), weight_matrix(rows, "not_self", others=codes), offset=4
    )
    assert counts.positives.tolist() == [1] * 4 and counts.negatives.tolist() == [6] * 4
    everything = torch.ones(4, 8, dtype=torch.bool)
    kept_self = contrast_matrix(rows, ("distinctive", "distinctive"), others=codes)
    with pytest.raises(ValueError, match=r"\(ii\) fails"):
        validate_batch(kept_self, everything, offset=4)


# Messages


def test_factor_messages() -> None:
    with pytest.raises(ValueError, match=r"'start': kind must be one of .* got 'dist'"):
        Factor("start", 3, 2, "dist")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'start': count must be at least 1, got 0"):
        Factor("start", 3, 0, "invariant")
    with pytest.raises(ValueError, match="cannot draw 4 different values from 3"):
        Factor("start", 3, 4, "invariant")
    with pytest.raises(ValueError, match="values of its space must differ"):
        Factor("start", ("a", "b", "a"), 2, "invariant")
    with pytest.raises(ValueError, match="only 1 different values in 1002 draws, 2 are needed"):
        Factor("start", lambda g: 0.5, 2, "invariant").draw(generator())


def test_sampler_and_matrix_messages(random_codes: Tensor) -> None:
    with pytest.raises(ValueError, match="at least one factor"):
        HierarchicalSampler([])
    with pytest.raises(ValueError, match=r"must differ, got \['a', 'a'\]"):
        HierarchicalSampler([Factor("a", 3, 2, "distinctive"), Factor("a", 3, 2, "invariant")])
    with pytest.raises(ValueError, match="4 code columns need as many kinds"):
        contrast_matrix(random_codes, ("invariant",))
    with pytest.raises(ValueError, match="integer tensors"):
        contrast_matrix(random_codes.float(), ("invariant",) * 4)
    with pytest.raises(ValueError, match="unknown weight mode 'all'"):
        weight_matrix(random_codes, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs modality="):
        weight_matrix(random_codes, "cross_modal")
    with pytest.raises(ValueError, match="got 4"):
        weight_matrix(random_codes, "cross_modal", modality=4)
    with pytest.raises(ValueError, match=r"must be bool \(B, N\)"):
        validate_batch(torch.ones(3, 3), torch.ones(3, 3))
