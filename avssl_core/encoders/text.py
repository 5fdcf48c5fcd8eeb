"""Bag-of-words text encoder: frozen word vectors, one linear layer, maximum over words (GDT section 3; MIL-NCE).

The maximum makes the output **invariant to the order of the words**. GDT nevertheless treats reversed captions as
*distinct* in some rows of its table 2: a sentence and its reverse embed identically, so that such a row has negatives
that no encoder of this kind can tell from the positive (loss floor log 2). ``positions`` turns the order dependence on,
for showing that the floor then disappears; the release has no such option.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_INDEX = 0


def random_word_table(vocabulary_size: int, embedding_dim: int = 300, *, seed: int) -> Tensor:
    """Standard normal word vectors ``(vocabulary_size, embedding_dim)``, a function of ``seed``; row 0 (padding) zero.

    A stand-in for word2vec where no trained vectors are at hand: distinct words get nearly orthogonal vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(vocabulary_size, embedding_dim, generator=generator)
    table[PADDING_INDEX] = 0
    return table


class BagOfWordsText(nn.Module):
    """Captions of word indices to a feature: ``max over words of relu(W table[word] + b)``.

    Args:
        table: word vectors ``(V, E)``, frozen; row 0 belongs to padding and is never read. GDT: word2vec, ``E = 300``.
        dim: width of the feature (2048 in GDT).
        positions: 0 for the published, order-free encoder; ``n`` adds a learned vector a position to the word vectors
            of captions with at most ``n`` words.

    Attributes:
        dim: width of the feature.

    Raises:
        ValueError: if ``table`` is not a float matrix or ``positions`` is negative.
    """

    def __init__(self, table: Tensor, *, dim: int = 2048, positions: int = 0) -> None:
        super().__init__()
        if table.ndim != 2 or not table.is_floating_point():
            raise ValueError(f"table must be a float matrix (V, E), got {table.dtype} of shape {tuple(table.shape)}")
        if positions < 0:
            raise ValueError(f"positions must be 0 (order-free) or the longest caption's length, got {positions}")
        self.dim = dim
        self.table: Tensor
        self.register_buffer("table", table.clone())  # a buffer, not a parameter: the optimiser never sees it
        self.linear = nn.Linear(table.shape[1], dim)
        self.positions = nn.Parameter(torch.empty(positions, table.shape[1])) if positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions)

    def feature_map(self, words: Tensor) -> Tensor:
        """A feature for every word.

        Args:
            words: int64 indices ``(B, L)``, 0 where padded.

        Returns:
            Non-negative ``(B, L, dim)``; zero at padding, which makes padding the identity of the maximum.

        Raises:
            ValueError: if ``words`` is not an int64 matrix, a caption has no word, or captions exceed ``positions``.
        """
        if words.ndim != 2 or words.dtype != torch.int64:
            raise ValueError(f"expected int64 word indices (B, L), got {words.dtype} of shape {tuple(words.shape)}")
        present = words != PADDING_INDEX
        empty = ~present.any(dim=1)
        if empty.any():
            row = int(empty.nonzero()[0])
            raise ValueError(f"caption {row} has no words (only padding index {PADDING_INDEX}); drop it from the batch")
        vectors = F.embedding(words, self.table)  # (B, L, E)
        if self.positions is not None:
            if words.shape[1] > len(self.positions):
                raise ValueError(
                    f"captions of {words.shape[1]} words, but positions={len(self.positions)}: cut or raise it"
                )
            vectors = vectors + self.positions[: words.shape[1]]
        return F.relu(self.linear(vectors)) * present.unsqueeze(-1)

    def forward(self, words: Tensor) -> Tensor:
        """Word indices ``(B, L)`` to features ``(B, dim)``: the maximum over the words present."""
        return self.feature_map(words).amax(dim=1)
