"""Gated attention's claim: a gate behind attention lowers the loss, closes, and takes the sink away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.models import SmallLM

__all__ = ["CLAIM", "judge", "measure", "network"]

WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 128
BATCH, STEPS, LONG_STEPS, WINDOWS = 16, 200, 4000, 192
BOS = 256  # the first token of every window, behind the 256 bytes
GATES: dict[str, dict[str, Any]] = {
    "G1 headwise": {"place": "G1", "kind": "headwise"},
    "G1 elementwise": {"place": "G1", "kind": "elementwise"},
    "G2 elementwise": {"place": "G2", "kind": "elementwise"},
}
LONG_GATES: dict[str, dict[str, Any]] = {
    "G1 input-independent": {"place": "G1", "kind": "elementwise"},
    "G1 not sparse": {"place": "G1", "kind": "elementwise", "form": "ns-sigmoid"},
}
ARMS = ("baseline", *GATES)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
MAIN, START, SINK, FEWER = "G1 elementwise", 0.5, 0.2, 0.5
SETTINGS = {
    "text": "python-docs, bytes, each window behind a fixed first token",
    "model": f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, length {LENGTH}; gates add their own weights",
    "training": f"{STEPS} steps of {BATCH} ({LONG_STEPS} with --long), learning rate 0.003",
    "with --long": f"also {', '.join(LONG_GATES)}, and the largest of the learning rates "
    f"{', '.join(map(str, RATES))} that ends below the loss of the smallest by no more than 0.5 nats",
}


def network(arm: str, seed: int) -> SmallLM:
    """`SmallLM`, its attention gated as the arm says; the initial weights of the rest do not depend on it."""
    import torch

    from attlas.layers import GatedAttention, LearnedGate, SelfAttention, gate_for
    from attlas.models import SmallLM
    from attlas.pattern import causal

    options = dict({**GATES, **LONG_GATES}.get(arm, {}))
    place = options.pop("place", None)

    def mixer(layer: int) -> nn.Module:
        made = SelfAttention(WIDTH, HEADS, pattern=causal(), base=10000.0)
        if place is None:
            return made
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + layer)
            gate: nn.Module = gate_for(place, WIDTH, HEADS, **options)
            if arm == "G1 input-independent":
                gate = LearnedGate(HEADS, WIDTH // HEADS, **options)
            gated = GatedAttention(WIDTH, HEADS, gates={place: gate}, pattern=causal(), base=10000.0)
        gated.load_state_dict(made.state_dict(), strict=False)
        return gated

    torch.manual_seed(seed)
    return SmallLM(mixer=mixer, vocabulary=BOS + 1, width=WIDTH, heads=HEADS, layers=LAYERS)


def begun(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The windows with a fixed token in place of their first byte."""
    for ids in batches:
        ids = ids.clone()
        ids[:, 0] = BOS
        yield ids


def looked_at(net: SmallLM, windows: Tensor) -> Values:
    """Mean gate, and the share of attention that the first token gets, over layers, heads and rows."""
    import torch

    from attlas.attend import ColumnMean, reduce
    from attlas.layers import Gate, LearnedGate, SelfAttention, rotary
    from attlas.pattern import causal

    shares: list[float] = []
    gates: list[float] = []

    def look(mixer: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        at = torch.arange(x.shape[1])
        query, key = (rotary(mixer.part(name, x), at, base=10000.0) for name in ("query", "key"))
        found = reduce(query, key, None, [ColumnMean()], pattern=causal())["column_mean"]
        shares.append(found[..., 0].mean().item())
        own = (one for one in mixer.modules() if isinstance(one, Gate | LearnedGate))
        gates.extend(gate.values(x).mean().item() for gate in own)

    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, SelfAttention)]
    try:
        with torch.no_grad():
            net(windows)
    finally:
        for hook in hooks:
            hook.remove()
    found = {"first token": sum(shares) / len(shares)}
    return found | ({"gate": sum(gates) / len(gates)} if gates else {})


