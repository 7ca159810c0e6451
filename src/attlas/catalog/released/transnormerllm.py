"""TransNormerLLM and Lightning Attention: the decay rates."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

HEADS, LAYERS = 8, 12


def memory(seed: int) -> Mapping[str, float]:
    """Rates of both schedules as half-lives in tokens; nothing is random."""
    import math

    from attlas.layers.lightning import alibi_by_layer, linear_by_layer

    found = {}
    for name, schedule in {"formula": linear_by_layer, "file": alibi_by_layer}.items():
        rates = [schedule(HEADS, layer, LAYERS) for layer in range(LAYERS)]
        faded = [[math.log(2) / rate for rate in layer if rate > 0] for layer in rates]
        found[f"heads without decay, {name}"] = float(sum(rate == 0 for layer in rates for rate in layer))
        found[f"shortest half-life in the first layer, {name}"] = min(faded[0])
        found[f"longest half-life in the first layer, {name}"] = max(faded[0])
        found[f"shortest half-life in the last layer, {name}"] = min(faded[-1])
    return found


RELEASED = (
    Released(
        system="transnormerllm",
        point="Decay rates are ALiBi's, not linear in the head",
        repository="OpenNLPLab/lightning-attention",
        file="examples/module/tnl_attn.py",
        function="TnlAttention and lightning_attn/utils/utils.py, _build_slope_tensor",
        commit="d15c38529bbd5c2c82b44ddda3cac885825aa873",
        paper=(
            "Head h of H in layer l of L decays by exp(-(8 h / H)(1 - l / L)) a token; h = 0 does not decay."
        ),
        release=(
            "The rate is ALiBi's geometric slope, 2^(-8 (h + 1) / H), times 1 - l / (L - 1) + 1e-5. Every "
            "head decays, most of them slowly; the last layer hardly does. One layer alone is a division by "
            "zero."
        ),
        consequence=(
            "Heads remember for very different times under the two schedules, so a model trained with one "
            "cannot be run with the other."
        ),
        switch=(
            "`linear_by_layer` is the formula, `alibi_by_layer`, the default here for released models, the "
            "file."
        ),
        figures=memory,
        shown=(
            f"With {HEADS} heads and {LAYERS} layers the formula has {{heads without decay, formula:.0f}} "
            "heads without decay and half-lives from {shortest half-life in the first layer, formula:.2f} to "
            "{longest half-life in the first layer, formula:.2f} tokens for the others in the first layer; "
            "the file has {heads without decay, file:.0f} such heads and half-lives from {shortest half-life "
            "in the first layer, file:.2f} to {longest half-life in the first layer, file:.0f} tokens. The "
            "fastest head of the last layer forgets half in {shortest half-life in the last layer, "
            "formula:.1f} tokens by the formula and in {shortest half-life in the last layer, file:,.0f} by "
            "the file."
        ),
        compared=(
            "`_build_slope_tensor` itself was run for 10 numbers of heads and 4 of layers: equal to 1e-7, "
            "relatively."
        ),
    ),
)
