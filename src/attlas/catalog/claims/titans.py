"""Titans' claim: a memory that descends its error overwrites, and depth stores what no linear map can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "judge", "measure"]

KEY_WIDTH, STREAMS, REBOUND = 32, 400, 0.3
PAIRS = (8, 16, 32)
# theta, eta, alpha of each way to write.
ARMS = {"additive": (1.0, 0.0, 0.0), "gradient": (0.5, 0.0, 0.0), "full": (0.35, 0.3, 0.01)}
GROUPS = ("re-bound", "bound once")
MAP_WIDTH, INNER, HIDDEN, CHUNK, HELD_OUT = 16, 32, 64, 16, 500
MOMENTUM, THETAS = 0.9, (0.002, 0.0045, 0.01, 0.022, 0.05)
TARGETS, DEPTHS, SEEN = ("odd", "even"), (1, 2), (2048, 8192)
NETS = ("window", "MAG")
RECALL: dict[str, Any] = {"vocabulary": 256, "length": 64, "pairs": 8, "train": 16384, "test": 1024}
RECALL_WIDTH, RECALL_HEADS, RECALL_WINDOW, RECALL_BATCH, RECALL_STEPS = 64, 4, 8, 32, 1500
OVERWRITES, HALF, ABOVE = 0.2, 0.5, 0.3
SETTINGS = {
    "overwriting": f"no training; unit keys of width {KEY_WIDTH}, one-hot values, {PAIRS} pairs, then "
    f"{REBOUND:.0%} of the keys again with other values; {STREAMS} streams; linear memories, one update per "
    "token, (theta, eta, alpha): " + ", ".join(f"{name} {factors}" for name, factors in ARMS.items()),
    "depth": f"no training; unit keys k of width {MAP_WIDTH}, targets tanh(kA)B (odd) and |kA|B (even), A "
    f"({MAP_WIDTH}, {INNER}), B ({INNER}, {MAP_WIDTH}); one pass over {SEEN[-1]} pairs, one update per chunk "
    f"of {CHUNK} by the summed gradient, eta {MOMENTUM} per chunk, alpha 0, the best of theta {THETAS}; "
    f"{HIDDEN} hidden units, SiLU, last layer from 0; relative squared error on {HELD_OUT} other keys",
    "recall": f"with --long only: MQAR {RECALL}, 2 layers, width {RECALL_WIDTH}, window {RECALL_WINDOW}, "
    f"linear memory, {RECALL_STEPS} steps of {RECALL_BATCH}",
}


def overwriting(seed: int) -> Values:
    """Share of keys whose latest value is read, of those bound twice and of those bound once."""
    import torch
    from torch.nn import functional

    from attlas.scan import MemoryRule, additive, memory, squared

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for pairs in PAIRS:
        keys = functional.normalize(torch.randn(STREAMS, 1, pairs, KEY_WIDTH, generator=generator), dim=-1)
        values = torch.randint(KEY_WIDTH, (STREAMS, pairs), generator=generator)
        again = round(REBOUND * pairs)
        order = torch.rand(STREAMS, pairs, generator=generator).argsort(1)[:, :again]
        # Another value than before.
        other = torch.randint(1, KEY_WIDTH, (STREAMS, again), generator=generator)
        later = (values.gather(1, order) + other) % KEY_WIDTH
        latest = values.scatter(1, order, later)
        twice = torch.zeros_like(values, dtype=torch.bool).scatter(1, order, True)
        stream = torch.cat([keys, keys.take_along_dim(order[:, None, :, None], 2)], 2)
        bound = functional.one_hot(torch.cat([values, later], 1), KEY_WIDTH)[:, None].to(keys)
        for arm, (theta, eta, alpha) in ARMS.items():
            rule = MemoryRule(
                (torch.zeros(1, KEY_WIDTH, KEY_WIDTH),), error=additive if arm == "additive" else squared
            )
            _, state = memory(rule, stream, stream, bound, alpha, eta, theta, chunk=1, return_state=True)
            right = (keys @ state["weight0"])[:, 0].argmax(-1) == latest
            for group, members in zip(GROUPS, (twice, ~twice), strict=True):
                found[_of(arm, group, pairs)] = right[members].double().mean().item()
    return found


def depth_errors(target: str, depth: int, seed: int) -> Values:
    """Relative squared error of the best step size after each number of pairs."""
    import torch
    from torch.nn import functional

    from attlas.scan import MemoryRule, memory, recall

    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(MAP_WIDTH, INNER, generator=generator)
    second = torch.randn(INNER, MAP_WIDTH, generator=generator) / INNER**0.5
    keys = functional.normalize(torch.randn(SEEN[-1] + HELD_OUT, MAP_WIDTH, generator=generator), dim=-1)
    bent = (keys @ first).tanh() if target == "odd" else (keys @ first).abs()
    values = bent @ second
    widths = [MAP_WIDTH, MAP_WIDTH] if depth == 1 else [MAP_WIDTH, HIDDEN, MAP_WIDTH]
    weights = [torch.zeros(1, *pair) for pair in pairwise(widths)]
    if depth > 1:
        weights[0] = torch.randn(1, MAP_WIDTH, HIDDEN, generator=generator)
    rule = MemoryRule(tuple(weights))
    tokens = (len(THETAS), 1, SEEN[-1])
    place = torch.arange(SEEN[-1]) % CHUNK
    eta = torch.where(place == 0, MOMENTUM, 1.0).expand(tokens)
    commit = (place == CHUNK - 1).float().expand(tokens)
    theta = torch.tensor(THETAS)[:, None, None].expand(tokens)
    key, value = (x[: SEEN[-1]].expand(*tokens, -1) for x in (keys, values))
    asked, known = (x[SEEN[-1] :].expand(*tokens[:2], -1, -1) for x in (keys, values))
    state, begin, found = None, 0, {}
    for end in SEEN:
        some = slice(begin, end)
        _, state = memory(
            rule, key[:, :, some], key[:, :, some], value[:, :, some], 0.0, eta[..., some], theta[..., some],
            chunk=CHUNK, commit=commit[..., some], state=state, return_state=True,
        )  # fmt: skip
        wrong = (recall(rule, asked, state) - known).square().sum((1, 2, 3))
        errors = (wrong / known.square().sum((1, 2, 3))).nan_to_num(nan=torch.inf)
        found[_error(target, depth, end)] = errors.min().item()
        begin = end
    return found


def network(name: str, seed: int) -> nn.Module:
    """Two layers with a short window, alone or multiplied by what a linear memory reads."""
    import torch

    from attlas.layers import LongTermMemory, MemoryAsGate, SelfAttention
    from attlas.models import SmallLM
    from attlas.pattern import causal, window

    def mixer(layer: int) -> nn.Module:
        if name == "window":
            seen = causal() & window(RECALL_WINDOW)
            return SelfAttention(RECALL_WIDTH, RECALL_HEADS, pattern=seen, base=10000.0)
        memory = LongTermMemory(RECALL_WIDTH, RECALL_HEADS, depth=1, chunk=1)
        return MemoryAsGate(RECALL_WIDTH, RECALL_HEADS, memory, size=RECALL_WINDOW)

    torch.manual_seed(seed)
    return SmallLM(mixer=mixer, vocabulary=RECALL["vocabulary"], width=RECALL_WIDTH)


def recall_values(name: str, seed: int, step: Step) -> Values:
    """Accuracy of a trained net on multi-query associative recall."""
    import torch

    from attlas.tasks import mqar
    from attlas.train import Recipe, fit

    train, test = mqar(**RECALL, seed=seed)
    net = network(name, seed)
    fit(net, train.batches(RECALL_BATCH, seed), _answer_loss, Recipe(RECALL_STEPS), step=step)
    with torch.no_grad():
        found = torch.cat([net(ids).argmax(-1) for ids in test.ids.split(256)])
    return {f"recall, {name}": test.accuracy(found)}


def _answer_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    from torch.nn import functional

    from attlas.tasks import UNASKED

    ids, labels = batch
    return functional.cross_entropy(model(ids).flatten(0, 1).float(), labels.flatten(), ignore_index=UNASKED)


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Overwriting, depth, and with --long recall."""
    found = dict(remember(folder, "overwriting", partial(overwriting, seed)))
    for target in TARGETS:
        for depth in DEPTHS:
            step(f"a memory of depth {depth} learns the {target} map")
            found |= remember(folder, f"{target}-{depth}", partial(depth_errors, target, depth, seed))
    for name in NETS if long else ():

        def say(text: str, name: str = name) -> None:
            step(f"recall, {name}: {text}")

        found |= remember(folder, f"recall-{name}", partial(recall_values, name, seed, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(name: str) -> float:
        return float(table[name]["mean"])

    gains = [
        mean(_of("gradient", "re-bound", pairs)) - mean(_of("additive", "re-bound", pairs)) for pairs in PAIRS
    ]
    flat, deep = (mean(_error("even", depth, SEEN[-1])) for depth in DEPTHS)
    rules = {
        f"re-bound keys at least {OVERWRITES} above additive at every number of pairs": min(gains)
        >= OVERWRITES,
        f"depth 2 at most {HALF} of depth 1's error on the even map": deep <= HALF * flat,
    }
    if f"recall, {NETS[0]}" in table:
        window, gated = (mean(f"recall, {name}") for name in NETS)
        rules[f"recall of MAG at least {ABOVE} above its window alone"] = gated - window >= ABOVE
    failed = [rule for rule, met in rules.items() if not met]
    told = _told(table)
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    return Verdict("holds", told)


def _of(arm: str, group: str, pairs: int) -> str:
    return f"{group}, {arm}, {pairs} pairs"


def _error(target: str, depth: int, seen: int) -> str:
    return f"error, {target} map, depth {depth}, {seen} pairs"


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(names: Sequence[str], digits: int) -> str:
        return " / ".join(
            f"{table[name]['mean']:.{digits}f} ± {table[name]['sd']:.{digits}f}" for name in names
        )

    groups = "; ".join(
        f"{group}: " + ", ".join(f"{arm} {row([_of(arm, group, p) for p in PAIRS], 2)}" for arm in ARMS)
        for group in GROUPS
    )
    maps = "; ".join(
        f"{target} map: "
        + ", ".join(f"depth {d} {row([_error(target, d, s) for s in SEEN], 3)}" for d in DEPTHS)
        for target in TARGETS
    )
    added = [
        sum(table[_of("full", group, p)]["mean"] - table[_of("gradient", group, p)]["mean"] for p in PAIRS)
        for group in GROUPS
    ]
    momentum = ", ".join(
        f"{change / len(PAIRS):+.3f} on keys {group}" for change, group in zip(added, GROUPS, strict=True)
    )
    recall = [f"recall, {name}" for name in NETS]
    trained = f" MQAR, {' / '.join(NETS)}: {row(recall, 2)}." if recall[0] in table else ""
    return (
        f"Latest value read with {' / '.join(map(str, PAIRS))} pairs, {groups}; momentum and decay add "
        f"{momentum}. Relative squared error after "
        f"{' / '.join(map(str, SEEN))} pairs, {maps}.{trained}"
    )


CLAIM = Claim(
    says=(
        "A memory that learns at test time by gradient manages what it keeps better than additive linear "
        "memories, and deeper memories store what shallow ones cannot."
    ),
    rule=(
        "Means over the seeds, no outer training. Keys that are bound again: the gradient rule reads the "
        f"latest value at least {OVERWRITES} more often than the additive one at each of {PAIRS} pairs. "
        f"An even map of the keys: after {SEEN[-1]} pairs a memory of two layers has at most {HALF} of a "
        "linear memory's squared error. With --long also MQAR: window and memory (MAG) answer at least "
        f"{ABOVE} more than the window alone. Told and not judged: keys bound once, momentum and decay, "
        "an odd map, which is nearly linear."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=1.0,
)
