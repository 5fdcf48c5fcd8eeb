"""GDT's loss as released: InfoNCE terms over pairs of clip variants, instead of eq. (1) over the whole batch.

Four variants of each video: A (shift 1, forward), B (shift 2, forward), C (A reversed), D (B reversed). A sub-loss
takes two of them, ``X`` and ``Y``, and averages the cross-entropies of the four queries ``v_X, a_X, v_Y, a_Y`` against
keys of the other modality:

=========  ===================  ===================================================
mode       positive of ``v_X``  local negatives beside the other rows of the positive's variant
=========  ===================  ===================================================
base       own row of ``a_X``   none
variant    own row of ``a_X``   all rows of ``a_Y``; the own row is the hard negative (distinctive)
invariant  own row of ``a_Y``   none
=========  ===================  ===================================================

and as remote negatives all rows of ``a_X`` and ``a_Y`` of the other processes. Keys carry no gradient. Against eq. (1):
each positive has a softmax without the other positives (no ``log P`` floor), and ``v_A`` never meets ``a_D``.

The release extends its lists of gathered rows in place, so that later sub-losses of a step see repeated remote
negatives (``as_coded=True`` does the same, by multiplicity), and cannot run on one process. What it does differs with
the number of processes, too: rows that are negatives when remote are not when local. ``local_negatives="all"`` removes
that difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses.hypotheses import Hypothesis, find_hypothesis
from avssl_core.losses.nce import check_temperature, row_logsumexp, similarity, upcast

Mode = Literal["single", "base", "variant", "invariant"]
LocalNegatives = Literal["release", "all"]


class SubLoss(NamedTuple):
    """One term: a mode and the two variants ``X`` and ``Y`` (equal for ``"single"``, which has two queries only)."""

    mode: Mode
    first: str
    second: str


def _sub_losses(text: str) -> tuple[SubLoss, ...]:
    modes: dict[str, Mode] = {"single": "single", "base": "base", "var": "variant", "inv": "invariant"}
    words = text.split()
    return tuple(SubLoss(modes[mode], pair[0], pair[1]) for mode, pair in zip(words[::2], words[1::2], strict=True))


# By release id, in the order of evaluation (which matters for `as_coded` only).
SUB_LOSSES: Mapping[int, tuple[SubLoss, ...]] = {
    1: _sub_losses("single AA"),
    2: _sub_losses("var AC"),
    3: _sub_losses("base AC inv AC"),
    4: _sub_losses("var AB"),
    5: _sub_losses("base AB inv AB"),
    6: _sub_losses("var AC var BD var AB var CD"),
    7: _sub_losses("base AC inv AC inv BD var AB var CD"),
    8: _sub_losses("base AB var AC var BD inv AB inv CD"),
    9: _sub_losses("base AC base AB inv AC inv BD inv AB inv CD"),
}


class PairwiseGDTLoss(nn.Module):
    """The released training loss of GDT for one of its nine audio-visual hypotheses.

    Args:
        hypothesis: release id 1 to 9, letter ``"e"`` to ``"m"`` of Table 1, or a :class:`Hypothesis`.
        temperature: divides the inner products; positive.
        stop_grad_keys: no gradient into keys, as released; both encoders learn as queries.
        as_coded: repeat remote negatives as the release does by accident. Changes nothing on one process.
        local_negatives: ``"release"``, the table above; ``"all"``: rows ``j != i`` of *both* variants are negatives of
            every local query, as they are of remote ones. Then (and with ``as_coded=False``) the mean over processes
            equals the loss of one process on the joint batch, and one process does what the paper's sixty-four did.
        collectives: how to reach other processes.

    Raises:
        ValueError: for a hypothesis that the release does not have, or a temperature that is not positive.
    """

    def __init__(
        self,
        hypothesis: Hypothesis | str | int,
        *,
        temperature: float = 0.07,
        stop_grad_keys: bool = True,
        as_coded: bool = False,
        local_negatives: LocalNegatives = "release",
        collectives: Collectives = LOCAL,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.hypothesis = find_hypothesis(hypothesis)
        if self.hypothesis.release_id is None:
            raise ValueError(
                f"row ({self.hypothesis.row}) of Table 1 is within-modal and not in the released code; use "
                "CompositionalNCE"
            )
        if local_negatives not in ("release", "all"):
            raise ValueError(f"local_negatives must be 'release' or 'all', got {local_negatives!r}")
        self.sub_losses = SUB_LOSSES[self.hypothesis.release_id]
        self.temperature = temperature
        self.stop_grad_keys = stop_grad_keys
        self.as_coded = as_coded
        self.local_negatives = local_negatives
        self.collectives = collectives

    def forward(self, embeddings: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Evaluate the loss.

        Args:
            embeddings: for each of ``hypothesis.variants`` the pair (video, audio) of unit rows, ``(N, d)`` each; row
                ``i`` is the same video everywhere.

        Returns:
            A scalar, of this process's queries.

        Raises:
            ValueError: for missing variants, shapes that do not fit, or a single row with nothing to contrast it with.
        """
        return torch.stack(self.cross_entropies(embeddings)[0]).mean()

    def cross_entropies(self, embeddings: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[int]]:
        """The single cross-entropies in order of evaluation (``v_X, a_X, v_Y, a_Y`` a sub-loss), for tables and tests.

        Returns:
            Scalars, and for each the number of negative rows beside the positive's variant, repetitions counted.
        """
        self._check(embeddings)
        videos = {x: embeddings[x][0] for x in self.hypothesis.variants}
        audios = {x: embeddings[x][1] for x in self.hypothesis.variants}
        directions = (self._blocks(videos, audios), self._blocks(audios, videos))
        losses, rows = [], []
        for sub_loss, remote in zip(self.sub_losses, self._remote_multisets(), strict=True):
            queries = [sub_loss.first] if sub_loss.mode == "single" else [sub_loss.first, sub_loss.second]
            for query in queries:
                other = sub_loss.first if query == sub_loss.second else sub_loss.second
                for blocks in directions:
                    losses.append(self._cross_entropy(blocks, sub_loss.mode, query, other, remote))
                    rows.append(self._negative_rows(blocks, sub_loss.mode, remote))
        return losses, rows

    def extra_repr(self) -> str:
        """Settings, for ``print(loss)``."""
        return (
            f"row={self.hypothesis.row!r}, temperature={self.temperature}, stop_grad_keys={self.stop_grad_keys}, "
            f"as_coded={self.as_coded}, local_negatives={self.local_negatives!r}"
        )

    def _cross_entropy(self, blocks: _Blocks, mode: Mode, query: str, other: str, remote: Counter[str]) -> Tensor:
        positive, unused = (other, query) if mode == "invariant" else (query, other)
        parts = [blocks.local_lse(query, positive)]
        if mode == "variant":
            parts.append(blocks.local_lse(query, unused))
        elif mode != "single" and self.local_negatives == "all" and blocks.rows > 1:
            parts.append(blocks.local_lse(query, unused, without_own=True))
        if blocks.remote_rows:
            parts += [blocks.remote_lse(query, key) + math.log(times) for key, times in remote.items()]
        denominator = torch.stack(parts).logsumexp(dim=0)  # (parts, N) -> (N,)
        return (denominator - blocks.local(query, positive).diagonal()).mean()

    def _negative_rows(self, blocks: _Blocks, mode: Mode, remote: Counter[str]) -> int:
        local = blocks.rows if mode == "variant" else 0
        if mode in ("base", "invariant") and self.local_negatives == "all":
            local = blocks.rows - 1
        return local + blocks.remote_rows * remote.total()

    def _remote_multisets(self) -> list[Counter[str]]:
        """How often each variant's remote rows count as negatives, a sub-loss at a time.

        The release grows the list of the first variant (of the second in mode invariant) by the other's and uses it;
        growth lasts until the end of the step.
        """
        if not self.as_coded:
            return [Counter({sub.first, sub.second}) for sub in self.sub_losses]
        lists = {x: Counter({x: 1}) for x in self.hypothesis.variants}
        used = []
        for mode, first, second in self.sub_losses:
            grown, added = (second, first) if mode == "invariant" else (first, second)
            if mode != "single":
                lists[grown] = lists[grown] + lists[added]
            used.append(lists[grown].copy())
        return used

    def _blocks(self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> _Blocks:
        if self.stop_grad_keys:
            keys = {name: key.detach() for name, key in keys.items()}
        return _Blocks(queries, keys, self.temperature, self.collectives)

    def _check(self, embeddings: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        missing = [x for x in self.hypothesis.variants if x not in embeddings]
        if missing:
            raise ValueError(
                f"row ({self.hypothesis.row}) needs the variants {self.hypothesis.variants}, {missing} are missing; B "
                "needs a second time shift, C and D reversed playback"
            )
        shapes = {tuple(z.shape) for x in self.hypothesis.variants for z in embeddings[x]}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ValueError(f"all embeddings must be (N, d) of one shape, got {sorted(shapes)}")
        if next(iter(shapes))[0] * self.collectives.world_size < 2:
            raise ValueError("one video in the joint batch has no other video to be told apart from; use N >= 2")


class _Blocks:
    """Similarities of query variants with key variants for one direction, each computed once a step.

    A denominator is a log-sum-exp of the log-sum-exps of blocks; repeated rows are a block plus the log of its
    multiplicity.
    """

    def __init__(
        self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor], temperature: float, collectives: Collectives
    ) -> None:
        self.rows = len(next(iter(queries.values())))
        self.remote_rows = self.rows * (collectives.world_size - 1)
        self._queries, self._keys, self._temperature = queries, keys, temperature
        self._remote = _remote_keys(keys, collectives) if self.remote_rows else {}
        self._logits: dict[tuple[str, str], Tensor] = {}
        self._sums: dict[tuple[str, str, str], Tensor] = {}

    def local(self, query: str, key: str) -> Tensor:
        """Logits ``(N, N)`` within this process."""
        if (query, key) not in self._logits:
            self._logits[query, key] = similarity(self._queries[query], self._keys[key], temperature=self._temperature)
        return self._logits[query, key]

    def local_lse(self, query: str, key: str, *, without_own: bool = False) -> Tensor:
        """Log-sum-exp over local rows, ``(N,)``; optionally over rows ``j != i``."""
        index = ("others" if without_own else "local", query, key)
        if index not in self._sums:
            logits = self.local(query, key)
            if without_own:
                own = torch.eye(self.rows, dtype=torch.bool, device=logits.device)
                logits = logits.masked_fill(own, float("-inf"))
            self._sums[index] = row_logsumexp(logits)
        return self._sums[index]

    def remote_lse(self, query: str, key: str) -> Tensor:
        """Log-sum-exp over the rows of all other processes, ``(N,)``."""
        index = ("remote", query, key)
        if index not in self._sums:
            logits = similarity(self._queries[query], self._remote[key], temperature=self._temperature)
            self._sums[index] = row_logsumexp(logits)
        return self._sums[index]


def _remote_keys(keys: Mapping[str, Tensor], collectives: Collectives) -> dict[str, Tensor]:
    """Rows of all other processes, ``((W - 1) N, d)`` a variant, in one message."""
    stacked = torch.cat([upcast(key) for key in keys.values()], dim=1)  # (N, V d)
    gathered = collectives.gather(stacked)
    own, rows = collectives.rank * len(stacked), len(stacked)
    remote = torch.cat([gathered[:own], gathered[own + rows :]])
    return dict(zip(keys, remote.chunk(len(keys), dim=1), strict=True))
