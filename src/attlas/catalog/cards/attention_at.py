"""Attention AT and iAT."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="attention_at",
    title=(
        "Attention Meets Perturbations: Robust and Interpretable Attention with Adversarial Training "
        "(Attention AT, iAT)"
    ),
    year=2020,
    room="train",
    kind="training objective",
    what=(
        "Trains a classifier on its loss and on the loss after the worst small change of the attention "
        "scores before the softmax: along the gradient, of norm eps per sentence (AT), or along differences "
        "between the scores of a sentence's tokens (iAT). The encoder runs once; only scores, softmax and "
        "answer are computed again. With differences normalised per token iAT is exactly AT. Works on every "
        "model with a place in its score (`adversarial_loss`), for instance `Dot() + Given(r)` in `attend`."
    ),
    lives=(
        "attlas.train:adversarial_loss",
        "attlas.train:AT",
        "attlas.train:IAT",
        "attlas.train:AttentionTraining",
        "attlas.models:AttentionClassifier",
        "attlas.inspect:attention_agreement",
    ),
    source="arXiv:2009.12064",
    code="shunk031/attention-meets-perturbation",
    departures=(
        "iAT as the formula has it: differences between tokens of one sentence, a step that raises the loss. "
        "The released file takes differences between sentences with weights of zero, and steps along -g: "
        "IAT(official=True).",
        "The clean loss counts once. In the released training its gradient is left in the parameters and "
        "counts twice: AttentionTraining(official=True).",
        "The encoder's output is kept; the released code runs the whole network three times.",
        "Any number of classes (cross-entropy; one logit takes binary cross-entropy). No class weights.",
        "A correlation is taken for sentences of at least 3 tokens whose weights are not all equal.",
        "The claim has smaller layers, 5 epochs, embeddings from scratch for fastText's, this library's "
        "AdamW with weight decay on all matrices, and 4 kinds of WordNet glosses for SST, IMDB, AG News and "
        "20 Newsgroups. Its sizes and steps were set while looking at seed 1000, which it does not use; the "
        "rule is as it was before.",
    ),
    unverified=(
        "How the paper normalises the differences and G: direction_norm offers three ways.",
        "The paper's eps (the file's xi has no value in the published settings), and its tables: not run "
        "here.",
    ),
    claim="attlas.catalog.claims.attention_at:CLAIM",
)
