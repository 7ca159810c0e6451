"""The sentence classifier of attention adversarial training: embedding, BiLSTM, additive attention, answer.

Legend: B sentences, N tokens, E embedding width, C = 2 hidden channels of the encoder.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attlas.layers.additive import AdditiveScore, attention_pool, token_weights

__all__ = ["AttentionClassifier", "Encoded", "Sentences"]


class Sentences(NamedTuple):
    """Tokens (B, N) and which of them are there (padding at the end); for QA and NLI a question as well."""

    tokens: Tensor
    valid: Tensor
    question: Tensor | None = None
    question_valid: Tensor | None = None


class Encoded(NamedTuple):
    """What the encoder leaves: hidden states (B, N, C), valid (B, N), the question's vector (B, C) if any."""

    hidden: Tensor
    valid: Tensor
    query: Tensor | None = None


class AttentionClassifier(nn.Module):
    """embedding -> BiLSTM -> a_t = w2^T tanh(W1 h_t + b1) -> softmax -> sum_t alpha_t h_t -> linear.

    Args:
        vocabulary, classes: numbers of words and of logits (1 for a binary label with BCE).
        width: E; `hidden`: of the LSTM per direction; the score's hidden width is `hidden`, too.
        question: a question's vector q (last states of a second BiLSTM) enters the score, and the answer
            is linear(tanh(W_p sum_t alpha_t h_t + W_q q)).

    The steps can be taken apart, so that scores may be changed without running the encoder again: `encode`,
    `scores`, `answer`. Padding has weight 0 and is never read. A sentence without a token has pooled value 0.
    Cost: the encoder's; the head is 2 C (hidden + classes) FLOPs a token at most. Source: Kitada & Iyatomi
    2020, arXiv 2009.12064, after Jain & Wallace 2019.
    """

    def __init__(
        self, vocabulary: int, classes: int, *, width: int = 300, hidden: int = 128, question: bool = False
    ) -> None:
        super().__init__()
        for name, number in {
            "vocabulary": vocabulary,
            "classes": classes,
            "width": width,
            "hidden": hidden,
        }.items():
            if number < 1:
                raise ValueError(f"AttentionClassifier: {name} must be at least 1, got {number}")
        both = 2 * hidden
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.asker = nn.LSTM(width, hidden, batch_first=True, bidirectional=True) if question else None
        self.score = AdditiveScore(both, hidden, query=both if question else 0)
        self.joint = nn.ModuleList(nn.Linear(both, hidden) for _ in range(2)) if question else None
        self.head = nn.Linear(hidden if question else both, classes)

    def forward(self, inputs: Sentences) -> Float[Tensor, "B classes"]:
        """Logits; nothing is perturbed here."""
        encoded = self.encode(inputs)
        return self.answer(encoded, self.scores(encoded))

    def encode(self, inputs: Sentences, embedded: Float[Tensor, "B N E"] | None = None) -> Encoded:
        """Hidden states; `embedded` takes the place of the tokens' embedding. ValueError: a question too
        many or missing."""
        if (inputs.question is None) != (self.asker is None):
            raise ValueError(
                f"inputs.question must be {'left out' if self.asker is None else 'given'}: this classifier "
                f"was made with question={self.asker is not None}"
            )
        x = self.embedding(inputs.tokens) if embedded is None else embedded
        hidden, _ = _run(self.encoder, x, inputs.valid)
        if self.asker is None or inputs.question is None:
            return Encoded(hidden, inputs.valid)
        asked = inputs.question_valid
        asked = torch.ones_like(inputs.question, dtype=torch.bool) if asked is None else asked
        _, last = _run(self.asker, self.embedding(inputs.question), asked)
        return Encoded(hidden, inputs.valid, last)

    def scores(self, encoded: Encoded) -> Float[Tensor, "B N"]:
        """Attention scores before the softmax; those of padding mean nothing."""
        return self.score(encoded.hidden, encoded.query)

    def weights(self, encoded: Encoded, scores: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """alpha: softmax over a sentence's own tokens."""
        return token_weights(scores, encoded.valid)

    def answer(self, encoded: Encoded, scores: Float[Tensor, "B N"]) -> Float[Tensor, "B classes"]:
        """Logits from the sum of the hidden states under these scores."""
        pooled = attention_pool(self.weights(encoded, scores), encoded.hidden, encoded.valid)
        if self.joint is not None and encoded.query is not None:
            pooled = (self.joint[0](pooled) + self.joint[1](encoded.query)).tanh()
        return self.head(pooled)


def _run(
    lstm: nn.LSTM, x: Float[Tensor, "B N E"], valid: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B C"]]:
    """States of all tokens, 0 on padding, and the last ones of both directions; padding is not read."""
    lengths: Int[Tensor, B] = valid.sum(1)
    if not torch.equal(valid, torch.arange(valid.shape[1], device=valid.device) < lengths[:, None]):
        raise ValueError("valid must be true up to a sentence's end and false behind it: padding at the end")
    # A sentence without a token would be refused: it runs over one and is cleared.
    packed = pack_padded_sequence(x, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
    out, (last, _) = lstm(packed)
    hidden, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    return hidden.masked_fill(~valid[..., None], 0.0), last.transpose(0, 1).flatten(1)
