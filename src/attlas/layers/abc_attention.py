"""ABC, attention with bounded-memory control: keys and values are pooled into a few slots.

Source: Peng et al. 2021, arXiv 2110.02488, in the form of CAB (arXiv 2210.07661). Legend: B batch, H heads,
N queries, M keys, D head width, R slots, T chunks of c tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan.state import State, wide

__all__ = ["ABCAttention", "bounded_memory", "causal_bounded_memory"]

FLOOR = -1e30  # log-weight of what is not there: finite, so that differences of two stay numbers
CHUNK = 8  # longer chunks build larger tables, shorter ones take more steps


def bounded_memory(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H M D"],
    value: Float[Tensor, "B H M E"],
    key_logit: Float[Tensor, "B H M R"],
    value_logit: Float[Tensor, "B H M R"],
    *,
    valid: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H N E"]:
    """softmax(q K~^T / sqrt D) V~, K~ = softmax_over_keys(key_logit)^T K (R, D), V~ likewise.

    valid: keys that are there; a row without any gives 0. Cost: (N + M) R (D + E) multiplications a head.
    """
    slots = [
        _weights(logit, valid).transpose(-1, -2) @ _kept(part, valid)
        for logit, part in ((key_logit, key), (value_logit, value))
    ]
    found: Tensor = attend(query, slots[0].to(query.dtype), slots[1].to(query.dtype))
    return found


def _weights(logit: Tensor, valid: Tensor | None) -> Tensor:
    return _masked(logit, valid).softmax(2)


def _masked(logit: Tensor, valid: Tensor | None) -> Tensor:
    logit = logit.to(wide(logit.dtype))
    return logit if valid is None else logit.masked_fill(~valid[:, None, :, None], FLOOR)


def _kept(part: Tensor, valid: Tensor | None) -> Tensor:
    part = part.to(wide(part.dtype))
    return part if valid is None else part.masked_fill(~valid[:, None, :, None], 0)


def causal_bounded_memory(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H N D"],
    value: Float[Tensor, "B H N E"],
    key_logit: Float[Tensor, "B H N R"],
    value_logit: Float[Tensor, "B H N R"],
    *,
    valid: Bool[Tensor, "B N"] | None = None,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B H N E"], State]:
    """`bounded_memory` of every prefix: slot r of token i is the mean of x_j, j <= i, by exp(logit_jr).

    Running sums, not the current token alone as in CAB's released causal code. All exponents are differences
    to the running log-sum, at most 0. state: what was returned for the tokens before; its parts: log-sums
    "key_log", "value_log" (B, H, R) and means "key" (B, H, R, D), "value" (B, H, R, E). Outputs of tokens
    that are not valid are 0. Cost: N R (c + D + E) multiplications a head, N R c numbers; never N R D.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    batch, heads, length, width = query.shape
    if state is None:
        state = _nothing(batch, heads, key_logit.shape[-1], width, value.shape[-1], query)
    if not length:
        return query.new_zeros(batch, heads, 0, value.shape[-1]), state
    keys, values = (
        _Slots(_masked(logit, valid), _kept(part, valid), state[f"{name}_log"], state[name], chunk)
        for name, logit, part in (("key", key_logit, key), ("value", value_logit, value))
    )
    asked = _chunked(query.to(keys.parts.dtype) * width**-0.5, chunk)
    pairs = asked @ keys.parts.transpose(-1, -2)
    logits = torch.einsum("bhtij,bhtijr->bhtir", pairs, keys.inside)
    weights = (logits + keys.carried * (asked @ keys.before.transpose(-1, -2))).softmax(-1)
    mixed = torch.einsum("bhtir,bhtijr->bhtij", weights, values.inside) @ values.parts
    out = (mixed + (weights * values.carried) @ values.before).flatten(2, 3)[:, :, :length]
    if valid is not None:
        out = out.masked_fill(~valid[:, None, :, None], 0)
    seen = length if valid is None else valid.sum(1)
    parts = {"key_log": keys.log, "key": keys.mean, "value_log": values.log, "value": values.mean}
    return out.to(value.dtype), State(parts, state.position + seen)


