"""BASED."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="based",
    title="Simple linear attention language models balance the recall-throughput tradeoff",
    year=2024,
    room="models",
    kind="linear attention language model",
    what=(
        "A recipe of three mixers: linear attention whose weights are exp to second order, 1 + z + z^2 / "
        "2 with z = q . k / sqrt(16), over the whole past; exact softmax over a small window; and gated "
        "convolutions of three taps in most layers. The state per layer is constant: sums of 153 features "
        "per value column, a ring of keys and values, two inputs. What a layer can recall is bought with "
        "the size of that state."
    ),
    lives=(
        "attlas.models.based:Based",
        "attlas.models.based:BasedConfig",
        "attlas.layers.based:TaylorAttention",
        "attlas.layers.based:sliding_window",
        "attlas.layers.based:GatedConv",
    ),
    source="arXiv:2402.18668",
    code="HazyResearch/based",
    departures=(
        "Features are packed: 1 + 16 + 136 = 153 with the same products as the published 273; inside a chunk "
        "the polynomial itself is taken.",
        "The denominator's 1e-12 is that of the official training code; the kernels of "
        "flash-linear-attention take 1e-6.",
        "A window sees 128 tokens and its own: what the configurations' window_size of 256 becomes.",
        "The state comes from phi(k) wherever it is made; in the official prefill it depends on the path.",
        "Embeddings start from N(0, 0.02); the official special_initializer is not here.",
        "The claim's task is smaller than the paper's: the settings tell it. Its length, windows and "
        "steps were changed twice while looking at seed 1000, which the claim does not use, until full "
        "attention learnt it in time; the rule is as it was before.",
    ),
    unverified=(
        "That rotary positions reach the window layers alone: the configuration says fraction 1 and no more.",
        "The fixed_decay of the 1.3b configuration was not looked at; its linear layers do not decay here.",
        "The paper's window of 64, its perplexities and its throughput: not run here; no weights were "
        "loaded.",
    ),
    claim="attlas.catalog.claims.based:CLAIM",
)