def trained(arm: str, seed: int, steps: int, rate: float, step: Step) -> Values:
    """Nats per byte of held-out text at the end, the mean gate and the first token's share."""
    import torch

    from attlas.tasks import byte_text, load_source
    from attlas.train import Recipe, fit, next_token_loss

    text, net = byte_text(load_source("python-docs")), network(arm, seed)
    fit(net, begun(text.batches(BATCH, LENGTH, seed)), next_token_loss, Recipe(steps, rate), step=step)
    windows = next(begun(iter([text.test_windows(LENGTH, WINDOWS)])))
    with torch.no_grad():
        nats = sum(next_token_loss(net, some).item() * len(some) for some in windows.split(16))
    seen = looked_at(net, windows[:16, :-1])
    return {f"loss, {arm}": nats / len(windows), **{f"{name}, {arm}": seen[name] for name in sorted(seen)}}


def stable(arm: str, seed: int, step: Step) -> Values:
    """The largest of RATES at which a short run ends at most 0.5 nats above that of the smallest."""
    from attlas.train import Diverged

    losses = []
    for rate in RATES:
        try:
            losses.append(trained(arm, seed, STEPS, rate, step)[f"loss, {arm}"])
        except Diverged:
            losses.append(float("inf"))
    fine = [rate for rate, loss in zip(RATES, losses, strict=True) if loss <= losses[0] + 0.5]
    return {f"largest stable rate, {arm}": max(fine, default=0.0)}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """The baseline and each gate, trained alike; with `long` also two controls and learning rates."""
    found: dict[str, float] = {}
    for arm in (*ARMS, *LONG_GATES) if long else ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        name = arm.lower().replace(" ", "-")
        steps = LONG_STEPS if long else STEPS
        found |= remember(folder, name, partial(trained, arm, seed, steps, 3e-3, say))
        if long and arm in ("baseline", MAIN):
            found |= remember(folder, f"{name}-rates", partial(stable, arm, seed, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    loss = {arm: table[f"loss, {arm}"] for arm in ARMS}
    first = {arm: table[f"first token, {arm}"]["mean"] for arm in ARMS}
    gate = table[f"gate, {MAIN}"]["mean"]
    measured = _told(table)

    def apart(arm: str) -> float:
        return max(loss[arm]["sd"], loss[MAIN]["sd"])

    worse = [arm for arm in ARMS if loss[MAIN]["mean"] - loss[arm]["mean"] > apart(arm)]
    rules = {
        f"the loss of {MAIN} no worse than that of any other arm beyond the spread": not worse,
        f"a mean gate of {MAIN} below its start of {START}": gate < START,
    }
    if first["baseline"] >= SINK:
        least = FEWER * first["baseline"]
        rules[f"a share of the first token at most {FEWER} of the baseline's"] = first[MAIN] <= least
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    unseen = [
        f"the gain in loss over {arm} is within the spread of the seeds"
        for arm in ARMS
        if arm != MAIN and loss[arm]["mean"] - loss[MAIN]["mean"] <= apart(arm)
    ]
    if first["baseline"] < SINK:
        unseen.append(f"the baseline has no sink to lose (less than {SINK} on the first token)")
    if unseen:
        return Verdict("not shown at this scale", f"{measured} Not shown: {'; '.join(unseen)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(what: str, digits: int) -> str:
        names = [arm for arm in (*ARMS, *LONG_GATES) if f"{what}, {arm}" in table]
        return ", ".join(
            f"{arm} {table[f'{what}, {arm}']['mean']:.{digits}f} ± {table[f'{what}, {arm}']['sd']:.{digits}f}"
            for arm in names
        )

    rates = row("largest stable rate", 3)
    return (
        f"Nats per byte: {row('loss', 3)}. Mean gate: {row('gate', 2)}. Attention to the first token: "
        f"{row('first token', 3)}.{f' Largest stable learning rate: {rates}.' if rates else ''}"
    )


CLAIM = Claim(
    says=(
        "A sigmoid gate from the layer's input on the heads' outputs (G1) lowers the loss, elementwise more "
        f"than headwise and more than on values (G2); its gates close, on the mean below their start of "
        f"{START}, and attention to the first token vanishes."
    ),
    rule=(
        "Bytes of text behind a fixed first token, means over the seeds, differences beyond the larger "
        f"spread of the two arms. {MAIN} has a lower loss than each other arm: the baseline, G1 headwise, "
        f"G2 elementwise; its mean gate is below the {START} at which it starts; its share of attention on "
        f"the first token is at most {FEWER} of the baseline's. It does not hold where {MAIN} is worse than "
        f"another arm, its mean gate is not below {START}, or it keeps a sink that the baseline has. Nothing "
        f"is shown where a gain is within the spread, or where the baseline has no sink (a share below "
        f"{SINK}; spread evenly it is 0.04)."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
