"""Time and memory of one mixer layer against the length, and from where on it beats softmax attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attlas._common.measuring import extra_bytes, in_turns
from attlas.catalog.bench.mixer_nets import REFERENCE, Size
from attlas.catalog.bench.mixer_own import Absent, is_own, taking_part
from attlas.laws import efficiency_length
from attlas.layers import MixerEntry, Setting

__all__ = ["FITTED", "MEASURES", "SLOW", "efficiency", "speed_at"]

MEASURES = ("forward_ms", "train_ms", "train_bytes")
SLOW = 10.0  # seconds of a training call beyond which a mixer sits out longer sequences
TIMES = 3
FITTED = 4  # lengths at least: a parabola goes through any 3 points


def speed_at(
    entries: Sequence[MixerEntry], size: Size, length: int, *, times: int = TIMES
) -> dict[str, dict[str, Any]]:
    """One causal layer of each mixer on one sequence of `length`, in turns in this process.

    forward_ms: without gradients; train_ms: forward and backward; train_bytes: the most that torch holds in
    that beside weights and input; decode_us: one more token after `length`, state_bytes: of the state there,
    both None without one; absent: why a mixer cannot have this length or size.
    """
    found: dict[str, dict[str, Any]] = {}
    layers: dict[str, nn.Module] = {}
    torch.manual_seed(0)
    x = torch.randn(1, length, size.width)
    for entry in entries:
        try:
            # One more: the token that is timed behind the sequence.
            setting = Setting(size.width, size.heads, length=length + 1)
            layers[entry.name] = _tried(entry, setting, x)
            found[entry.name] = {}
        except Absent as error:
            found[entry.name] = {"absent": str(error)}
    forward: list[Callable[[], Any]] = [_forward(layer, x) for layer in layers.values()]
    train: list[Callable[[], Any]] = [_train(layer, x) for layer in layers.values()]
    for column, calls in (("forward_ms", forward), ("train_ms", train)):
        for name, seconds in zip(layers, in_turns(calls, times=times, warm=1), strict=True):
            found[name][column] = 1e3 * seconds
    for (name, layer), call in zip(layers.items(), train, strict=True):
        layer.zero_grad(set_to_none=True)
        found[name]["train_bytes"] = extra_bytes(call)
    _decoding([entry for entry in entries if entry.name in layers], layers, x, times, found)
    return found


def _tried(entry: MixerEntry, setting: Setting, x: Tensor) -> nn.Module:
    """The layer; of the user's own first every call that will be measured: one that fails is left out."""
    with taking_part(entry):
        layer = entry.build(setting)
        if is_own(entry.name):
            _train(layer, x)()
            _forward(layer, x)()
            if entry.stateful:
                stateful: Any = layer
                with torch.inference_mode():
                    stateful.advance(x[:, :1], stateful.advance(x, stateful.start(1))[1])
    return layer


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        layer.eval()
        with torch.inference_mode():
            out: Tensor = layer(x)
        return out

    return call


def _train(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        layer.train()
        layer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_()).sum().backward()

    return call


@torch.inference_mode()
def _decoding(
    entries: Sequence[MixerEntry],
    layers: Mapping[str, nn.Module],
    x: Tensor,
    times: int,
    found: dict[str, dict[str, Any]],
) -> None:
    """One more token behind the whole sequence."""
    steps: dict[str, Callable[[], Any]] = {}
    for entry in entries:
        found[entry.name] |= {"decode_us": None, "state_bytes": None}
        if entry.stateful:
            layer: Any = layers[entry.name].eval()
            _, state = layer.advance(x, layer.start(1))
            found[entry.name]["state_bytes"] = int(state.nbytes)
            steps[entry.name] = partial(layer.advance, x[:, :1], state)
    for name, seconds in zip(steps, in_turns(list(steps.values()), times=3 * times), strict=True):
        found[name]["decode_us"] = 1e6 * seconds


def efficiency(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """For every mixer beside the reference and every measure: the efficiency length of CAB, or why none.

    The reference's cost is fitted by a n^2 + b n + c, the mixer's by d n + e (of times without the shortest
    length), over the lengths that both have: arXiv 2210.07661. {mixer: {measure: {"length" or "absent": why,
    and where it was fitted "cheaper" ("always", "partly" or "never" at the measured lengths), "quadratic",
    "linear" and "fits"}}}.
    """
    table = {row["mixer"]: row for row in rows}
    if REFERENCE not in table:
        return {}
    return {
        name: {measure: _crossing(table[REFERENCE], row, measure, lengths) for measure in MEASURES}
        for name, row in table.items()
        if name != REFERENCE
    }


def _crossing(
    dense: Mapping[str, Any], row: Mapping[str, Any], measure: str, lengths: Sequence[int]
) -> dict[str, Any]:
    both = [
        (length, float(a), float(b))
        for length, a, b in zip(lengths, dense[measure], row[measure], strict=True)
        if a is not None and b is not None
    ]
    if len(both) < FITTED:
        return {"absent": f"a fit needs {FITTED} lengths, there are {len(both)}"}
    at, costs, own = zip(*both, strict=True)
    # As in the source: the shortest time does not lie on the line yet.
    found = efficiency_length(at, costs, own, skip=int(measure.endswith("_ms")))
    facts: dict[str, Any] = {"cheaper": found.cheaper}
    facts |= {"quadratic": list(found.quadratic), "linear": list(found.linear), "fits": list(found.fits)}
    if found.length is None:
        return facts | {"absent": "the fits do not cross"}
    return facts | {"length": found.length}
