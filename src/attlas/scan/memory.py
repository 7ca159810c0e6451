"""`memory`: weights that learn while they read, by gradient, momentum and decay (Titans, TTT, delta rules).

    S_t = eta_t S_(t-1) - theta_t grad l(M; k_t, v_t),   M_t = (1 - alpha_t) M_(t-1) + S_t,   out_t = M_t(q_t)

with l = ||M(k_t) - v_t||², one memory for each row of the batch and each head. The gradient is taken at the
weights with which the token's chunk began, so that a chunk is a few products (chunk = 1: at M_(t-1), the
sequential rule, which for a linear memory is solved for many tokens at once). No token's own weights are ever
formed, only those at the ends of chunks.

Legend: B batch, H heads, N tokens, D key width, V value width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attlas.scan.memory_align import align, blocks
from attlas.scan.memory_chunk import Fast, Steps, advance_chunk
from attlas.scan.memory_rule import MemoryRule
from attlas.scan.state import State, wide

__all__ = ["memory", "recall", "start_memory"]

EXACT_BLOCK = 64
"""Tokens for which a linear memory's sequential rule is solved at once: of 16 to 128 fastest at width 64."""
IDLE = (0.0, 1.0, 0.0, 0.0)
"""alpha, eta, theta and commit of a step that changes nothing."""


def memory(
    rule: MemoryRule,
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N V"],
    alpha: Float[Tensor, "B H N"] | float,
    eta: Float[Tensor, "B H N"] | float,
    theta: Float[Tensor, "B H N"] | float,
    *,
    chunk: int,
    commit: Float[Tensor, "B H N"] | float = 1.0,
    valid: Bool[Tensor, "B N"] | None = None,
    state: State | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, State]:
    """Read a memory at every token, after that token was written to it: out (B, H, N, V) in v's type.

        S_t = eta_t S_(t-1) - theta_t grad l(M'; k_t, v_t)
        M_t = (1 - alpha_t) M_(t-1) + commit_t S_t,   out_t = M_t(q_t)

    M': the weights at the start of the token's chunk. Chunks are counted in valid tokens from the sequence's
    start, so that pieces of any length give the same as the whole.

    Args:
        rule: the memory's shape, initial weights and inner loss.
        alpha, eta, theta: decay and momentum in [0, 1], step size >= 0, numbers or per token. eta = alpha
            = 0 is TTT; with a linear memory, chunk = 1 and theta = beta / 2 it is the delta rule. For keys of
            length 1 and eta = 0 a linear memory is stable for theta <= 1 / chunk; above, it may
            grow without bound.
        commit: weight of the momentum in the weights; 0 but at the last token of a chunk, with eta = 1 after
            its first, is one update per chunk by the summed gradient.
        valid: False is the identity: nothing is written, decays or moves on, and out is 0.
        state: `State` of the tokens before ("weight0", "momentum0", ..., for chunk > 1 also "frozen0", ...),
            float32 (float64 for float64 inputs), as is all arithmetic.

    Gradients reach q, k, v, alpha, eta, theta, commit, the initial weights, and the state in and out. It
    learns the same in eval mode, under no_grad and under inference_mode.

    Cost: O(N |M|) FLOPs and, for each chunk of b tokens, b² (widths) and b³; memory O(|M| + b²), in training
    O(N (widths + b) + N/b |M|).
    ValueError: shapes that do not fit, a chunk below 1, a state of another rule. Source: arXiv 2501.00663.
    """
    _check(rule, q, k, v, chunk, valid)
    with torch.autocast(q.device.type, enabled=False):  # what learns stays float32
        return _learnt(rule, (q, k, v), (alpha, eta, theta, commit), chunk, valid, state, return_state)


def _learnt(
    rule: MemoryRule,
    streams_given: tuple[Tensor, Tensor, Tensor],
    factors_given: tuple[Tensor | float, ...],
    chunk: int,
    valid: Tensor | None,
    state: State | None,
    return_state: bool,
) -> Tensor | tuple[Tensor, State]:
    q, k, v = streams_given
    kept, given = wide(q.dtype), v.dtype
    state = start_memory(rule, len(q), chunk=chunk, dtype=kept) if state is None else state
    fast = _fast(rule, state, len(q), chunk)
    factors = dict(zip(("alpha", "eta", "theta", "commit"), factors_given, strict=True))
    streams = [x.to(kept) for x in (q, k, v)]
    steps = Steps(*(_per_token(name, x, streams[0]) for name, x in factors.items()))
    if valid is not None:
        steps = Steps(*(x.where(valid[:, None], idle) for x, idle in zip(steps, IDLE, strict=True)))
        streams = [x.masked_fill(~valid[:, None, :, None], 0.0) for x in streams]
    out, fast = _sweep(rule, fast, streams, steps, chunk, state.position, valid)
    if valid is not None:
        out = out.masked_fill(~valid[:, None, :, None], 0.0)
    if not return_state:
        return out.to(given)
    seen = q.shape[2] if valid is None else valid.sum(1)
    return out.to(given), _state(fast, state.position + seen, chunk)


