"""The minimal transformer's attention: one matrix for the similarity, none for the values, symmetric logits.

Source: Bermeitinger et al. 2024, arXiv 2410.13732. Legend: B batch, N tokens, C width, D head width.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.attend import attend
from attlas.layers.minimal_maps import (
    Carried,
    OneMap,
    SharedMap,
    Similarity,
    TriangularMap,
    Untouched,
    ValueAndOut,
    ValueMap,
)
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.one_triangle import one_triangle
from attlas.layers.rotary import rotary
from attlas.pattern import Pattern, Tokens, causal
from attlas.scan import State

__all__ = ["MinimalAttention", "collapsed", "collapsed_stack", "triangular"]

# Head width from which one triangle of the logits was faster on a CPU than kernels for any queries and keys.
WIDE = 256
_EXACT = (torch.float32, torch.float64)


class MinimalAttention(nn.Module):
    """out = carried.out( softmax(Q K^T / sqrt(D)) V ), of a similarity's Q and K and a carried's V.

    Args:
        similarity: `TwoMaps`, `OneMap`, `SharedMap` or `TriangularMap`; D is the width of its queries, C
            where W_K = I.
        carried: `ValueAndOut`, `ValueMap` or `Untouched`, with as many heads.
        pattern: who attends to whom; None: all see all.
        base: of rotary positions; None: none, as in the source. Symmetric logits stay symmetric.

    Shapes: (B, N, C) -> (B, N, C). Cost: N C^2 per square matrix and the pattern's; `OneMap` needs no keys
    and `Untouched` no values beside x, and a state of both holds each token once. Symmetric logits of wide
    heads are computed once per pair where all see all (`one_triangle`). Raises ValueError where the two parts
    differ in heads or width.
    """

    def __init__(
        self,
        similarity: Similarity,
        carried: Carried,
        *,
        pattern: Pattern | None = None,
        base: float | None = None,
    ) -> None:
        super().__init__()
        for name, one, other in (
            ("heads", similarity.heads, carried.heads),
            ("width", similarity.width, carried.width),
        ):
            if one != other:
                raise ValueError(
                    f"MinimalAttention: {name} must be the same in both, got {one} in "
                    f"{type(similarity).__name__} and {other} in {type(carried).__name__}"
                )
        self.similarity, self.carried = similarity, carried
        self.pattern, self.base = pattern, base

    @property
    def keeps_once(self) -> bool:
        """Whether keys and values are both the tokens themselves."""
        return self.base is None and self.similarity.keeps_input and self.carried.keeps_input

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """`valid`: the real tokens."""
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        at = Tokens(x.shape[1], total=x.shape[1], valid=valid)
        query, value = self._placed(self.similarity.query(x), at), self.carried.value(x)
        if not self.similarity.symmetric:
            return self._gathered(query, self._placed(self.similarity.key(x), at), value, at, at)
        unmasked = self.pattern is None and valid is None and x.shape[1] > 0
        if unmasked and query.shape[-1] >= WIDE and query.dtype in _EXACT:
            return self.carried.out(one_triangle(query, value))
        return self._gathered(query, query, value, at, at)

    def start(self, batch: int) -> State:
        """Before the first token."""
        x = next(self.similarity.parameters()).new_zeros(batch, 0, self.similarity.width)
        position = torch.zeros(batch, dtype=torch.int64, device=x.device)
        return State(self._kept(self.similarity.key(x), self.carried.value(x)), position)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state: keys and values, or the tokens that are both."""
        if self.pattern is None or not self.pattern.is_causal:
            raise ValueError(
                "MinimalAttention goes on piece by piece with a causal pattern only: earlier outputs would "
                f"need later tokens under {self.pattern}"
            )
        before, count = int(state.position[0]), x.shape[1]
        if bool((state.position != before).any()):
            raise ValueError("all rows of a state must stand at one position to go on together")
        own = Tokens(count, start=before)
        new = self._kept(self._placed(self.similarity.key(x), own), self.carried.value(x))
        parts = {name: torch.cat([state[name].to(part.dtype), part], 2) for name, part in new.items()}
        key, value = parts["key"], parts.get("value", parts["key"])
        query = self._placed(self.similarity.query(x), own)
        out = self._gathered(query, key, value, own, Tokens(before + count))
        return out, State(parts, state.position + count)

    def _kept(self, key: Tensor, value: Tensor) -> dict[str, Tensor]:
        return {"key": key} if self.keeps_once else {"key": key, "value": value}

    def _placed(self, part: Tensor, at: Tokens) -> Tensor:
        return part if self.base is None else rotary(part, at.positions(part.device), base=self.base)

    def _gathered(self, query: Tensor, key: Tensor, value: Tensor, q_at: Tokens, k_at: Tokens) -> Tensor:
        # Under autocast what is mapped is narrower than tokens that are not.
        key, value = key.to(query.dtype), value.to(query.dtype)
        found = attend(query, key, value, pattern=self.pattern, q_at=q_at, k_at=k_at)
        return self.carried.out(torch.as_tensor(found))


