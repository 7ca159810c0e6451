"""RFA's claim: one attention layer learns averages over keys from few examples, a set-blind net does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLAIM", "judge", "measure"]

WIDTH, KEYS, HEADS = 12, 12, 200
SAMPLES, LONG_SAMPLES = (250, 500, 1000, 2000), (250, 500, 1000, 2000, 4000)
HELD, TESTED, SCALED = 1000, 2000, 20_000
PENALTIES = tuple(10.0**power for power in range(-6, 4))
AVERAGE, CORRELATION = "average", "correlation"
BIAS = {"attention": 0.0, "biased": 1.0, "biased 4x": 4.0}
NAMES = (*BIAS, "perceptron")
GAP = 10.0
SETTINGS = {
    "points": f"{KEYS} keys and a query, unit vectors in R^{WIDTH}",
    "targets": "average: mean <b, x_i>^2; correlation: mean <x_0, x_i>^3 <b, x_i>; of unit variance, b a "
    "unit vector per seed",
    "arms": f"{HEADS} heads, {HEADS * (WIDTH + 1)} fitted parameters in every arm; bias of the heads: {BIAS}",
    "fit": f"ridge, {len(PENALTIES)} penalties from 1e-6 to 1e3 chosen on {HELD} held-out points for each "
    f"target, {TESTED} points to test",
    "samples": f"{SAMPLES} ({LONG_SAMPLES} with --long)",
}


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Queries (count, WIDTH) and keys (count, KEYS, WIDTH), uniform on the sphere."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, KEYS + 1, WIDTH, generator=generator, dtype=torch.float64)
    found = found / found.norm(dim=-1, keepdim=True)
    return found[:, 0], found[:, 1:]


def targets(query: Tensor, keys: Tensor, direction: Tensor) -> Tensor:
    """(n, 2): the average of <b, x_i>^2, and of <x_0, x_i>^3 <b, x_i>."""
    import torch

    along = keys @ direction
    near = torch.einsum("nd,nid->ni", query, keys)
    return torch.stack([along.square().mean(1), (near**3 * along).mean(1)], 1)


def features(name: str, query: Tensor, keys: Tensor, seed: int) -> Tensor:
    """Of the named arm; every arm has HEADS (WIDTH + 1) fitted parameters."""
    import torch

    from attlas.laws import attention_features, perceptron_features, random_heads

    generator = torch.Generator().manual_seed(seed)
    if name == "perceptron":
        inputs = (KEYS + 1) * (WIDTH + 1)
        weights = torch.randn(HEADS * (WIDTH + 1), inputs, generator=generator, dtype=torch.float64)
        # x~ of a unit vector has the squared norm 2: units of variance 1.
        return perceptron_features(query, keys, weights / (2 * (KEYS + 1)) ** 0.5)
    heads = random_heads(HEADS, WIDTH, mean=BIAS[name], generator=generator)
    return attention_features(query, keys, heads)


def errors(name: str, seed: int, samples: Sequence[int], step: Step) -> Values:
    """Test errors of one arm on both targets at every number of samples, in target variances."""
    import torch

    from attlas.laws import ridge_fit

    direction = torch.randn(
        WIDTH, generator=torch.Generator().manual_seed(10 * seed + 1), dtype=torch.float64
    )
    direction = direction / direction.norm()
    scale = targets(*points(SCALED, 10 * seed + 2), direction).std(0)
    query, keys = points(max(samples) + HELD + TESTED, 10 * seed + 3)
    wanted = targets(query, keys, direction) / scale
    psi = features(name, query, keys, 10 * seed + 4)
    held, tested = slice(-HELD - TESTED, -TESTED), slice(-TESTED, None)
    found = {}
    for n in samples:
        step(f"{name}: {n} samples")
        fit = ridge_fit(psi[:n], wanted[:n], PENALTIES, (psi[held], wanted[held]))
        rest = (fit.predict(psi[tested]) - wanted[tested]).square().mean(0)
        for target, error in zip((AVERAGE, CORRELATION), rest.tolist(), strict=True):
            found[_label(target, name, n)] = error
    return found


def _label(target: str, name: str, samples: int) -> str:
    return f"error on {target}, {name}, {samples} samples"


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Four arms, two targets."""
    samples = LONG_SAMPLES if long else SAMPLES
    found: dict[str, float] = {}
    for name in NAMES:
        found |= remember(folder, name.replace(" ", "-"), partial(errors, name, seed, samples, step))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(target: str, name: str, samples: int) -> float:
        return table[_label(target, name, samples)]["mean"]

    samples = [n for n in LONG_SAMPLES if _label(AVERAGE, "attention", n) in table]
    most = samples[-1]
    gap = mean(AVERAGE, "perceptron", most) / mean(AVERAGE, "attention", most)
    order = ("biased 4x", "biased", "attention", "perceptron")
    rules = {
        f"at {most} samples the net's error on the average {GAP:g} times that of attention": gap >= GAP,
        "attention below the net on the average at every number of samples": all(
            mean(AVERAGE, "attention", n) < mean(AVERAGE, "perceptron", n) for n in samples
        ),
        "on the correlation a stronger bias is better, and any head better than the net, everywhere": all(
            mean(CORRELATION, better, n) < mean(CORRELATION, worse, n)
            for n in samples
            for better, worse in pairwise(order)
        ),
    }
    measured = _told(table, samples) + f" Gap on the average: {gap:.1f} times."
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: dict[str, dict[str, float]], samples: Sequence[int]) -> str:
    def curve(target: str, name: str) -> str:
        return "/".join(f"{table[_label(target, name, n)]['mean']:.2f}" for n in samples)

    parts = [
        f"{target}: " + ", ".join(f"{name} {curve(target, name)}" for name in NAMES)
        for target in (AVERAGE, CORRELATION)
    ]
    counts = "/".join(map(str, samples))
    return f"Test error in target variances at {counts} samples, {'; '.join(parts)}."


CLAIM = Claim(
    says=(
        "A single attention layer with random heads learns averages over keys from few examples, at no price "
        "for the number of keys, where a fully connected random-feature net of as many parameters does not; "
        "heads biased towards keys near the query learn correlation-weighted averages from fewer examples."
    ),
    rule=(
        "Means over the seeds. On the average of <b, x_i>^2 attention is below the net at every number of "
        f"samples, and at the largest the net's test error is at least {GAP:g} times that of attention. On "
        "the correlation-weighted average: bias 4 below bias 1, that below no bias, that below the net, at "
        "every number of samples."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=2.5,
    seeds=5,
)
