"""Power law graph attention: a bilinear score whose matrix G a deep net learns from q^T q of the sequence.

Source: Gokden 2025, arXiv 2502.13502 (base model 2410.16703); burcgokden/PLDR-LLM-with-KVG-cache,
power_law_attention_layer_v510.py, pldr_model_v510.py. Legend: B batch, H heads, N tokens, h head width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.layers.inputs import check_tokens
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.plga_metric import MetricLearner, density
from attlas.layers.rotary import rotary_pairs
from attlas.pattern import Pattern, Tokens, causal, dense
from attlas.scan import State
from attlas.scan.state import wide
from attlas.score import Bilinear, Dot

__all__ = ["PLGA", "PrefixPLGA", "kv_cache_only"]

G_CACHE = ("metric", "curvature")
CHUNK = 16
"""Of the registered causal mixer."""


class PLGA(nn.Module):
    """x -> W_o softmax(q G k^T / sqrt h) v, with G = G_LM of q^T q over all tokens; linears with bias.

    Args:
        width, heads; kv_heads: fewer key-value heads (grouped queries): G belongs to the query head.
        metric: `MetricLearner` (8 units, depth 2) unless given; `FixedCurvature` is the ablation.
        pattern: causal unless given. base: of the rotary positions of queries and keys, pairs of neighbours.
        official: the released code starts the keys' projection twice and leaves the values' at torch's
            default, with narrower weights (by sqrt 3) and a bias that is not zero.

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
        if width % heads or heads % kv_heads or (width // heads) % 2:
            raise ValueError(
                "PLGA: width must be an even multiple of heads (rotary positions turn pairs of columns) and "
                f"heads a multiple of kv_heads, got {width}, {heads}, {kv_heads}"
            )
        self.heads, self.kv_heads, self.head, self.base = heads, kv_heads, width // heads, base
        self.pattern = causal() if pattern is None else pattern
        self.metric: Any = MetricLearner(self.head, heads) if metric is None else metric
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
        check_tokens("PLGA", x=x)
        if valid is None:
            return self._whole(x, curvature, None)
        # Real tokens first: then their places are 0, 1, ... in every row, and the pattern is that of places.
        order = valid.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        x = _rows(x.masked_fill(~valid[..., None], 0.0), order)
        return _rows(self._whole(x, curvature, valid.gather(1, order)), order.argsort(1))

    def begin(self, x: Float[Tensor, "B N C"]) -> tuple[Float[Tensor, "B N C"], State]:
        """The prompt, and what decoding needs: keys, values and A ("learnt"), and the G-cache A_LM, G_LM.

        A stays that of the prompt. `kv_cache_only(state)` drops the G-cache, and `advance` computes G again.
        """
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
        before = _place(state)
        if "curvature" in state.parts:
            curvature = state["curvature"]
        else:
            curvature = self.metric.deduce(state["learnt"]).curvature
        query, key, value, own, there = self._behind(x, state, before)
        out = self._attended(query, key, value, curvature, own, there)
        parts = {**state.parts, "key": key, "value": value}
        return out, State(parts, state.position + x.shape[1])

    def _whole(self, x: Tensor, curvature: Tensor | None, valid: Tensor | None) -> Tensor:
        query, key, value = self._projected(x, 0)
        if curvature is None:
            curvature = self.metric.deduce(self.metric.learn(density(query, valid))).curvature
        at = Tokens(x.shape[1], valid=valid, total=x.shape[1])
        return self._attended(query, key, value, curvature, at, at)

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


class PrefixPLGA(PLGA):
    """`PLGA` that is causal in training too: G of a chunk comes from the queries of earlier chunks alone.

        G_c = G_LM(sum_{i < c L} q_i q_i^T),   c = floor(position / L)

    chunk: L, the tokens that share a G; the first chunk has that of no query at all, a learned constant. With
    1 every token has its own. Not of the paper, which trains with the G of the whole sequence.
    Cost: the learner once per chunk, N / L h^2 numbers a head for the matrices.
    """

    def __init__(self, width: int, heads: int, *, chunk: int = 64, **named: object) -> None:
        super().__init__(width, heads, **named)  # type: ignore[arg-type]
        if chunk < 1:
            raise ValueError(f"PrefixPLGA: chunk must be at least 1 token, got {chunk}")
        if not self.pattern.is_causal:
            raise ValueError(f"PrefixPLGA: pattern must be causal, got {self.pattern}")
        self.chunk = chunk

    def start(self, batch: int) -> State:
        """Before the first token."""
        like = self.key.weight
        nothing = like.new_zeros(batch, self.kv_heads, 0, self.head)
        zero = like.new_zeros(batch, self.heads, self.head, self.head, dtype=wide(like.dtype))
        parts = {"key": nothing, "value": nothing, "density": zero, "open": zero}
        parts |= {"curvature": self._curvature(zero)}
        return State(parts, torch.zeros(batch, dtype=torch.int64, device=like.device))

    def begin(self, x: Float[Tensor, "B N C"]) -> tuple[Float[Tensor, "B N C"], State]:
        """The prompt, from the beginning."""
        return self.advance(x, self.start(x.shape[0]))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row."""
        query, key, value, own, there = self._behind(x, state, _place(state))
        with torch.autocast(x.device.type, enabled=False):
            folded, parts = self._folded(query, state)
        out = self._attended(folded, key, value, None, own, there)
        return out, State(parts | {"key": key, "value": value}, state.position + x.shape[1])

    def _whole(self, x: Tensor, curvature: Tensor | None, valid: Tensor | None) -> Tensor:
        if curvature is not None:
            return super()._whole(x, curvature, valid)
        query, key, value = self._projected(x, 0)
        seen = query if valid is None else query.masked_fill(~valid[:, None, :, None], 0.0)
        at = Tokens(x.shape[1], valid=valid, total=x.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            folded, _ = self._folded(seen, self.start(len(x)))
        return self._attended(folded, key, value, None, at, at)

    def _folded(self, query: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """q G of every token's chunk, and the sums behind the last of them."""
        offset, count = _place(state) % self.chunk, query.shape[2]
        chunks = (offset + count) // self.chunk + 1  # the last is open, and may be empty
        front = functional.pad(
            query.to(wide(query.dtype)), (0, 0, offset, chunks * self.chunk - offset - count)
        )
        front = front.unflatten(2, (chunks, self.chunk))
        sums = front.mT @ front
        sums = torch.cat([sums[:, :, :1] + state["open"][:, :, None], sums[:, :, 1:]], 2)
        before = torch.cat([state["density"][:, :, None], sums[:, :, :-1]], 2).cumsum(2)
        later = self._curvature(before[:, :, 1:].transpose(1, 2)).transpose(1, 2)
        curvature = torch.cat([state["curvature"][:, :, None], later], 2)
        folded = (front @ curvature).flatten(2, 3)[:, :, offset : offset + count].to(query.dtype)
        names = ("density", "open", "curvature")
        return folded, {
            name: part[:, :, -1] for name, part in zip(names, (before, sums, curvature), strict=True)
        }

    def _curvature(self, summed: Tensor) -> Tensor:
        found: Tensor = self.metric.deduce(self.metric.learn(summed)).curvature
        return found


def kv_cache_only(state: State) -> State:
    """The state of `PLGA.begin`, of a layer or of a whole model, without the G-cache."""
    parts = {
        name: kv_cache_only(part) if isinstance(part, State) else part
        for name, part in state.parts.items()
        if name not in G_CACHE
    }
    return State(parts, state.position)


def _rows(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


def _place(state: State) -> int:
    place = int(state.position[0])
    if bool((state.position != place).any()):
        raise ValueError("all rows of a state must stand at one position to go on together")
    return place


def _make(setting: Setting) -> nn.Module:
    head = setting.width // setting.heads
    metric = MetricLearner(head, setting.heads, units=2)
    if setting.causal:
        return PrefixPLGA(setting.width, setting.heads, metric=metric, chunk=CHUNK)
    return PLGA(setting.width, setting.heads, metric=metric, pattern=dense())


register_mixer(
    MixerEntry(
        "plga",
        _make,
        frozenset({"NS", "CS"}),
        stateful=True,
        padding=True,
        why_not="its matrix is learned from the queries of the sequence that the keys belong to",
    )
)
