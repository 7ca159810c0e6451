"""PLDR-LLM's claim: learned matrices are the same for every text, so that a cache can replace the net."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas._common.measuring import in_turns
from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.tasks import ByteText

__all__ = ["CLAIM", "judge", "measure", "network"]

WIDTH, HEADS, LAYERS, UNITS, DEPTH, METRIC_INNER = 64, 4, 2, 2, 2, 32
HEAD, INNER, CHUNK = WIDTH // HEADS, 8 * WIDTH // 3, 32
LENGTH, BATCH, STEPS, LONG_BATCH, LONG_STEPS = 128, 8, 300, 16, 2000
PROMPTS, WINDOWS = 20, 192
PROMPT, DECODED, ROUNDS = 64, 32, 3
LEARNED, PREFIX, DOT = "learned matrix", "matrix of the prefix", "dot products"
ARMS = (LEARNED, PREFIX, DOT)
CACHES = ("no cache", "KV", "KV and G")
FALL, SAME = 0.5, 0.01
SETTINGS = {
    "text": "python-docs, bytes",
    "model": f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, length {LENGTH}",
    "metric learner": f"{UNITS} units of depth {DEPTH}, inner width {METRIC_INNER}",
    "training": f"{STEPS} steps of {BATCH} ({LONG_STEPS} of {LONG_BATCH} with --long), learning rate 3e-3",
    "spread": f"of {PROMPTS} held-out prompts of {LENGTH} bytes, mean over the layers",
    "decoding": f"{DECODED} bytes after {PROMPT}, batch 1, best of {ROUNDS} in CPU seconds",
    "prefix": f"chunks of {CHUNK}",
}


def network(arm: str, seed: int) -> nn.Module:
    """One of ARMS; dot products have wider GLUs, so that all have as many parameters."""
    import torch

    from attlas.layers import FixedCurvature, MetricLearner, PrefixPLGA
    from attlas.layers.plga import PLGA
    from attlas.models import PLDRLLM, PLDRConfig

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"units": UNITS, "depth": DEPTH}
    config = PLDRConfig(256, WIDTH, HEADS, LAYERS, metric_inner=METRIC_INNER, **sizes)
    if arm == LEARNED:
        return PLDRLLM(config)
    learner = MetricLearner(HEAD, HEADS, inner=METRIC_INNER, **sizes)
    if arm == PREFIX:
        return PLDRLLM(
            config,
            attention=lambda layer: PrefixPLGA(
                WIDTH, HEADS, chunk=CHUNK, metric=MetricLearner(HEAD, HEADS, inner=METRIC_INNER, **sizes)
            ),
        )
    spare = sum(part.numel() for part in learner.parameters())
    wider = PLDRConfig(256, WIDTH, HEADS, LAYERS, inner=INNER + round(spare / (3 * WIDTH + 2)))
    identity = torch.eye(HEAD).expand(HEADS, -1, -1)
    return PLDRLLM(wider, attention=lambda layer: PLGA(WIDTH, HEADS, metric=FixedCurvature(identity)))


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Spread of the matrices, losses with other matrices, and the speed of three ways to decode."""
    from attlas.tasks import byte_text, load_source

    text = byte_text(load_source("python-docs"))
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(told: str, arm: str = arm) -> None:
            step(f"{arm}: {told}")

        found |= remember(folder, arm.replace(" ", "-"), partial(_one, arm, seed, long, text, say))
    return found