def start_memory(rule: MemoryRule, batch: int, *, chunk: int, dtype: torch.dtype = torch.float32) -> State:
    """The state of a batch of memories that have seen nothing; `chunk` as in `memory`."""
    weights = rule.initial(batch, dtype)
    position = torch.zeros(batch, dtype=torch.int64, device=weights[0].device)
    return _state(Fast(weights, tuple(torch.zeros_like(x) for x in weights), weights), position, chunk)


def recall(rule: MemoryRule, q: Float[Tensor, "B H N D"], state: State) -> Float[Tensor, "B H N V"]:
    """Read the memory as `state` left it, for all queries, and write nothing: M(q), in q's type."""
    weights = tuple(state[f"weight{layer}"] for layer in range(rule.depth))
    return rule.read(weights, q.to(weights[0].dtype)).to(q.dtype)


def _sweep(
    rule: MemoryRule,
    fast: Fast,
    streams: list[Tensor],
    steps: Steps,
    chunk: int,
    position: Tensor,
    valid: Tensor | None,
) -> tuple[Tensor, Fast]:
    """Chunk after chunk: out by token, and what the last one leaves."""
    length, exact = streams[0].shape[2], chunk == 1 and rule.exact
    if not streams[2].numel():
        return streams[2], fast
    # With gradients at every token's own weights, an idle step is the identity wherever it stands.
    placed = (
        blocks(length, EXACT_BLOCK if exact else 1) if chunk == 1 else align(length, chunk, position, valid)
    )
    streams = [placed.spread(x, 0.0) for x in streams]
    steps = Steps(*(placed.spread(x, idle) for x, idle in zip(steps, IDLE, strict=True)))
    reads = []
    for piece, begins in placed.pieces:
        fast = _refrozen(fast, begins)
        query, key, value = (x[:, :, piece] for x in streams)
        factors = Steps(*(x[:, :, piece] for x in steps))
        read, weights, momentum = advance_chunk(rule, fast, query, key, value, factors, exact=exact)
        fast = Fast(weights, momentum, fast.frozen)
        reads.append(read)
    return placed.collect(torch.cat(reads, 2)), fast


def _refrozen(fast: Fast, begins: Tensor | None) -> Fast:
    """Gradients are taken at the present weights from here on, in the rows that begin a chunk (None: all)."""
    if begins is None:
        return fast._replace(frozen=fast.weights)
    rows = begins[:, None, None, None]
    pairs = zip(fast.weights, fast.frozen, strict=True)
    return fast._replace(frozen=tuple(now.where(rows, old) for now, old in pairs))


def _state(fast: Fast, position: Tensor, chunk: int) -> State:
    kinds = {"weight": fast.weights, "momentum": fast.momentum} | (
        {"frozen": fast.frozen} if chunk > 1 else {}
    )
    return State({f"{kind}{i}": x for kind, of in kinds.items() for i, x in enumerate(of)}, position)


def _fast(rule: MemoryRule, state: State, batch: int, chunk: int) -> Fast:
    """The parts of `state`; ValueError where it is of another memory."""
    names = [f"{kind}{layer}" for kind in ("weight", "momentum", "frozen") for layer in range(rule.depth)]
    wanted = names if chunk > 1 else names[: 2 * rule.depth]
    shapes = [(batch, *weight.shape) for weight in rule.weights] * 3
    have = {name: tuple(part.shape) for name, part in state.parts.items() if isinstance(part, Tensor)}
    expected = dict(zip(wanted, shapes, strict=False))
    if have != expected:
        raise ValueError(
            f"memory: state must come from a memory of this rule, batch and chunk, with parts {expected}, "
            f"got {have}; start_memory(rule, batch, chunk=...) makes the first one"
        )
    parts = [state[name] for name in wanted]
    groups = [tuple(parts[first : first + rule.depth]) for first in range(0, len(parts), rule.depth)]
    return Fast(groups[0], groups[1], groups[2] if chunk > 1 else groups[0])


def _per_token(name: str, x: Tensor | float, query: Tensor) -> Tensor:
    shape = query.shape[:3]
    if isinstance(x, Tensor) and x.shape != shape:
        raise ValueError(
            f"memory: {name} must be a number or have q's (batch, heads, tokens) {tuple(shape)}, got "
            f"{tuple(x.shape)}"
        )
    return torch.as_tensor(x).to(query).expand(shape)


def _check(rule: MemoryRule, q: Tensor, k: Tensor, v: Tensor, chunk: int, valid: Tensor | None) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"memory: chunk must be an integer >= 1 (1: the sequential rule), got {chunk!r}")
    first, last = rule.weights[0], rule.weights[-1]
    wanted = {"q": (q, first.shape[1]), "k": (k, first.shape[1]), "v": (v, last.shape[2])}
    for name, (x, width) in wanted.items():
        if x.shape != (*q.shape[:1], first.shape[0], q.shape[2], width):
            raise ValueError(
                f"memory: {name} must be (batch, {first.shape[0]} heads, tokens, width {width}) for these "
                f"weights, with q's batch and tokens, got {tuple(x.shape)} beside q {tuple(q.shape)}"
            )
    if valid is not None and valid.shape != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"memory: valid must be (batch, tokens) {q.shape[0], q.shape[2]}, got {tuple(valid.shape)}"
        )
