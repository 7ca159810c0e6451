"""PLDR-LLM: what its training form shows to a token, and where its projections start."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

COMMIT = "8e8658fca4eacf8c9013f5bcd60408b5fc679777"
LENGTH, WIDTH, HEADS, LAYERS, VOCABULARY = 64, 64, 4, 2, 256
COMPARED = (
    "Both files ran beside this library's form in float64 with equal weights: logits of the training form, "
    "of a prompt and of 8 decoded tokens with either cache agree to 1e-11."
)


def leak(seed: int) -> Mapping[str, float]:
    """How far the logits of all earlier tokens move when the last token is another one."""
    import torch

    from attlas.models import PLDRLLM, PLDRConfig

    torch.manual_seed(seed)
    net = PLDRLLM(PLDRConfig(VOCABULARY, WIDTH, HEADS, LAYERS, units=2, official=True)).double().eval()
    ids = torch.randint(0, VOCABULARY, (8, LENGTH))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % VOCABULARY
    found = {}
    with torch.no_grad():
        given = net.curvatures(ids[:, : LENGTH // 2])
        for name, named in {"training": {}, "given G": {"curvatures": given}}.items():
            # The first token attends to itself alone, whatever G is.
            one, two = (net(tokens, **named)[:, 1:-1] for tokens in (ids, other))
            moved = (one - two).abs().amax(-1)
            found[f"share of earlier tokens, {name}"] = (moved > 0).double().mean().item()
            found[f"change of logits, {name}"] = (moved.mean() / one.std()).item()
    return found


def starts(seed: int) -> Mapping[str, float]:
    """Standard deviation of the weights, and the largest bias, of keys' and values' projections."""
    import torch

    from attlas.layers import PLGA

    torch.manual_seed(seed)
    layer = PLGA(896, 14, official=True)
    return {
        "deviation, keys": layer.key.weight.std().item(),
        "deviation, values": layer.value.weight.std().item(),
        "largest bias, keys": layer.key.bias.abs().max().item(),
        "largest bias, values": layer.value.bias.abs().max().item(),
    }


RELEASED = (
    Released(
        system="plga",
        point="The training form lets a token see later ones through G",
        repository="burcgokden/PLDR-LLM-with-KVG-cache",
        file="src/pldr_model_v510/pldr_model_v510.py",
        function="plgMultiHeadAttention.forward",
        commit=COMMIT,
        paper=(
            "A decoder with masked attention whose matrix G is learned from A = q^T q of the sequence; at "
            "inference G of the prompt is cached."
        ),
        release=(
            "The look-ahead mask is applied to the attention weights. The product q^T q goes over all "
            "positions of the training sequence, those behind the predicted token included, as the formula "
            "has it."
        ),
        consequence=(
            "In training, and in a validation loss that is computed the same way, the logits of a token "
            "depend on the tokens that they are scored against. With a cached G they do not. How much of "
            "this a trained model uses is measured by the claim: the loss with G of another text beside "
            "that with G of the same window."
        ),
        switch=(
            "`PLDRLLM.forward` is the training form; `curvatures=`, `begin` and `advance` take a given G; "
            "`PrefixPLGA` is causal in training too."
        ),
        figures=leak,
        shown=(
            f"At the start of training ({LAYERS} layers, width {WIDTH}, {LENGTH} tokens) another last token "
            "changes the logits of {share of earlier tokens, training:.0%} of the tokens between the first "
            "and the last, by {change of logits, training:.1e} of their standard deviation on average; "
            "with a given G of {share of earlier tokens, given G:.0%}."
        ),
        compared=COMPARED,
    ),
    Released(
        system="plga",
        point="The values' projection keeps torch's default start",
        repository="burcgokden/PLDR-LLM-with-KVG-cache",
        file="src/pldr_model_v510/pldr_model_v510.py",
        function="plgMultiHeadAttention.__init__",
        commit=COMMIT,
        paper="Linear layers start Xavier-uniform, with zero biases.",
        release=(
            "The line after the values' projection `wv` initialises the keys' projection `wk` once more. "
            "`wv` keeps what `torch.nn.Linear` starts with."
        ),
        consequence=(
            "Values start with weights narrower by the root of 3 and with biases that are not zero. What a "
            "trained model owes to it was not measured here."
        ),
        switch=(
            "`PLGA(official=True)`, `PLDRConfig(official=True)`, which are this start and nothing else; the "
            "default starts all alike."
        ),
        figures=starts,
        shown=(
            "At the published width 896: weights of the keys' projection have standard deviation {deviation, "
            "keys:.4f}, of the values' {deviation, values:.4f}; the largest bias is {largest bias, keys:.4f} "
            "and {largest bias, values:.4f}."
        ),
        compared=COMPARED,
    ),
)