def _one(arm: str, seed: int, long: bool, text: ByteText, step: Step) -> Values:
    import torch

    from attlas.train import Recipe, fit, next_token_loss

    net: Any = network(arm, seed)
    batch, steps = (LONG_BATCH, LONG_STEPS) if long else (BATCH, STEPS)
    values = {f"parameters, {arm}": float(sum(part.numel() for part in net.parameters()))}
    prompts, windows = text.test_windows(LENGTH, PROMPTS)[:, :-1], text.test_windows(LENGTH, WINDOWS)
    if arm == LEARNED:
        values["spread before"] = _spread(net, prompts)
    fit(net, text.batches(batch, LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    with torch.no_grad():
        if arm != LEARNED:
            return values | {f"nats per byte, {arm}": _loss(net, windows)}
        values["spread after"] = _spread(net, prompts)
        # A prompt of the training text, which no test window has seen.
        other = net.curvatures(text.train[:LENGTH][None])
        values["nats per byte, matrices of each window"] = _loss(net, windows)
        values[f"nats per byte, {arm}"] = _loss(net, windows, [one[0] for one in other])
    return {**values, **_speed(net, text.test[: PROMPT + DECODED][None])}


def _loss(net: Any, windows: Tensor, curvatures: list[Tensor] | None = None) -> float:
    from torch.nn.functional import cross_entropy

    total = 0.0
    for some in windows.split(16):
        logits = net(some[:, :-1]) if curvatures is None else net(some[:, :-1], curvatures=curvatures)
        total += cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum").item()
    return total / windows[:, 1:].numel()


def _spread(net: Any, prompts: Tensor) -> float:
    """RMS distance of G from its mean over prompts, relative to it, mean over the layers."""
    import torch

    from attlas.layers.plga_metric import relative_spread

    with torch.no_grad():
        found = net.curvatures(prompts)
    return sum(relative_spread(layer) for layer in found) / len(found)


def _speed(net: Any, ids: Tensor) -> Values:
    """Bytes decoded in a CPU second, and whether both caches give the same logits."""
    import torch

    from attlas.layers import kv_cache_only

    def again() -> Tensor:
        return torch.cat([net(ids[:, : at + 1])[:, -1:] for at in range(PROMPT, PROMPT + DECODED)], 1)

    def cached(drop: Callable[[Any], Any]) -> Tensor:
        state, rows = drop(begun), []
        for at in range(PROMPT, PROMPT + DECODED):
            row, state = net.advance(ids[:, at : at + 1], state)
            rows.append(row)
        return torch.cat(rows, 1)

    with torch.no_grad():
        begun = net.begin(ids[:, :PROMPT])[1]
        ways = (again, partial(cached, kv_cache_only), partial(cached, lambda state: state))
        taken = in_turns(ways, ROUNDS, warm=1, taken=min, clock=time.process_time)
        apart = float((ways[1]() - ways[2]()).abs().max())
    found = {
        f"bytes per CPU second, {name}": DECODED / max(seconds, 1e-6)
        for name, seconds in zip(CACHES, taken, strict=True)
    }
    return found | {"difference of the caches": apart}


def judge(runs: Sequence[Values]) -> Verdict:
    """Every part of the rule, in every seed."""
    rules = {
        f"the spread falls to {FALL:g} of what it was": all(
            run["spread after"] <= FALL * run["spread before"] for run in runs
        ),
        f"another text's matrices change the loss by less than {SAME} nats": all(
            abs(_change(run)) < SAME for run in runs
        ),
        "both caches give the same numbers": all(run["difference of the caches"] == 0 for run in runs),
    }
    told = _told(spread(runs), runs)
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    return Verdict("holds", told)


def _change(run: Values) -> float:
    return run[f"nats per byte, {LEARNED}"] - run["nats per byte, matrices of each window"]


def _told(table: Mapping[str, Mapping[str, float]], runs: Sequence[Values]) -> str:
    before, after = table["spread before"], table["spread after"]
    shares = [run["spread after"] / run["spread before"] for run in runs]
    changes = [_change(run) for run in runs]
    losses = ", ".join(
        f"{arm} {row['mean']:.3f} ± {row['sd']:.3f}"
        for arm in ARMS
        for row in (table[f"nats per byte, {arm}"],)
    )
    speeds = ", ".join(f"{name} {table[f'bytes per CPU second, {name}']['mean']:.0f}" for name in CACHES)
    return (
        f"Relative spread of the matrices over {PROMPTS} prompts: {before['mean']:.3g} ± {before['sd']:.2g} "
        f"before training, {after['mean']:.3g} ± {after['sd']:.2g} after it ({min(shares):.2f} to "
        f"{max(shares):.2f} of it by seed). Another text's matrices change "
        f"the loss by {min(changes):+.4f} to {max(changes):+.4f} nats a byte. Loss at equal parameters, of "
        f"what a token may know: {losses}. Bytes decoded in a CPU second: {speeds}."
    )


CLAIM = Claim(
    says=(
        "The matrix between query and key that a deep net learns from the sequence comes out the same for "
        "every text after training, so that a cache of it can replace the net at inference."
    ),
    rule=(
        "Bytes of text, in every seed: the spread of G over held-out prompts, relative to its mean, falls by "
        f"training to {FALL:g} of what it was or below; the loss with G of one unrelated prompt differs by "
        f"less than {SAME} nats from that with G of every window itself; and decoding with the G-cache "
        "gives the numbers of decoding without it. Told, not judged: the loss with that one G, which sees no "
        "later token, beside that of the causal form whose G is of the prefix and of plain dot products at "
        "equal parameters; and the speed of decoding."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
)
