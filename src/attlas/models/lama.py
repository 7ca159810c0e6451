"""A bidirectional GRU over words, a pooling of its states, and a linear classifier.

Legend: B batch, N words, E embedding width, D = 2 hidden, m pooled vectors.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attlas.layers import LAMA, word_importance

__all__ = ["RecurrentClassifier"]


class RecurrentClassifier(nn.Module):
    """words -> embedding -> packed BiGRU -> pooling to (B, m, D) -> dropout -> linear classes of all.

    Args:
        pooling: `LAMA(2 * hidden, m)` or another `(hidden, valid=) -> (B, m, 2 hidden)`; pooled: its m.
        vocabulary, embedding: of the words; id 0 is padding. hidden: of the GRU, in each direction.
        dropout: of embeddings and of what is pooled, in training.

    Padding stands behind the words: the GRU runs over packed sequences, so that how much of it there is
    changes nothing. Source: Mehta et al. 2019, arXiv 1912.00835; GRU of 100 and dropout of 0.2 are not from
    there.
    """

    def __init__(
        self,
        pooling: nn.Module,
        *,
        vocabulary: int,
        classes: int,
        pooled: int = 1,
        embedding: int = 100,
        hidden: int = 100,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.recurrent = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.pooling, self.dropout = pooling, nn.Dropout(dropout)
        self.head = nn.Linear(pooled * 2 * hidden, classes)

    def states(
        self, ids: Int[Tensor, "B N"], valid: Bool[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        """The GRU's states of both directions and which are real, cut after the longest text (M <= N).

        ValueError: a text without a word, or padding in front of or between words.
        """
        lengths = valid.sum(1)
        if not bool(lengths.all()):
            raise ValueError("every text needs at least one word: valid has a row of False alone")
        if not torch.equal(valid, torch.arange(valid.shape[1], device=valid.device) < lengths[:, None]):
            raise ValueError("padding must stand behind the words of a text, as Vocabulary.encode puts it")
        packed = pack_padded_sequence(
            self.dropout(self.embedding(ids)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        found, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return found, valid[:, : found.shape[1]]

    def forward(self, ids: Int[Tensor, "B N"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; ids and valid are those of `Vocabulary.encode`."""
        hidden, real = self.states(ids, valid)
        return self.head(self.dropout(self.pooling(hidden, valid=real).flatten(1)))

    @torch.no_grad()
    def importance(self, ids: Int[Tensor, "B N"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """How much each word counts: the mean over LAMA's heads of its weights; padding has 0.

        TypeError: another pooling.
        """
        if not isinstance(self.pooling, LAMA):
            kind = type(self.pooling).__name__
            raise TypeError(f"importance is told by a LAMA pooling, got {kind}")
        hidden, real = self.states(ids, valid)
        weights = word_importance(self.pooling.logits(hidden, valid=real), real)
        return nn.functional.pad(weights, (0, ids.shape[1] - weights.shape[1]))