def _check_collapsible(owner: str, attention: MinimalAttention) -> None:
    heads, width = attention.similarity.heads, attention.similarity.width
    if heads > 1:
        raise ValueError(
            f"{owner}: one head can be collapsed, got {heads}; head by head, {heads} matrices of {width}^2 "
            f"would take the place of 2 x {width}^2 numbers"
        )
    if attention.base is not None:
        raise ValueError(
            f"{owner}: rotary positions stand between W_Q and W_K; make the attention with base=None"
        )


def _set(map_: nn.Linear, product: Tensor) -> None:
    map_.weight = nn.Parameter(product.detach().mT.contiguous())


def collapsed(attention: MinimalAttention) -> MinimalAttention:
    """The same function of one head with W_QK = W_Q W_K^T and W_VO = W_V W_O: 2 C^2 parameters.

    Exact but for rounding; `Untouched` stays. ValueError: more than one head, or rotary positions.
    """
    _check_collapsible("collapsed", attention)
    width, carried = attention.similarity.width, attention.carried
    similarity = OneMap(width)
    _set(similarity.map, attention.similarity.product)
    if isinstance(carried, (ValueAndOut, ValueMap)):
        after = ValueMap(width)
        _set(after.map, carried.product)
        return MinimalAttention(similarity, after, pattern=attention.pattern)
    return MinimalAttention(similarity, Untouched(width), pattern=attention.pattern)


def collapsed_stack(attentions: Sequence[MinimalAttention]) -> nn.Sequential:
    """The same function of S attentions, one straight after another, in (S + 1) C^2 parameters.

        Z_s = A_s Z_{s-1},  A_s of the logits Z_{s-1} (P_{s-1} W_QK,s P_{s-1}^T) Z_{s-1}^T,
        P_s = P_{s-1} W_VO,s,  output Z_S P_S

    What is carried is kept once, at the end. It holds only without residuals and norms in between. Exact but
    for rounding. ValueError as `collapsed`, and for no attention at all.
    """
    if not attentions:
        raise ValueError("collapsed_stack: give at least one attention")
    width = attentions[0].similarity.width
    like = next(attentions[0].similarity.parameters())
    product = torch.eye(width, dtype=like.dtype, device=like.device)
    layers: list[nn.Module] = []
    for attention in attentions:
        _check_collapsible("collapsed_stack", attention)
        similarity = OneMap(width)
        _set(similarity.map, product @ attention.similarity.product @ product.mT)
        layers.append(MinimalAttention(similarity, Untouched(width), pattern=attention.pattern))
        product = product @ attention.carried.product.to(product)
    end = nn.Linear(width, width, bias=False)
    _set(end, product)
    return nn.Sequential(*layers, end)


def triangular(attention: MinimalAttention) -> MinimalAttention:
    """The same function of one head with W W^T = T T^T, T lower triangular: C (C + 1) / 2 for C^2 parameters.

    T^T is the R of W^T = Q R, which is there also where W W^T has no Cholesky factor. The carried part is
    shared with `attention`. ValueError: more than one head, rotary positions, or a similarity that is not
    symmetric.
    """
    _check_collapsible("triangular", attention)
    if not isinstance(attention.similarity, SharedMap):
        kind = type(attention.similarity).__name__
        raise ValueError(f"triangular: the similarity must be a SharedMap, W W^T; got {kind}")
    similarity = TriangularMap(attention.similarity.width)
    lower = torch.linalg.qr(attention.similarity.map.weight.detach()).R.mT
    similarity.entries = nn.Parameter(lower[similarity.rows, similarity.columns].clone())
    return MinimalAttention(similarity, attention.carried, pattern=attention.pattern)


BASE = 10000.0


def _register(name: str, parts: Callable[[int, int], tuple[Similarity, Carried]]) -> None:
    def make(setting: Setting) -> nn.Module:
        pattern, base = (causal(), BASE) if setting.causal else (None, None)
        return MinimalAttention(*parts(setting.width, setting.heads), pattern=pattern, base=base)

    forms = frozenset({"NS", "CS"})
    why = "the source treats the attention of a sequence to itself"
    register_mixer(MixerEntry(name, make, forms, stateful=True, padding=True, permutes=True, why_not=why))


# The first two have one head, whatever is asked for: their matrices have no parts for more.
_register("minimal_wqk", lambda width, heads: (OneMap(width), ValueAndOut(width)))
_register("minimal_novo", lambda width, heads: (OneMap(width), Untouched(width)))
_register("minimal_symmetric", lambda width, heads: (SharedMap(width, heads), ValueAndOut(width, heads)))
