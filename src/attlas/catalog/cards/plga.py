"""PLGA and PLDR-LLM."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="plga",
    title=(
        "PLDR-LLMs Learn A Generalizable Tensor Operator That Can Replace Its Own Deep Neural Net At "
        "Inference"
    ),
    year=2025,
    room="models",
    kind="score, language model and cache",
    what=(
        "Power law graph attention: the score of a pair is q G k^T, and G is made per head by a deep net "
        "from q^T q over the sequence (normalised, residual GLU units, a positive activation, learned "
        "powers, a learned mixture). PLDR-LLM is the decoder of such layers. Once G is known attention is a "
        "dot product with a folded query; the KV-cache keeps the prompt's A, the G-cache keeps A_LM and G."
    ),
    lives=(
        "attlas.models.pldr_llm:PLDRLLM",
        "attlas.layers.plga:PLGA",
        "attlas.layers.plga_prefix:PrefixPLGA",
        "attlas.layers.plga_metric:MetricLearner",
        "attlas.layers.plga_metric:FixedCurvature",
        "attlas.layers.plga_metric:dag_penalty",
        "attlas.score.bilinear:Bilinear",
    ),
    source="arXiv:2502.13502",
    code="burcgokden/PLDR-LLM-with-KVG-cache",
    departures=(
        "All linear layers start Xavier-uniform with zero biases; the released code starts the keys' "
        "projection twice and leaves the values' at torch's default, as official=True does.",
        "PrefixPLGA, whose matrices come from earlier chunks alone, is not of the paper: in the published "
        "training form every output depends on later tokens through q^T q, here as there.",
        "Padding is left out of q^T q, and positions count real tokens; the released code lets padding "
        "in, which no switch restores: official=True is the start alone.",
        "Masked pairs have weight 0; the released code adds -1e9 to their logits.",
        "The penalty of cycles takes the largest eigenvalue out of the exponential, so that it cannot "
        "overflow; it is the released value where that is finite.",
        "The claim reads bytes of python-docs in place of RefinedWeb, with 2 layers of width 64; spread is "
        "relative to the matrices' mean.",
    ),
    unverified=(
        "The paper's figures (110M parameters, 250k steps) and its determinants of cached matrices: not run "
        "here. Released weights are not read.",
    ),
    claim="attlas.catalog.claims.plga:CLAIM",
)
