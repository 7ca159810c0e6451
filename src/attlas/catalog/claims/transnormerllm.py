"""TransNormerLLM's claim: as good as a softmax Transformer, every modification helps, decoding is safe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread
from attlas.layers.lightning import alibi_by_layer
from attlas.layers.transnormer import TransNormerMixer, origin
from attlas.models import SmallLM, TransNormerConfig, TransNormerLLM
from attlas.tasks import ByteText, byte_text, load_source
from attlas.train import Recipe, fit, next_token_loss

__all__ = ["CLAIM", "Ungated", "judge", "measure", "network"]

WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 128
BATCH, STEPS, LONG_BATCH, LONG_STEPS, WINDOWS = 8, 300, 16, 2000, 192
# Of the gated units, so that all nets have as many parameters as a block of softmax attention and its MLP of
# 4 times the width: 12 width^2 = 5 width^2 + 3 width inner (4 width^2 without the gate).
INNER = {"no gate": round(8 * WIDTH / 3)}
EQUAL_INNER = round(7 * WIDTH / 3)
ARMS = ("softmax", "transnormer", "no decay", "no gate", "no norm")
CHANGED = ARMS[2:]
NEAR, UNIFORM = 0.1, 8.0
DECODED, SAFE, ABOUT = 512, 1e-3, 0.25
OVERFLOW = math.log(torch.finfo(torch.float32).max)
SETTINGS = {
    "text": "python-docs, bytes",
    "model": f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, length {LENGTH}",
    "training": f"{STEPS} steps of {BATCH} ({LONG_STEPS} of {LONG_BATCH} with --long), learning rate "
    f"{Recipe(1).learning_rate:g} for all",
    "softmax": "SmallLM: rotary positions, RMSNorm, GELU MLP of 4 times the width",
    "inner width": {arm: INNER.get(arm, EQUAL_INNER) for arm in ARMS[1:]},
    "decoded tokens": DECODED,
}


class Ungated(TransNormerMixer):
    """The mixer without u: its output is the normalised sum."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        del self.gate

    def gated(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The sum alone, normalised."""
        return self.norm(mixed)


def network(arm: str, seed: int) -> nn.Module:
    """One of ARMS, with equally many parameters up to half a percent."""
    torch.manual_seed(seed)
    if arm == "softmax":
        return SmallLM(width=WIDTH, heads=HEADS, layers=LAYERS)

    def mixer(layer: int) -> nn.Module:
        slopes = (0.0,) * HEADS if arm == "no decay" else alibi_by_layer(HEADS, layer, LAYERS)
        kind: Callable[..., TransNormerMixer] = Ungated if arm == "no gate" else TransNormerMixer
        made = kind(WIDTH, HEADS, slopes=slopes, lrpe=layer == 0)
        if arm == "no norm":
            made.norm = nn.Identity()
        return made

    inner = INNER.get(arm, EQUAL_INNER)
    return TransNormerLLM(TransNormerConfig(256, WIDTH, HEADS, LAYERS, inner=inner), mixer=mixer)


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Bits per byte of every arm, and what the two ways to decode give."""
    text = byte_text(load_source("python-docs"))
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(told: str, arm: str = arm) -> None:
            step(f"{arm}: {told}")

        found |= remember(folder, arm.replace(" ", "-"), partial(_one, arm, seed, long, text, say))
    return found


def _one(arm: str, seed: int, long: bool, text: ByteText, step: Step) -> Values:
    net = network(arm, seed)
    batch, steps = (LONG_BATCH, LONG_STEPS) if long else (BATCH, STEPS)
    values = {f"parameters, {arm}": float(sum(p.numel() for p in net.parameters()))}
    try:
        fit(net, text.batches(batch, LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    except ValueError as error:
        # A loss that is not finite: sums without a norm may well give that.
        if "training went wrong" not in str(error):
            raise
        step(str(error))
        return values | {f"bits per byte, {arm}": UNIFORM}
    windows = text.test_windows(LENGTH, WINDOWS)
    with torch.no_grad():
        nats = sum(next_token_loss(net, some).item() * len(some) for some in windows.split(16))
    values |= {f"bits per byte, {arm}": nats / len(windows) / math.log(2)}
    if isinstance(net, TransNormerLLM) and arm == "transnormer":
        values |= _decoding(net, text.test[:DECODED][None])
    return values


@torch.no_grad()
def _decoding(net: TransNormerLLM, ids: Tensor) -> Values:
    """Token by token with both inferences, against the parallel form."""
    parallel = net(ids)
    found = {}
    for name, named in (("robust", {}), ("origin", {"sweep": origin})):
        state, rows = net.start(1), []
        for token in ids.split(1, 1):
            logits, state = net.advance(token, state, **named)
            rows.append(logits)
        decoded = torch.cat(rows, 1)
        lost = ~decoded.isfinite().all(-1)[0]
        found[f"tokens until not finite, {name}"] = float(lost.int().argmax() if lost.any() else ids.shape[1])
        if name == "robust":
            found["difference, robust"] = float((decoded - parallel).abs().nan_to_num(math.inf).max())
    found["difference, robust"] = min(found["difference, robust"], 1e30)
    return found | {"88 / slope": OVERFLOW / max(alibi_by_layer(HEADS, 0, LAYERS))}


def judge(runs: Sequence[Values]) -> Verdict:
    """Every part of the rule, by the means over the seeds."""
    table = spread(runs)
    bits = {arm: table[f"bits per byte, {arm}"] for arm in ARMS}
    if bits["softmax"]["largest"] >= UNIFORM:
        return Verdict("not shown at this scale", "The softmax Transformer diverged.")
    if bits["transnormer"]["largest"] >= UNIFORM:
        return Verdict("does not hold", "TransNormerLLM diverged.")
    ours = bits["transnormer"]
    gained = {arm: bits[arm]["mean"] - ours["mean"] for arm in CHANGED}
    noise = {arm: max(bits[arm]["sd"], ours["sd"]) for arm in CHANGED}
    robust = {name: min(run[name] for run in runs) for name in runs[0] if name.endswith(", robust")}
    lost, expected = table["tokens until not finite, origin"]["mean"], table["88 / slope"]["mean"]
    apart = max(run["difference, robust"] for run in runs)
    measured = _told(bits, lost, expected, apart)
    rules = {
        f"within {NEAR} bits of softmax": ours["mean"] <= bits["softmax"]["mean"] + NEAR,
        "robust decoding is finite": robust["tokens until not finite, robust"] >= DECODED,
        f"robust decoding is the parallel form to {SAFE:g}": apart <= SAFE,
        "origin overflows about where it must": (1 - ABOUT) * expected <= lost <= (1 + ABOUT) * expected,
        **{f"not better with {arm}": gained[arm] >= -noise[arm] for arm in CHANGED},
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    unclear = [arm for arm in CHANGED if gained[arm] <= noise[arm]]
    if unclear:
        text = f"{measured} Within the spread of the seeds: {', '.join(unclear)}."
        return Verdict("not shown at this scale", text)
    return Verdict("holds", measured)


def _told(bits: Mapping[str, Mapping[str, float]], lost: float, expected: float, apart: float) -> str:
    rows = ", ".join(f"{arm} {row['mean']:.3f} ± {row['sd']:.3f}" for arm, row in bits.items())
    return (
        f"Bits per byte: {rows}. Origin inference is finite for {lost:.0f} tokens "
        f"(88 / slope: {expected:.0f}), robust inference for all {DECODED}, at most {apart:.1e} from "
        "the parallel form."
    )


CLAIM = Claim(
    says=(
        "Linear attention with decay, a norm after mixing and a linear gate reads as well as softmax "
        "attention; each modification helps, and decoding with a constant state is numerically safe."
    ),
    rule=(
        f"Bytes of text, nets of equal parameters, means over the seeds: TransNormerLLM is within {NEAR} "
        "bits per byte of a softmax Transformer with rotary positions; without decay, without the gate and "
        "without the norm after mixing it is worse by more than the spread of the seeds (within the spread: "
        f"not shown). Robust inference is finite for {DECODED} tokens and within {SAFE:g} of the parallel "
        "form, the textbook form (origin) in float32 overflows after 88 / slope tokens, give "
        f"or take {ABOUT:.0%}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
