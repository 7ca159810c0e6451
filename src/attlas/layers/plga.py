"""Power law graph attention: a bilinear score whose matrix G a deep net learns from q^T q of the sequence.

Source: Gokden 2025, arXiv 2502.13502 (base model 2410.16703); burcgokden/PLDR-LLM-with-KVG-cache,
power_law_attention_layer_v510.py, pldr_model_v510.py. Legend: B batch, H heads, N tokens, h head width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.attend import attend
from attlas.layers.inputs import check_tokens
from attlas.layers.plga_metric import MetricLearner, density
from attlas.layers.rotary import rotary_pairs
from attlas.pattern import Pattern, Tokens, causal
from attlas.scan import State
from attlas.score import Bilinear, Dot

__all__ = ["PLGA", "kv_cache_only", "place_of"]

G_CACHE = ("metric", "curvature")


class PLGA(nn.Module):
    """x -> W_o softmax(q G k^T / sqrt h) v, with G = G_LM of q^T q over all tokens; linears with bias.

    Args:
        width, heads; kv_heads: fewer key-value heads (grouped queries): G belongs to the query head.
        metric: `MetricLearner` (8 units, depth 2) unless given; `FixedCurvature` is the ablation.
        pattern: causal unless given. base: of the rotary positions of queries and keys, pairs of neighbours.
        official: the released code starts the keys' projection twice and leaves the values' at torch's
            default, with narrower weights (by sqrt 3) and a bias that is not zero. It is the start alone:
            padding, which the release lets into q^T q, is left out here too.

    Shapes: (B, N, width) -> (B, N, width). **Without a given curvature no output is causal, whatever the
    pattern: G is made of all queries.** With it, it is as causal as the pattern: `begin` on a prompt and
    `advance`, or `PrefixPLGA`. Padding is left out of q^T q, and positions count real tokens. G reaches the
    score by folding into q: 2 N h^2 FLOPs a head more than dot products, and q^T q as many; the learner's
    cost does not depend on N.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        metric: nn.Module | None = None,
        pattern: Pattern | None = None,
        base: float = 10000.0,
        official: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(width, heads, kv_heads) < 1:
            raise ValueError(
                f"PLGA: width, heads and kv_heads must be at least 1, got {width}, {heads}, {kv_heads}"
            )
        if width % heads or heads % kv_heads or (width // heads) % 2:
            raise ValueError(
                "PLGA: width must be an even multiple of heads (rotary positions turn pairs of columns) and "
                f"heads a multiple of kv_heads, got {width}, {heads}, {kv_heads}"
            )
        self.heads, self.kv_heads, self.head, self.base = heads, kv_heads, width // heads, base
        self.pattern = causal() if pattern is None else pattern
        self.metric: Any = MetricLearner(self.head, heads) if metric is None else metric
        made = getattr(self.metric, "sizes", (heads, self.head))
        if made != (heads, self.head):
            raise ValueError(
                f"PLGA: metric must be made for {heads} heads of width {self.head}, got one for {made[0]} "
                f"heads of width {made[1]}"
            )
        self.query = nn.Linear(width, width)
        self.key, self.value = (nn.Linear(width, kv_heads * self.head) for _ in range(2))
        self.out = nn.Linear(width, width)
        for layer in (self.query, self.key, self.out) + (() if official else (self.value,)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        *,
        curvature: Float[Tensor, "*B h h"] | None = None,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """All tokens; `curvature`: G, cached or of another text, instead of that of these tokens.

        `valid` False marks padding, anywhere.
        """
        return self._run(x, curvature, valid)[0]

    def traced(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B H h h"]]:
        """`forward`, and A of these tokens, of which `metric.deduce` makes A_LM, A_P and G."""
        return self._run(x, None, valid)

    def _run(self, x: Tensor, curvature: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        self._check(x)
        if valid is None:
            return self._whole(x, curvature, None)
        if valid.shape != x.shape[:2]:
            raise ValueError(
                f"PLGA: valid must be of shape {tuple(x.shape[:2])}, (B, N) of x, got {tuple(valid.shape)}"
            )
        # Real tokens first: then their places are 0, 1, ... in every row, and the pattern is that of places.
        order = valid.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        x = _rows(x.masked_fill(~valid[..., None], 0.0), order)
        out, learnt = self._whole(x, curvature, valid.gather(1, order))
        return _rows(out, order.argsort(1)), learnt

    def _check(self, x: Tensor, state: State | None = None) -> None:
        """No token only where a state goes on; the width; and the rows of the state."""
        if state is None:
            check_tokens("PLGA", x=x)
        width = self.query.in_features
        if x.shape[-1] != width:
            raise ValueError(f"PLGA: x must be (B, N, {width}), got shape {tuple(x.shape)}")
        if state is not None and len(x) != len(state.position):
            raise ValueError(
                f"PLGA: x must have the {len(state.position)} rows of the state, got {len(x)}: every row "
                "goes on from its own keys"
            )

    def begin(self, x: Float[Tensor, "B N C"]) -> tuple[Float[Tensor, "B N C"], State]:
        """The prompt, and what decoding needs: keys, values and A ("learnt"), and the G-cache A_LM, G_LM.

        A stays that of the prompt. `kv_cache_only(state)` drops the G-cache, and `advance` computes G again.
        """
        self._check(x)
        query, key, value = self._projected(x, 0)
        learnt = self.metric.learn(density(query))
        found = self.metric.deduce(learnt)
        parts = {"key": key, "value": value, "learnt": learnt}
        parts |= {"metric": found.metric, "curvature": found.curvature}
        at = Tokens(x.shape[1], total=x.shape[1])
        out = self._attended(query, key, value, found.curvature, at, at)
        position = torch.full((x.shape[0],), x.shape[1], device=x.device)
        return out, State(parts, position)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row: G from the G-cache, or else from A, which is the same number."""
        self._check(x, state)
        before = place_of(state)
        if "curvature" in state.parts:
            curvature = state["curvature"]
        else:
            curvature = self.metric.deduce(state["learnt"]).curvature
        query, key, value, own, there = self._behind(x, state, before)
        out = self._attended(query, key, value, curvature, own, there)
        parts = {**state.parts, "key": key, "value": value}
        return out, State(parts, state.position + x.shape[1])

    def _whole(self, x: Tensor, curvature: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        """The output, and A where no G is given."""
        query, key, value = self._projected(x, 0)
        learnt = None
        if curvature is None:
            learnt = self.metric.learn(density(query, valid))
            curvature = self.metric.deduce(learnt).curvature
        at = Tokens(x.shape[1], valid=valid, total=x.shape[1])
        return self._attended(query, key, value, curvature, at, at), learnt

    def _projected(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.arange(start, start + x.shape[1], device=x.device)
        query, key, value = (
            make(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for make in (self.query, self.key, self.value)
        )
        return rotary_pairs(query, places, base=self.base), rotary_pairs(key, places, base=self.base), value

    def _behind(self, x: Tensor, state: State, before: int) -> tuple[Tensor, Tensor, Tensor, Tokens, Tokens]:
        """Queries of the new tokens, keys and values of all, and where both are."""
        query, *new = self._projected(x, before)
        key, value = (
            torch.cat([state[name].to(part.dtype), part], 2)
            for name, part in zip(("key", "value"), new, strict=True)
        )
        total = before + x.shape[1]
        return query, key, value, Tokens(x.shape[1], start=before, total=total), Tokens(total, total=total)

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, curvature: Tensor | None, q_at: Tokens, k_at: Tokens
    ) -> Tensor:
        score = Dot() if curvature is None else Bilinear(curvature)
        found = attend(query, key, value, pattern=self.pattern, score=score, q_at=q_at, k_at=k_at)
        out: Tensor = self.out(torch.as_tensor(found).transpose(1, 2).flatten(2))
        return out


def kv_cache_only(state: State) -> State:
    """The state of `PLGA` or `PrefixPLGA`, of a layer or of a whole model, without the G-cache."""
    parts = {
        name: kv_cache_only(part) if isinstance(part, State) else part
        for name, part in state.parts.items()
        if name not in G_CACHE
    }
    return State(parts, state.position)


def _rows(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


def place_of(state: State) -> int:
    """The one position of all rows; ValueError where they stand at several."""
    place = int(state.position[0])
    if bool((state.position != place).any()):
        raise ValueError("all rows of a state must stand at one position to go on together")
    return place
