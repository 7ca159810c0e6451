"""PNA attention: sum, mean, maximum and variance over the neighbours that a softmax map names.

Source: Buehler 2025, arXiv 2501.02393; lamm-mit/Graph-Aware-Transformers.
Legend: B batch, H heads, N queries, M keys, D key width, V value width, C width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attlas.attend import Identity, Max, NeighbourMax, Normaliser, Softmax, attend
from attlas.layers.gin_attention import HeadMLP, check_ratio, learned_threshold, with_threshold
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.past import PastMixer, Sides
from attlas.layers.rotary import rotary
from attlas.pattern import Pattern, Tokens, causal
from attlas.scan.state import wide
from attlas.score import Given

__all__ = ["PNAAttention", "pna_aggregates"]

FOUR = 4  # sum, mean, max, var


def pna_aggregates(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pattern: Pattern | None = None,
    normaliser: Normaliser | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """[sum, mean, max, var] of the values under the map A = normaliser(q k^T / sqrt(D)): (B, H, N, 4 V).

        sum_i = Σ_j A_ij x_j, deg_i = Σ_j A_ij (0 counts as 1), mean = sum / deg,
        max_i = max over {x_j : A_ij > 0}, var = max(0, Σ_j A_ij x_j² / deg - mean²)

    query (B, H, N, D), key (B, H, M, D), value (B, H, M, V); normaliser: softmax unless given, or a chain
    such as `Softmax() >> SoftThreshold()`. A token without neighbours gets zeros. own (B, H, N, V): what the
    released code computes instead of the maximum, the receiver's own x_i where it has a neighbour and -inf
    where it has none. Softmax weights are positive on every edge, so that its maximum is that over the
    pattern, in O(M) where the pattern is causal; other maps take row blocks. Variances are computed in
    float32 or better. Cost: one `attend` of width 2 V + 1, and one more for the maximum. ValueError: no key.
    """
    if not key.shape[2]:
        raise ValueError(f"pna_aggregates: key must hold at least one token, got shape {tuple(key.shape)}")
    chain = Softmax() if normaliser is None else normaliser
    kind = wide(value.dtype)
    q, k, x = (part.to(kind) for part in (query, key, value))
    options: dict[str, Any] = {"pattern": pattern, "q_at": q_at, "k_at": k_at}
    moments = torch.cat([x, x.square(), torch.ones_like(x[..., :1])], -1)
    gathered = attend(q, k, moments, normaliser=chain, **options)
    width = x.shape[-1]
    total, square, degree = gathered.split([width, width, 1], -1)
    degree = torch.where(degree == 0, 1.0, degree)
    mean = total / degree
    variance = (square / degree - mean.square()).clamp_min(0.0)
    if own is None:
        largest = _largest(q, k, x, chain, options)
    else:
        # The neighbours of a token, counted: how many have A_ij > 0 does not matter, whether any has does.
        near = attend(
            q, k, torch.ones_like(x[..., :1]), normaliser=chain, aggregate=NeighbourMax(), **options
        )
        largest = torch.where(near > 0, own.to(kind), -float("inf"))
    return torch.cat([total, mean, largest, variance], -1).to(value.dtype)


def _largest(
    query: Tensor, key: Tensor, value: Tensor, chain: Normaliser, options: Mapping[str, Any]
) -> Tensor:
    """max over {x_j : A_ij > 0}, 0 where there is none."""
    if type(chain) is not Softmax:
        found: Tensor = attend(query, key, value, normaliser=chain, aggregate=NeighbourMax(), **options)
        return found
    q_at, k_at = options["q_at"] or Tokens(query.shape[2]), options["k_at"] or Tokens(key.shape[2])
    contiguous = q_at.valid is None and q_at.index is None and k_at.index is None and k_at.start == 0
    if not contiguous or options["pattern"] not in (None, causal()):
        one = Given(value.new_ones(1, 1))
        found = attend(query, key, value, score=one, normaliser=Identity(), aggregate=Max(), **options)
        return found
    if k_at.valid is not None:
        valid = k_at.valid.view(-1, 1, k_at.length, 1)
        value = value.masked_fill(~valid, -float("inf"))
    if options["pattern"] is None:
        largest = value.amax(2, keepdim=True).expand(-1, -1, query.shape[2], -1)
    else:
        # Queries behind the last key see all of them.
        last = q_at.positions(value.device).clamp(max=key.shape[2] - 1)
        largest = value.cummax(2).values[:, :, last]
    return torch.where(largest == -float("inf"), 0.0, largest)


class PNAAttention(PastMixer):
    """x -> W_O of the heads' MLP([sum, mean, max, var]) over the neighbours that a softmax map names.

    Args:
        width, heads: of the input; pattern: who sees whom; base: of rotary positions on q and k, None: none.
        ratio: c, the MLPs' inner width over D: 4 D -> c D -> D with SiLU, one for every head.
        normaliser: the map: softmax, `SoftThreshold(0.0)` for the relu of the scores, or a chain.
            A stage with `at=nn.Parameter(...)` at the end of it learns its threshold here.
        bias: of q, k, v and W_O; the MLPs have biases, which the released code makes an option.
        official: the released code's "maximum", see `pna_aggregates`: -inf for tokens without neighbours.

    Shapes: (B, N, C) -> (B, N, C). With softmax deg = 1, so that sum and mean are equal. Cost: see
    `pna_aggregates`; never n × n × D, and without n × n in memory. Departures: weights are not dropped.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: Pattern | None = None,
        base: float | None = None,
        ratio: float = 0.5,
        normaliser: Normaliser | None = None,
        bias: bool = False,
        official: bool = False,
    ) -> None:
        super().__init__(width, heads, pattern)
        check_ratio("PNAAttention", ratio)
        head = width // heads
        self.base, self.official = base, official
        self.normaliser = Softmax() if normaliser is None else normaliser
        self.theta = learned_threshold(self.normaliser)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.mlp = HeadMLP(heads, FOUR * head, max(1, int(ratio * head)), head)

    def _sides(self, x: Tensor, at: Tokens) -> Sides:
        query, key, value = (self._by_head(make(x)) for make in (self.query, self.key, self.value))
        if self.base is not None:
            query, key = (rotary(part, at.positions(x.device), base=self.base) for part in (query, key))
        return {"query": query, "own": value}, {"key": key, "value": value}

    def _mixed(
        self, asks: Mapping[str, Tensor], tells: Mapping[str, Tensor], q_at: Tokens, k_at: Tokens
    ) -> Tensor:
        chain = self.normaliser if self.theta is None else with_threshold(self.normaliser, self.theta)
        found = pna_aggregates(
            asks["query"], tells["key"], tells["value"], pattern=self.pattern, normaliser=chain,
            q_at=q_at, k_at=k_at, own=asks["own"] if self.official else None,
        )  # fmt: skip
        out: Tensor = self.out(self.mlp(found).transpose(1, 2).flatten(2))
        return out


def _make(setting: Setting) -> nn.Module:
    pattern = causal() if setting.causal else None
    return PNAAttention(
        setting.width, setting.heads, pattern=pattern, base=10000.0 if setting.causal else None
    )


register_mixer(
    MixerEntry(
        "pna",
        _make,
        frozenset({"NS", "CS"}),
        stateful=True,
        padding=True,
        differentiable="almost",
        permutes=True,
        why_not="its sheet has one set of nodes, tokens and their neighbours among themselves",
    )
)