class _Slots:
    """Running means of `parts` in every slot, by chunks.

    inside (B, H, T, c, c, R): weight of token j in the mean of token i of its chunk; carried (B, H, T, c, R):
    weight of the mean before the chunk, which is `before` (B, H, T, R, D); log, mean: after all tokens.
    """

    def __init__(self, logit: Tensor, parts: Tensor, log: Tensor, mean: Tensor, chunk: int) -> None:
        total = torch.logaddexp(log[:, :, None], logit.logcumsumexp(2))
        self.log = total[:, :, -1]
        # Tokens of weight 0 fill the last chunk: they leave the log-sum as it is.
        logit, self.parts = _chunked(logit, chunk, FLOOR), _chunked(parts, chunk)
        spare = logit.shape[2] * chunk - total.shape[2]
        total = torch.cat([total, self.log[:, :, None].expand(-1, -1, spare, -1)], 2).unflatten(
            2, (-1, chunk)
        )
        first = torch.cat([log[:, :, None], total[:, :, :-1, -1]], 2)
        self.carried = (first[:, :, :, None] - total).exp()
        later = torch.ones(chunk, chunk, dtype=torch.bool, device=logit.device).triu(1)
        gap = logit[:, :, :, None] - total[:, :, :, :, None]
        self.inside = gap.masked_fill(later[:, :, None], -torch.inf).exp()
        gained = self.inside[:, :, :, -1].transpose(-1, -2) @ self.parts
        before = [mean]
        for step in range(logit.shape[2]):
            before.append(self.carried[:, :, step, -1, :, None] * before[-1] + gained[:, :, step])
        self.before, self.mean = torch.stack(before[:-1], 2), before[-1]


def _chunked(part: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    spare = -part.shape[2] % chunk
    return functional.pad(part, (0, 0, 0, spare), value=fill).unflatten(2, (-1, chunk))


def _nothing(batch: int, heads: int, slots: int, width: int, value_width: int, like: Tensor) -> State:
    shape = (batch, heads, slots)
    kind = wide(like.dtype)
    parts = {
        "key_log": like.new_full(shape, FLOOR, dtype=kind),
        "key": like.new_zeros(*shape, width, dtype=kind),
        "value_log": like.new_full(shape, FLOOR, dtype=kind),
        "value": like.new_zeros(*shape, value_width, dtype=kind),
    }
    return State(parts, torch.zeros(batch, dtype=torch.int64, device=like.device))


class ABCAttention(nn.Module):
    """x -> W_o of the heads' attention to `slots` pooled keys and values; logits are K C_k and V C_v.

    Args: width, heads; slots: 16 in CAB; causal: of every prefix (no context then); bias: of the four
    projections. C_k, C_v (head width, slots) are shared by the heads and start as in CAB.

    Shapes: (B, N, width) [, (B, M, width)] -> (B, N, width). State: 2 (D + 1) slots numbers a head.
    """

    def __init__(
        self, width: int, heads: int, *, slots: int = 16, causal: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or slots < 1:
            raise ValueError(
                f"width must be a multiple of heads and slots at least 1, got {width}, {heads} and {slots}"
            )
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.pool_key, self.pool_value = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(width // heads, slots), gain=2**-0.5))
            for _ in range(2)
        )

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        valid: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """`valid` False marks padding, of the context where there is one."""
        if self.causal and context is not None:
            raise ValueError(
                "a causal ABCAttention pools one sequence's prefixes; for queries to another one make it "
                "with causal=False: a query's output depends on no other query there"
            )
        if self.causal:
            return self._advanced(x, None, valid)[0]
        query, key, value = self._projected(x, x if context is None else context)
        mixed = bounded_memory(query, key, value, key @ self.pool_key, value @ self.pool_value, valid=valid)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def start(self, batch: int) -> State:
        """Before the first token."""
        width, slots = self.pool_key.shape
        return _nothing(batch, self.heads, slots, width, width, self.pool_key)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them."""
        return self._advanced(x, state, valid)

    def _projected(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = (self.query(x), self.key(source), self.value(source))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        return query, key, value

    def _advanced(self, x: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        query, key, value = self._projected(x, x)
        mixed, after = causal_bounded_memory(
            query, key, value, key @ self.pool_key, value @ self.pool_value, valid=valid, state=state
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), after


def _make(setting: Setting) -> nn.Module:
    return ABCAttention(setting.width, setting.heads, causal=setting.causal and not setting.cross)


register_mixer(
    MixerEntry(
        "abc",
        _make,
        frozenset({"NS", "CS", "NC", "CC"}),
        stateful=True,
        padding=True,
        permutes=True,
    )
)
