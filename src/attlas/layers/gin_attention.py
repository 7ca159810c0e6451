"""GIN attention: a softmax map as the weighted adjacency of a graph isomorphism network.

Source: Buehler 2025, arXiv 2501.02393; lamm-mit/Graph-Aware-Transformers.
Legend: B batch, H heads, N queries, M keys, D head width, C width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import Identity, Normaliser, Softmax, attend
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.past import PastMixer, Sides
from attlas.layers.rotary import rotary
from attlas.pattern import Pattern, Tokens, causal
from attlas.score import Dot, Edge, PairResult, Score

__all__ = [
    "DifferentialWeights",
    "GINAttention",
    "HeadMLP",
    "check_dropout",
    "check_ratio",
    "lambda_init",
    "learned_threshold",
    "with_threshold",
]


def learned_threshold(chain: Normaliser | None) -> nn.Parameter | None:
    """The threshold of the last stage, where it is a parameter."""
    at = None if chain is None else getattr(chain.stages()[-1], "at", None)
    return at if isinstance(at, nn.Parameter) else None


def with_threshold(chain: Normaliser, at: Tensor) -> Normaliser:
    """The same chain with another threshold in its last stage."""
    *before, last = chain.stages()
    found: Normaliser = replace(last, at=at)  # type: ignore[type-var]
    for stage in reversed(before):
        found = stage >> found
    return found


def lambda_init(layer: int) -> float:
    """λ of the second map at the start: 0.8 - 0.6 exp(-0.3 (l - 1)), l = 1 for the first layer."""
    if layer < 1:
        raise ValueError(f"lambda_init: layer counts from 1, got {layer}")
    return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))


def check_ratio(owner: str, ratio: float) -> None:
    """ValueError if a width would be a negative share of another, or none of it."""
    if not ratio > 0:
        raise ValueError(f"{owner}: ratio must be above 0, got {ratio}: it is a share of a width")


def check_dropout(owner: str, dropout: float) -> None:
    """ValueError if a share is none."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"{owner}: dropout must be a share from 0 to 1, got {dropout}")


class HeadMLP(nn.Module):
    """Every head its own Linear -> [dropout, RMSNorm] -> SiLU -> Linear, with biases; as one batched product.

    dropout: None leaves out dropout and norm. Shapes: (B, H, N, given) -> (B, H, N, width).
    """

    def __init__(
        self, heads: int, given: int, inner: int, width: int, *, dropout: float | None = None
    ) -> None:
        super().__init__()
        if inner < 1:
            raise ValueError(f"HeadMLP: inner must be at least 1, got {inner}")
        if dropout is not None:
            check_dropout("HeadMLP", dropout)
        self.dropout = dropout
        # Each head starts as its own nn.Linear would.
        first, second = given**-0.5, inner**-0.5
        self.enter = nn.Parameter(torch.empty(heads, given, inner).uniform_(-first, first))
        self.enter_bias = nn.Parameter(torch.empty(heads, 1, inner).uniform_(-first, first))
        self.leave = nn.Parameter(torch.empty(heads, inner, width).uniform_(-second, second))
        self.leave_bias = nn.Parameter(torch.empty(heads, 1, width).uniform_(-second, second))
        self.scale = None if dropout is None else nn.Parameter(torch.ones(heads, 1, inner))

    def forward(self, x: Tensor) -> Tensor:
        """Head by head."""
        x = x @ self.enter + self.enter_bias
        if self.dropout is not None and self.scale is not None:
            x = functional.dropout(x, self.dropout, self.training)
            x = functional.rms_norm(x, x.shape[-1:], eps=1e-6) * self.scale
        return functional.silu(x) @ self.leave + self.leave_bias


@dataclass(frozen=True, eq=False)
class DifferentialWeights(Score):
    """logit_ij = exp(q1_i·k1_j - lse1_i) - λ exp(q2_i·k2_j - lse2_i): the difference of two softmax maps.

    Queries and keys carry both maps side by side, each as wide as the other and scaled already; lse (B, H, N,
    1) are the row statistics of each map, from a pass of its own. It makes the difference known pair by pair,
    so that a threshold can follow it: `normaliser=Identity() >> SoftThreshold()`.
    """

    first: Tensor
    second: Tensor
    amount: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.first, self.second, self.amount.view(1, 1, 1, 1)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        half = query.shape[-1] // 2
        maps = [
            (torch.einsum("...d,...d->...", query[..., part], key[..., part]) - _finite(lse)).exp()
            for part, lse in zip((slice(half), slice(half, None)), tensors[:2], strict=True)
        ]
        return PairResult(maps[0] - tensors[2] * maps[1], value)


def _finite(lse: Tensor) -> Tensor:
    return torch.where(torch.isfinite(lse), lse, 0.0)


