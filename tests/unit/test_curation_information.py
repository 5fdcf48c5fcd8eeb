"""Tables, mutual information and the incremental objective against slow loops, closed forms and enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from avssl_core.curation import (
    ContingencyTables,
    PairwiseInformation,
    adjusted_mutual_information,
    contingency_table,
    entropy,
    expected_mutual_information,
    independence_bias,
    miller_madow_information,
    mutual_information,
    normalised_mutual_information,
    pairing,
)
from avssl_core.curation import contingency as contingency_module
from avssl_core.curation import objective as objective_module
from avssl_core.curation.objective import GRID, StepTable


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_labels(clips: int, clusters: tuple[int, ...], seed: int = 0) -> Tensor:
    columns = [torch.randint(c, (clips,), generator=generator(seed + 97 * d)) for d, c in enumerate(clusters)]
    return torch.stack(columns, dim=1)


def slow_information(a: list[int], b: list[int]) -> float:
    """Eq. (4.2), cell by cell over all pairs of clusters."""
    total = 0.0
    for i, j in itertools.product(set(a), set(b)):
        both = sum(x == i and y == j for x, y in zip(a, b, strict=True))
        if both:
            total += both / len(a) * math.log(len(a) * both / (a.count(i) * b.count(j)))
    return total


def slow_objective(labels: Tensor, pairs: Tensor, ids: list[int], weights: list[float] | None = None) -> float:
    """Eq. (4.3): the tables are made anew."""
    rows = labels[ids].tolist()
    values = [
        slow_information([row[p] for row in rows], [row[q] for row in rows]) if rows else 0.0 for p, q in pairs.tolist()
    ]
    return sum(w * value for w, value in zip(weights or [1.0] * len(values), values, strict=True)) / len(values)


# Tables


def test_a_table_counts() -> None:
    table = contingency_table(torch.tensor([0, 2, 0, 0]), torch.tensor([1, 0, 1, 0]))
    assert table.tolist() == [[1, 2], [0, 0], [1, 0]] and table.dtype == torch.int64
    wide = contingency_table(torch.tensor([0, 1]), torch.tensor([0, 0]), rows=3, columns=2)
    assert wide.tolist() == [[1, 0], [1, 0], [0, 0]]
    nothing = torch.empty(0, dtype=torch.int64)
    assert contingency_table(nothing, nothing, rows=2, columns=3).tolist() == [[0] * 3] * 2


def test_growing_tables_equal_counted_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contingency_module, "ROW_CHUNK", 7)
    clusters, pairs = (3, 5, 2), torch.tensor([[0, 1], [2, 1], [0, 2]])
    labels = random_labels(40, clusters)
    tables = ContingencyTables(clusters, pairs)
    tables.add(labels[:25].numpy())
    tables.add(labels[25:].numpy())
    assert tables.total == 40
    for number, (p, q) in enumerate(pairs.tolist()):
        expected = contingency_table(labels[:, p], labels[:, q], rows=clusters[p], columns=clusters[q])
        assert torch.equal(tables.table(number), expected)
        assert torch.equal(tables.sizes(p), expected.sum(dim=1))
        assert torch.equal(tables.sizes(q), expected.sum(dim=0))


def test_shards_merge() -> None:
    clusters, pairs, labels = (4, 4), torch.tensor([[0, 1]]), random_labels(30, (4, 4))
    whole, first, second = (ContingencyTables(clusters, pairs) for _ in range(3))
    whole.add(labels.numpy())
    first.add(labels[:11].numpy())
    second.add(labels[11:].numpy())
    first.merge(second)
    assert torch.equal(first.table(0), whole.table(0)) and first.total == 30
    assert not torch.equal(second.table(0), whole.table(0))
    with pytest.raises(ValueError, match="count both with the same clusters"):
        first.merge(ContingencyTables((4, 5), pairs))


def test_too_many_clips_are_refused() -> None:
    tables = ContingencyTables((1, 1), torch.tensor([[0, 1]]))
    tables.total = 2**31 - 2
    tables.add(torch.zeros(1, 2, dtype=torch.int64).numpy())
    with pytest.raises(OverflowError, match="count shards apart"):
        tables.add(torch.zeros(1, 2, dtype=torch.int64).numpy())


# Mutual information


@pytest.mark.parametrize("seed", range(5))
def test_information_equals_the_slow_sum(seed: int) -> None:
    labels = random_labels(30, (4, 6), seed)
    a, b = labels.T
    found = mutual_information(contingency_table(a, b)).item()
    assert found == pytest.approx(slow_information(a.tolist(), b.tolist()), abs=1e-14)
    assert found == pytest.approx(mutual_information(contingency_table(b, a)).item(), abs=1e-14)
    relabelled = torch.randperm(4, generator=generator(seed))[a]
    assert found == pytest.approx(mutual_information(contingency_table(relabelled, b)).item(), abs=1e-14)
    ceiling = min(entropy(torch.bincount(a)).item(), entropy(torch.bincount(b)).item())
    assert 0 < found <= ceiling


def test_information_in_closed_form() -> None:
    product = torch.outer(torch.tensor([1, 2, 3]), torch.tensor([5, 1]))
    assert mutual_information(product).item() == pytest.approx(0, abs=1e-15)
    diagonal = torch.diag(torch.tensor([7, 7, 7, 7]))  # the maximum: agreement and balance
    assert mutual_information(diagonal).item() == pytest.approx(math.log(4))
    unbalanced = torch.diag(torch.tensor([9, 1]))
    assert mutual_information(unbalanced).item() == pytest.approx(entropy(torch.tensor([9, 1])).item())
    assert entropy(torch.tensor([9, 1])).item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert mutual_information(torch.zeros(2, 2)).item() == 0 and entropy(torch.zeros(2)).item() == 0
    assert mutual_information(torch.tensor([[1, 0], [0, 0]])).item() == 0
    batch = mutual_information(torch.stack([product[:2], diagonal[:2, :2]]))
    assert batch.tolist() == pytest.approx([0, math.log(2)], abs=1e-15) and batch.dtype == torch.float64


def test_independent_labels_show_the_bias() -> None:
    values = []
    for seed in range(40):
        a, b = random_labels(2000, (16, 16), seed).T
        values.append(contingency_table(a, b, rows=16, columns=16))
    tables = torch.stack(values)
    plain, bias = mutual_information(tables), independence_bias(16, 16, 2000)
    assert plain.mean().item() == pytest.approx(bias, rel=0.1)  # 0.056 nats, where the truth is 0
    assert abs(miller_madow_information(tables).mean().item()) < 0.2 * bias
    adjusted = torch.stack([adjusted_mutual_information(table) for table in tables[:10]])
    assert adjusted.abs().max() < 0.01


def test_miller_madow_is_the_corrected_entropies() -> None:
    table = torch.tensor([[3, 0, 2], [0, 0, 4], [0, 0, 0]])  # an empty row and column do not count

    def corrected(sizes: Tensor) -> float:
        return entropy(sizes).item() + (int((sizes > 0).sum()) - 1) / (2 * 9)

    expected = corrected(table.sum(dim=1)) + corrected(table.sum(dim=0)) - corrected(table.flatten())
    assert miller_madow_information(table).item() == pytest.approx(expected, abs=1e-14)
    assert miller_madow_information(torch.zeros(2, 2)).item() == 0


def test_expected_information_by_enumeration() -> None:
    a = [0, 0, 0, 1, 1, 2]
    b = [0, 0, 1, 1, 1, 1]
    values = [slow_information(list(shuffled), b) for shuffled in itertools.permutations(a)]
    table = contingency_table(torch.tensor(a), torch.tensor(b))
    assert expected_mutual_information(table).item() == pytest.approx(sum(values) / len(values), abs=1e-13)


@pytest.mark.parametrize("mean", ["arithmetic", "max", "min"])
def test_normalised_and_adjusted_information(mean: str) -> None:
    a, b = random_labels(60, (3, 5)).T
    table = contingency_table(a, b)
    entropies = [entropy(table.sum(dim=dim)).item() for dim in (0, 1)]
    ceiling = {"arithmetic": sum(entropies) / 2, "max": max(entropies), "min": min(entropies)}[mean]
    information = mutual_information(table).item()
    assert normalised_mutual_information(table, mean=mean).item() == pytest.approx(information / ceiling)
    expected = adjusted_mutual_info_score(a, b, average_method=mean)
    assert adjusted_mutual_information(table, mean=mean).item() == pytest.approx(expected, abs=1e-10)
    same = contingency_table(a, torch.tensor([2, 0, 1])[a])
    assert normalised_mutual_information(same, mean=mean).item() == pytest.approx(1)
    assert adjusted_mutual_information(same, mean=mean).item() == pytest.approx(1)
    single = torch.tensor([[1, 0], [0, 0]])
    assert normalised_mutual_information(single, mean=mean) == adjusted_mutual_information(single, mean=mean) == 0


# The objective


@pytest.mark.parametrize("scheme", ["diagonal", "bipartite", "combination", "intra"])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_scores_equal_recomputed_tables(scheme: str, weighted: bool) -> None:
    """After any sequence of additions, one or many clips at a time."""
    pairs = pairing(scheme, (2, 2))
    labels = random_labels(50, (4, 3, 5, 2)).short()
    weights = torch.rand(len(pairs), generator=generator(3)) if weighted else None
    objective = PairwiseInformation(labels, pairs, weights=weights)
    running, chosen = objective.running(), []
    for step, more in enumerate([[7], [3, 11, 20], [4], list(range(21, 40)), [0, 1]]):
        for clip in more if step % 2 else []:
            running.add_one(clip)
        if step % 2 == 0:
            running.add(torch.tensor(more))
        chosen += more
        plain = None if weights is None else weights.tolist()
        assert running.size == len(chosen)
        assert running.value == pytest.approx(slow_objective(labels, pairs, chosen, plain), abs=1e-10)
        others = [clip for clip in range(50) if clip not in chosen]
        expected = [slow_objective(labels, pairs, [*chosen, clip], plain) for clip in others]
        assert running.scores(torch.tensor(others)).tolist() == pytest.approx(expected, abs=1e-10)
        by_pair = [slow_objective(labels, pair[None], chosen) for pair in pairs]
        assert running.pair_values().tolist() == pytest.approx(by_pair, abs=1e-12)
    assert objective(torch.tensor(chosen)) == pytest.approx(running.value, abs=1e-10)


def test_order_and_names_of_clusters_do_not_matter() -> None:
    labels, pairs = random_labels(60, (4, 6, 5)), torch.tensor([[0, 1], [1, 2]])
    ids = torch.randperm(60, generator=generator())[:35]
    value = PairwiseInformation(labels, pairs)(ids)
    assert PairwiseInformation(labels, pairs)(ids.flip(0)) == pytest.approx(value, abs=1e-13)
    renamed = torch.stack([torch.randperm(6, generator=generator(d))[labels[:, d]] for d in range(3)], dim=1)
    assert PairwiseInformation(renamed, pairs)(ids) == pytest.approx(value, abs=1e-13)
    assert PairwiseInformation(labels, pairs.flip(1))(ids) == pytest.approx(value, abs=1e-13)
    assert PairwiseInformation(labels, pairs, clusters=(9, 9, 9))(ids) == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_any_width(dtype: torch.dtype) -> None:
    labels, pairs = random_labels(40, (5, 7)), torch.tensor([[0, 1]])
    narrow, plain = PairwiseInformation(labels.to(dtype), pairs), PairwiseInformation(labels, pairs)
    assert narrow.clusters == plain.clusters == (5, 7)
    assert narrow(torch.arange(30)) == plain(torch.arange(30))


def test_the_first_picks_in_closed_form() -> None:
    """Empty set and single clip: 0. Two clips: log 2 for each pair of columns in which both labels differ."""
    labels = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
    objective = PairwiseInformation(labels, torch.tensor([[0, 1], [0, 2], [1, 2]]))
    running = objective.running()
    assert running.value == 0 and running.scores(torch.arange(4)).tolist() == [0] * 4
    assert running.pair_values().tolist() == [0] * 3
    running.add(torch.tensor([0]))
    assert running.value == 0
    assert running.scores(torch.arange(4)).tolist() == pytest.approx([0, math.log(2), 0, 0], abs=1e-12)


def test_the_objective_is_neither_monotone_nor_submodular() -> None:
    labels, pairs = random_labels(200, (8, 8)), torch.tensor([[0, 1]])
    running, values = PairwiseInformation(labels, pairs).running(), []
    for clip in range(200):
        running.add_one(clip)
        values.append(running.value)
    steps = torch.tensor(values).diff()
    assert (steps < 0).sum() > 50
    assert (steps[1:] > steps[:-1]).sum() > 50


def test_equal_candidates_have_equal_scores_after_any_history() -> None:
    """Bit for bit: increments lie on a grid that float64 adds exactly."""
    labels = random_labels(300, (5, 4, 6, 3))
    labels = torch.cat([labels, labels[:40]])  # 40 clips occur twice
    objective = PairwiseInformation(labels, pairing("combination", (2, 2)))
    forwards, backwards = objective.running(), objective.running()
    forwards.add(torch.arange(50, 300))
    for clip in range(299, 49, -1):
        backwards.add_one(clip)
    found = forwards.increments(torch.arange(340))
    assert (found[:40] == found[300:]).all()
    assert (found == backwards.increments(torch.arange(340))).all()
    assert (found / GRID == (found / GRID).round()).all()


def test_increments_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = PairwiseInformation(random_labels(90, (4, 5)), torch.tensor([[0, 1]]))
    running = objective.running(torch.arange(30))
    whole = running.increments(torch.arange(90))
    monkeypatch.setattr(objective_module, "ROW_CHUNK", 8)
    assert (running.increments(torch.arange(90)) == whole).all()
    again = objective.running(torch.arange(30))
    assert (again.tables.counts == running.tables.counts).all() and again.value == pytest.approx(running.value)


def test_what_others_gain_when_a_clip_is_added() -> None:
    """The quadratic form of shared layers, against scoring anew."""
    labels = random_labels(80, (3, 3, 4, 2))
    objective = PairwiseInformation(labels, pairing("combination", (2, 2)))
    running = objective.running(torch.arange(20))
    before = running.increments(torch.arange(80))
    change = torch.from_numpy(running.add_one(50))
    match = (labels == labels[50]).double()
    moved = torch.einsum("nd,de,ne->n", match, change, match)
    assert (before + moved.numpy() == running.increments(torch.arange(80))).all()
    assert (moved == 0).any() and (moved != 0).any()


def test_steps_of_large_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "_LARGEST_TABLE", 1 << 13)
    steps = StepTable()
    counts = torch.tensor([0, 1, 2, 5000, 8191, 8192, 10**6], dtype=torch.int32).numpy()
    found = steps(counts)
    expected = [(m + 1) * math.log(m + 1) - m * math.log(m) if m else 0.0 for m in (0, 1, 2, 5000, 8191, 8192)]
    assert found[:6].tolist() == pytest.approx(expected, abs=1e-10)
    assert found[6] == pytest.approx(math.log(1e6) + 1 + 0.5e-6, abs=1e-11)  # its series in 1/m
    assert (StepTable()(counts[:1]) == 0).all()


def test_what_is_wrong_is_named() -> None:
    labels, pairs = random_labels(6, (2, 2)), torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"\(N, D\): a row a clip"):
        PairwiseInformation(labels[:, 0], pairs)
    with pytest.raises(ValueError, match=r"must be integers, got torch\.float32"):
        PairwiseInformation(labels.float(), pairs)
    with pytest.raises(ValueError, match="not be negative, got -1 in column 1"):
        PairwiseInformation(torch.tensor([[0, 0], [0, -1]]), pairs)
    with pytest.raises(ValueError, match="cluster 1 in column 0, which was said to have 1"):
        PairwiseInformation(torch.ones(3, 2, dtype=torch.int64), pairs, clusters=(1, 2))
    with pytest.raises(ValueError, match="each of the 2 columns"):
        PairwiseInformation(labels, pairs, clusters=(2,))
    with pytest.raises(ValueError, match="cannot be paired with itself"):
        PairwiseInformation(labels, torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="once"):
        PairwiseInformation(labels, torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="columns 0 to 2"):
        PairwiseInformation(labels, torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="see pairing"):
        PairwiseInformation(labels, torch.empty(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 finite, non-negative numbers"):
        PairwiseInformation(labels, pairs, weights=torch.tensor([-1.0]))
    objective = PairwiseInformation(labels, pairs)
    with pytest.raises(ValueError, match="ids run from 0 to 6, the pool has 6"):
        objective(torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="nonzero"):
        objective(torch.ones(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        mutual_information(torch.tensor([[1, -1]]))
    with pytest.raises(ValueError, match="at least 2 dimension"):
        mutual_information(torch.tensor([1]))
    with pytest.raises(ValueError, match="unknown mean 'geometric'"):
        normalised_mutual_information(torch.ones(2, 2), mean="geometric")
    with pytest.raises(ValueError, match="one table"):
        expected_mutual_information(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="at least one row"):
        independence_bias(0, 2, 5)
    with pytest.raises(ValueError, match="of the same items"):
        contingency_table(labels[:, 0], labels[:3, 1])
