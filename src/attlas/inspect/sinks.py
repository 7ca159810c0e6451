"""How much attention the first token draws: the sink metric, of any network of token mixers.

Source: Gu et al. 2024, arXiv 2410.10781. Legend: B batch, H heads, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attlas.attend import ColumnMean, Normaliser, Request, RowContext, Softmax, Sum, reduce
from attlas.attend.normaliser import zero_where_edges
from attlas.attend.observing import observing
from attlas.pattern import causal

__all__ = ["Sinks", "maps_of", "received", "sink_strength"]

THRESHOLD = 0.3
EPS = 1e-8


@dataclass(frozen=True)
class Sinks:
    """The metric of the first token.

    first_share: mean of alpha_1 over layers, heads and sequences. strength: Sink_1, the share of them whose
    alpha_1 is above the threshold. layers: of the network that have a map.
    """

    first_share: float
    strength: float
    layers: int


@torch.no_grad()
def sink_strength(
    mixers: Sequence[nn.Module], run: Callable[[], object], *, threshold: float = THRESHOLD
) -> Sinks | None:
    """The sink metric of the first token while `run` calls a network with these `mixers`; None: without maps.

        alpha_k = sum_{i >= k} A_ik / (T - k + 1),   Sink_k = mean over layers, heads, sequences of
                                                                [alpha_k > threshold]

    alpha_1 depends on T: uniform causal attention has H_T / T (0.042 at 128 tokens, 0.004 at 2048), so that
    figures of different lengths are told apart. Maps that are not softmax's are divided by their row's sum of
    absolute weights, as in the source. Mixers without a map of their own (`maps_of`) are left out.
    ValueError: a map that is not causal, in which T - k + 1 is not the number of rows that may see token k.
    Cost: the forward pass and its logits once more, O(T * 64) memory.
    """
    found = [received(request) for request in maps_of(mixers, run) if request is not None]
    if not found:
        return None
    first = torch.cat([shares[..., 0].flatten() for shares in found])
    return Sinks(float(first.mean()), float((first > threshold).double().mean()), len(found))


def received(request: Request) -> Tensor:
    """alpha_k, what token k gets of the rows that see it, on the mean: (B, H, T) of a causal request.

    ValueError: a pattern in which a row sees later tokens.
    """
    if not _is_causal(request):
        raise ValueError(
            "the sink metric is of causal attention, where T - k + 1 rows see token k, but with the pattern "
            f"{request.pattern or 'none (every pair)'} rows see later tokens; use causal() & pattern"
        )
    normaliser = request.normaliser if type(request.normaliser) is Softmax else _shares(request.normaliser)
    found = reduce(
        request.query, torch.as_tensor(request.key), None, [ColumnMean()], pattern=request.pattern,
        score=request.score, normaliser=normaliser, q_at=request.q_at, k_at=request.k_at,
    )["column_mean"]  # fmt: skip
    tokens = found.shape[-1]
    return found * tokens / torch.arange(tokens, 0, -1, device=found.device)


def _is_causal(request: Request) -> bool:
    pattern, rows, keys = request.pattern, request.q_at, request.k_at
    if pattern is None or keys is None:
        return request.keys == 1
    return pattern.is_causal or pattern.count(rows, keys) == (pattern & causal()).count(rows, keys)


def maps_of(mixers: Sequence[nn.Module], run: Callable[[], object]) -> list[Request | None]:
    """The attention of every mixer while `run` calls it: its one request whose map is (T, T), or None.

    None where there is no such request or more than one (a sum over pieces, two hops), or where extra terms
    or a gate take part in the weights.
    """
    seen: list[list[tuple[int, Request]]] = [[] for _ in mixers]
    inside: list[tuple[int, int]] = []

    def enter(number: int, module: nn.Module, given: tuple[Any, ...]) -> None:
        inside.append((number, given[0].shape[1]))

    def leave(module: nn.Module, given: tuple[Any, ...], out: object) -> None:
        inside.pop()

    def see(request: Request) -> None:
        if inside:
            number, tokens = inside[-1]
            seen[number].append((tokens, request))

    hooks = [mixer.register_forward_pre_hook(partial(enter, at)) for at, mixer in enumerate(mixers)]
    hooks += [mixer.register_forward_hook(leave) for mixer in mixers]
    try:
        with observing(see):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return [_only(some) for some in seen]


def _only(some: Sequence[tuple[int, Request]]) -> Request | None:
    if len(some) != 1:
        return None
    tokens, request = some[0]
    whole = request.key is not None and request.queries == request.keys == tokens
    plain = request.gate is None and not request.extra and isinstance(request.aggregate, Sum)
    return request if whole and plain and request.normaliser.axis == "receivers" else None


def _shares(normaliser: Normaliser) -> Normaliser:
    return normaliser >> _Shares()


@dataclass(frozen=True)
class _Shares(Normaliser):
    """|w_ij| / (sum_j |w_ij| + 1e-8)."""

    mergeable = False

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        size = logits.masked_fill(~mask, 0.0).abs()
        return size / (size.sum(-1, keepdim=True) + EPS)
