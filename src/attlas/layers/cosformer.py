"""cosFormer: linear attention with relu features, reweighted by the cosine of the distance.

Source: Qin et al. 2022, arXiv 2202.08791, with the constants of CAB (arXiv 2210.07661). Legend: B batch,
H heads, N queries, M keys, D head width.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.layers.inputs import check_tokens, state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan import scan
from attlas.scan.state import State, wide

__all__ = ["CosformerAttention", "cosine_features"]

LEAST = 1e-6  # denominators are at least this


def cosine_features(
    x: Float[Tensor, "B H N D"], place: Int[Tensor, "_ N"], longest: Int[Tensor, "_ 1"] | int
) -> Float[Tensor, "B H N two_D"]:
    """[relu(x) sin a, relu(x) cos a], a = pi/2 place / longest, places counted from 1.

    The product of two is relu(q).relu(k) cos(pi/2 (i - j) / longest) >= 0 while places are at most `longest`.
    """
    kept = x.to(wide(x.dtype)).relu()
    angle = (place.to(kept.dtype) / longest)[:, None, :, None] * (math.pi / 2)
    return torch.cat([kept * angle.sin(), kept * angle.cos()], -1)


class CosformerAttention(nn.Module):
    """x -> W_o of w_ij = relu(q_i).relu(k_j) cos(pi/2 (i - j) / longest), divided by max(their sum, 1e-6).

    Args:
        width, heads; bias: of the four projections.
        causal: each token sees those up to itself.
        longest: the length that the angle is a share of. None takes the larger number of queries and keys, as
            the source does: outputs then change with every token that is added, so that a causal form, within
            or across sequences, needs a fixed one.

    Shapes: (B, N, width) [, (B, M, width)] -> (B, N, width). Padding is as if cut off: places count valid
    tokens. Raises ValueError beyond `longest`, where cosines would turn negative. Cost: 4 (N + M) D^2 a head;
    state: 2 D (D + 1) numbers a head.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, longest: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if causal and longest is None:
            raise ValueError(
                "a causal cosFormer needs longest: with the current length in its angles a token's output "
                "would change when tokens follow"
            )
        if longest is not None and longest < 1:
            raise ValueError(f"longest must be at least 1 token, got {longest}")
        self.heads, self.causal, self.longest = heads, causal, longest
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        valid: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """`valid` False marks padding, of the context where there is one."""
        check_tokens("cosformer", rows=False, x=x, context=context)
        if self.causal and context is not None:
            raise ValueError(
                "a causal CosformerAttention reads one sequence; for queries to another one make it with "
                "causal=False and a fixed longest"
            )
        if self.causal:
            return self._advanced(x, None, valid)[0]
        source = x if context is None else context
        query, key, value = self._projected(x, source)
        there = _places(source, valid)
        own = there if context is None else _places(x, None)
        longest = self._longest(own, there)
        asked, given = cosine_features(query, own, longest), cosine_features(key, there, longest)
        if valid is not None:
            given = given.masked_fill(~valid[:, None, :, None], 0)
            value = value.masked_fill(~valid[:, None, :, None], 0)
        summed = asked @ (given.transpose(-1, -2) @ value.to(given.dtype))
        total = asked @ given.sum(2)[..., None]
        return self._joined(summed / total.clamp_min(LEAST), x)

    def start(self, batch: int) -> State:
        """Before the first token."""
        return state_before(self._advanced, batch, self.out.weight, self.out.in_features)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them."""
        check_tokens("cosformer", rows=False, x=x)
        return self._advanced(x, state, valid)

    def _longest(self, own: Tensor, there: Tensor) -> Tensor | int:
        if self.longest is None:
            return torch.maximum(own.amax(1, keepdim=True), there.amax(1, keepdim=True))
        count = max((int(place.max()) for place in (own, there) if place.numel()), default=0)
        if count > self.longest:
            raise ValueError(f"this cosFormer was made for {self.longest} tokens, got {count}: raise longest")
        return self.longest

    def _projected(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = (self.query(x), self.key(source), self.value(source))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        return query, key, value

    def _joined(self, mixed: Tensor, like: Tensor) -> Tensor:
        out: Tensor = self.out(mixed.to(like.dtype).transpose(1, 2).flatten(2))
        return out

    def _advanced(self, x: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        query, key, value = self._projected(x, x)
        place = _places(x, valid)
        if state is not None:
            place = place + state.position[:, None]
        longest = self._longest(place, place)
        asked, given = (cosine_features(part, place, longest) for part in (query, key))
        counted = torch.cat([value.to(given.dtype), torch.ones_like(given[..., :1])], -1)
        found: Any = scan(asked, given, counted, valid=valid, state=state, return_state=True)
        mixed, after = found
        return self._joined(mixed[..., :-1] / mixed[..., -1:].clamp_min(LEAST), x), after


def _places(x: Tensor, valid: Tensor | None) -> Tensor:
    """Places (b, N) of the tokens among the valid ones, from 1; of padding, that of the last valid one."""
    if valid is None:
        return torch.arange(1, x.shape[1] + 1, device=x.device)[None]
    return valid.cumsum(1).clamp_min(1)


def _make(setting: Setting) -> nn.Module:
    if setting.causal and setting.length is None:
        raise ValueError(
            "mixer cosformer needs a length in its causal forms: angles are shares of the longest sequence"
        )
    return CosformerAttention(
        setting.width,
        setting.heads,
        causal=setting.causal and not setting.cross,
        longest=setting.length if setting.causal else None,
    )


register_mixer(
    MixerEntry(
        "cosformer",
        _make,
        frozenset({"NS", "CS", "NC", "CC"}),
        stateful=True,
        padding=True,
        differentiable="almost",
        why_not=(
            "causal forms depart from the source: a fixed longest length in place of the current one, with "
            "which outputs would change as tokens follow"
        ),
    )
)