class GINAttention(PastMixer):
    """x -> heads side by side of MLP_r(ε_r X_r + A_r X_r), X_r the r-th slice of x: no value projection.

        A_r = T(softmax(α q k^T / (τ sqrt(D))) [- λ softmax of a second q, k])

    Args:
        width, heads: of the input; pattern: who sees whom; base: of rotary positions on q and k, None: none.
        ratio: c, the MLPs' inner width over D (0.5 in the paper's protein run).
        own: "eps" (paper and released code) or "1 + eps", the classic GIN; ε_r starts at 0.
        sharpen: α is learned, from 1, or is 1. temperature: τ.
        threshold: T, a stage such as `SoftThreshold()`; `at=nn.Parameter(...)` is learned here.
        layer: l = 1, 2, ... adds the second map, λ learned from `lambda_init(l)`; None: one map.
        out: W_O behind the heads. dropout: in the MLPs. bias: of q, k and W_O.

    Shapes: (B, N, C) -> (B, N, C). Cost: that of `attend` (with a threshold its generic backend), twice for
    two maps and thrice with a threshold on them; never n × n in memory. Departures: weights are not dropped.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: Pattern | None = None,
        base: float | None = None,
        ratio: float = 0.5,
        own: str = "eps",
        sharpen: bool = True,
        temperature: float = 1.0,
        threshold: Normaliser | None = None,
        layer: int | None = None,
        out: bool = False,
        dropout: float = 0.1,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, pattern)
        if own not in ("eps", "1 + eps"):
            raise ValueError(f"GINAttention: own must be 'eps' or '1 + eps', got {own!r}")
        if not temperature > 0:
            raise ValueError(f"GINAttention: temperature must be above 0, got {temperature}")
        check_ratio("GINAttention", ratio)
        check_dropout("GINAttention", dropout)
        head = width // heads
        self.base, self.temperature = base, temperature
        self.constant = 1.0 if own == "1 + eps" else 0.0
        self.threshold = threshold
        self.theta = learned_threshold(threshold)
        maps = 1 if layer is None else 2
        self.query, self.key = (nn.Linear(width, maps * width, bias=bias) for _ in range(2))
        self.sharpness = nn.Parameter(torch.ones(())) if sharpen else None
        self.amount = None if layer is None else nn.Parameter(torch.tensor(lambda_init(layer)))
        self.eps = nn.Parameter(torch.zeros(heads, 1, 1))
        self.mlp = HeadMLP(heads, head, max(1, int(ratio * head)), head, dropout=dropout)
        self.out = nn.Linear(width, width, bias=bias) if out else nn.Identity()

    def _sides(self, x: Tensor, at: Tokens) -> Sides:
        scale = (self.width // self.heads) ** -0.5 / self.temperature
        alpha = scale if self.sharpness is None else scale * self.sharpness
        query = self._placed(self.query(x), at)
        query = query * torch.as_tensor(alpha, dtype=query.dtype, device=query.device)
        return (
            {"query": query, "own": self._by_head(x)},
            {"key": self._placed(self.key(x), at), "value": self._by_head(x).to(query.dtype)},
        )

    def _placed(self, part: Tensor, at: Tokens) -> Tensor:
        """(B, H, N, maps · D); each map's columns rotated by themselves."""
        maps = [self._by_head(one) for one in part.split(self.width, -1)]
        if self.base is not None:
            maps = [rotary(one, at.positions(part.device), base=self.base) for one in maps]
        return torch.cat(maps, -1)

    def _mixed(
        self, asks: Mapping[str, Tensor], tells: Mapping[str, Tensor], q_at: Tokens, k_at: Tokens
    ) -> Tensor:
        options: dict[str, Any] = {"pattern": self.pattern, "q_at": q_at, "k_at": k_at}
        near = self._gathered(asks["query"], tells["key"], tells["value"], options)
        mixed = self.mlp((self.constant + self.eps) * asks["own"] + near)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _gathered(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """A X, by as many passes as the map needs."""
        stage = self.threshold
        if stage is not None and self.theta is not None:
            stage = with_threshold(stage, self.theta)
        if self.amount is None:
            chain = Softmax() if stage is None else Softmax() >> stage
            found: Tensor = attend(query, key, value, score=Dot(1.0), normaliser=chain, **options)
            return found
        halves = list(zip(query.chunk(2, -1), key.chunk(2, -1), strict=True))
        if stage is None:
            first, second = (attend(q, k, value, score=Dot(1.0), **options) for q, k in halves)
            return first - self.amount * second
        lse = [
            attend(q, k, value[..., :1], score=Dot(1.0), return_state=True, **options)[1].lse[..., None]
            for q, k in halves
        ]
        score = DifferentialWeights(lse[0], lse[1], self.amount)
        found = attend(query, key, value, score=score, normaliser=Identity() >> stage, **options)
        return found


def _make(setting: Setting) -> nn.Module:
    pattern = causal() if setting.causal else None
    return GINAttention(
        setting.width, setting.heads, pattern=pattern, base=10000.0 if setting.causal else None
    )


register_mixer(
    MixerEntry(
        "gin",
        _make,
        frozenset({"NS", "CS"}),
        stateful=True,
        padding=True,
        permutes=True,
        why_not="a token adds its own features to those of its neighbours: there is one set of nodes",
    )
)
