"""Power law graph attention that is causal in training too: the matrix G comes from earlier chunks.

Not of the paper (see `attlas.layers.plga`). Legend: B batch, H heads, N tokens, h head width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.plga import PLGA, place_of
from attlas.layers.plga_metric import MetricLearner
from attlas.pattern import Tokens, dense
from attlas.scan import State
from attlas.scan.state import wide

__all__ = ["PrefixPLGA"]

CHUNK = 16
"""Of the registered causal mixer."""


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
        self._check(x)
        return self.advance(x, self.start(x.shape[0]))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, with the sums of earlier chunks; G is made of them where it is not
        kept (`kv_cache_only`)."""
        self._check(x, state)
        query, key, value, own, there = self._behind(x, state, place_of(state))
        with torch.autocast(x.device.type, enabled=False):
            folded, parts = self._folded(query, state)
        out = self._attended(folded, key, value, None, own, there)
        return out, State(parts | {"key": key, "value": value}, state.position + x.shape[1])

    def traced(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B H h h"]]:
        """ValueError: there is not one A."""
        raise ValueError(
            "PrefixPLGA: every chunk has matrices of its own, so that a text has not one A or G to deduce, "
            "to penalise or to give to another text; take PLGA for that"
        )

    def _whole(self, x: Tensor, curvature: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        if curvature is not None:
            return super()._whole(x, curvature, valid)
        query, key, value = self._projected(x, 0)
        seen = query if valid is None else query.masked_fill(~valid[:, None, :, None], 0.0)
        at = Tokens(x.shape[1], valid=valid, total=x.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            folded, _ = self._folded(seen, self.start(len(x)))
        return self._attended(folded, key, value, None, at, at), None

    def _folded(self, query: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """q G of every token's chunk, and the sums behind the last of them."""
        offset, count = place_of(state) % self.chunk, query.shape[2]
        chunks = (offset + count) // self.chunk + 1  # the last is open, and may be empty
        front = functional.pad(
            query.to(wide(query.dtype)), (0, 0, offset, chunks * self.chunk - offset - count)
        )
        front = front.unflatten(2, (chunks, self.chunk))
        sums = front.mT @ front
        sums = torch.cat([sums[:, :, :1] + state["open"][:, :, None], sums[:, :, 1:]], 2)
        before = torch.cat([state["density"][:, :, None], sums[:, :, :-1]], 2).cumsum(2)
        later = self._curvature(before[:, :, 1:].transpose(1, 2)).transpose(1, 2)
        kept = state.parts.get("curvature")
        now = torch.as_tensor(self._curvature(state["density"]) if kept is None else kept)
        curvature = torch.cat([now[:, :, None], later], 2)
        folded = (front @ curvature).flatten(2, 3)[:, :, offset : offset + count].to(query.dtype)
        names = ("density", "open", "curvature")
        return folded, {
            name: part[:, :, -1] for name, part in zip(names, (before, sums, curvature), strict=True)
        }

    def _curvature(self, summed: Tensor) -> Tensor:
        found: Tensor = self.metric.deduce(self.metric.learn(summed)).curvature
        return found


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
