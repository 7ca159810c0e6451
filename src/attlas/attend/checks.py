"""Validation of `attend`'s arguments: errors name the argument, what was expected, what came, what to do."""

from typing import Any

from torch import Tensor

from attlas.attend.aggregate import Aggregate
from attlas.attend.normaliser import Normaliser
from attlas.attend.senders import SenderSoftmax
from attlas.attend.view import KVView
from attlas.pattern import GraphEdges, Pattern, Tokens
from attlas.score import Score

__all__ = ["numbers", "parts", "request", "tensors", "tokens"]


def tensors(query: Any, key: Any, value: Any) -> None:
    """query (B, H, N, D), key (B, G, M, D), value (B, G, M, V) or a view: dtype, device and sizes fit."""
    if isinstance(key, KVView):
        if value is not None:
            raise TypeError("attend: value must be None when key is a KVView, which already holds the values")
        pairs = [("key", key.groups[0].key), ("value", key.groups[0].value)]
        kv_heads, width = key.kv_heads, key.groups[0].key.shape[3]
    else:
        pairs = [("key", key), ("value", value)]
        kv_heads, width = None, None
    for name, tensor in [("query", query), *pairs]:
        _tensor(name, tensor)
    (_, key_tensor), (_, value_tensor) = pairs
    kv_heads = key_tensor.shape[1] if kv_heads is None else kv_heads
    width = key_tensor.shape[3] if width is None else width
    for name, tensor in pairs:
        for what in ("dtype", "device"):
            if getattr(tensor, what) != getattr(query, what):
                raise TypeError(
                    f"attend: {name} has {what} {getattr(tensor, what)} but query has "
                    f"{getattr(query, what)}; convert one of them"
                )
    if query.shape[3] != width:
        raise ValueError(f"attend: query and key must have the same width, got {query.shape[3]} and {width}")
    if query.shape[1] % kv_heads:
        raise ValueError(
            f"attend: the number of query heads must be a multiple of the number of KV heads, "
            f"got {query.shape[1]} and {kv_heads}"
        )
    if not isinstance(key, KVView) and key_tensor.shape[1:3] != value_tensor.shape[1:3]:
        raise ValueError(
            f"attend: key and value must have the same heads and tokens, got key {tuple(key_tensor.shape)} "
            f"and value {tuple(value_tensor.shape)}"
        )
    sizes = {tensor.shape[0] for tensor in (query, key_tensor, value_tensor)} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"attend: batch sizes must be equal or 1, got query {query.shape[0]}, key {key_tensor.shape[0]}, "
            f"value {value_tensor.shape[0]}"
        )


def _tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        hint = "; give a KVView or both key and value" if name == "value" else ""
        raise TypeError(f"attend: {name} must be a tensor, got {type(tensor).__name__}{hint}")
    if not tensor.is_floating_point():
        raise TypeError(f"attend: {name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() != 4:
        raise ValueError(
            f"attend: {name} must have axes (batch, heads, tokens, width), got shape {tuple(tensor.shape)}"
        )
    if tensor.shape[0] == 0 or tensor.shape[1] == 0 or tensor.shape[3] == 0:
        raise ValueError(
            f"attend: {name} must have at least one batch row, head and channel, got {tuple(tensor.shape)}"
        )


def tokens(
    query: Tensor, key: Tensor | KVView, q_at: Tokens | None, k_at: Tokens | None, pattern: Pattern | None
) -> tuple[Tokens, Tokens | None]:
    """The token spaces of queries and keys with their defaults; both start at position 0."""
    if isinstance(key, KVView):
        if k_at is not None:
            raise ValueError("attend: k_at must be None when key is a KVView, which has its own positions")
        if q_at is None and pattern is not None:
            raise ValueError(
                "attend: q_at is needed with a KVView and a pattern: where do the queries stand? "
                f"for example q_at=Tokens({query.shape[2]}, start=number of tokens before them)"
            )
    else:
        k_at = k_at if k_at is not None else Tokens(key.shape[2])
        _space("k_at", k_at, key.shape[2], "key", _batch(query, key))
    q_at = q_at if q_at is not None else Tokens(query.shape[2])
    _space("q_at", q_at, query.shape[2], "query", _batch(query, key))
    return q_at, k_at


def _batch(query: Tensor, key: Tensor | KVView) -> int:
    tensor = key.groups[0].key if isinstance(key, KVView) else key
    return max(query.shape[0], tensor.shape[0])


def _space(name: str, space: Any, length: int, owner: str, batch: int) -> None:
    if not isinstance(space, Tokens):
        raise TypeError(f"attend: {name} must be Tokens, got {type(space).__name__}")
    if space.length != length:
        raise ValueError(f"attend: {name} has {space.length} tokens but {owner} has {length}")
    if space.batch not in (None, 1, batch):
        raise ValueError(f"attend: {name} has {space.batch} batch rows but the tensors have {batch}")


def parts(pattern: Any, score: Any, normaliser: Any, aggregate: Any) -> None:
    """The four objects are of their kinds."""
    for name, part, kind, example in (
        ("pattern", pattern, Pattern, "causal() & window(256)"),
        ("score", score, Score, "Dot()"),
        ("normaliser", normaliser, Normaliser, "Softmax()"),
        ("aggregate", aggregate, Aggregate, "Sum()"),
    ):
        if isinstance(part, type):
            raise TypeError(
                f"attend: {name} must be an object, got the class {part.__name__}; write {part.__name__}()"
            )
        if not isinstance(part, kind) and not (part is None and name == "pattern"):
            got = type(part).__name__
            raise TypeError(f"attend: {name} must be a {kind.__name__}, for example {example}, got {got}")
    _axis(normaliser)


def numbers(dropout: Any, seed: Any, extra: Any) -> None:
    """Plain arguments are of their kinds."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise TypeError(f"attend: dropout must be a number from 0 to below 1, got {dropout!r}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"attend: seed must be an integer, or None to draw one, got {seed!r}")
    if extra is not None and not isinstance(extra, list | tuple):
        raise TypeError(
            "attend: extra must be a list of (logit (B, H, N, 1), value (B, H, N, V)), got "
            f"{type(extra).__name__}; write extra=[(logit, value)]"
        )


def _axis(normaliser: Normaliser) -> None:
    for stage in normaliser.stages():
        if stage.axis == "senders" and (type(stage) is not SenderSoftmax or stage is not normaliser):
            raise ValueError(
                f"attend: normaliser {normaliser.name}: {stage.name} declares axis='senders', and only "
                "SenderSoftmax(), standing alone, is known to the backends: it takes two passes over all "
                "queries"
            )
        if stage.axis != "senders" and not (stage.axis == "receivers" and stage.causal_safe):
            raise ValueError(
                f"attend: normaliser {stage.name} declares axis={stage.axis!r}, "
                f"causal_safe={stage.causal_safe}, but every backend works on some queries at a time, so "
                "that a weight must follow from the edges of its own query; normalise over axis='receivers' "
                "with causal_safe=True"
            )


def request(call: Any) -> None:
    """What depends on several arguments: heads, score tensors, gate, extra, dropout, state."""
    _ = call.patterns
    own = None if call.pattern is None else call.pattern.batch
    if own is not None and own != call.batch:
        raise ValueError(
            f"attend: the pattern is bound to tensors with {own} batch rows but query, key and value have "
            f"{call.batch}; give one entry per batch row, or one for all"
        )
    if own is not None and call.return_edge:
        raise ValueError(
            "attend: return_edge=True needs one set of pairs for the whole batch, and the pattern has batch "
            "rows of its own; call once per pattern.batch_row(b)"
        )
    full = (call.batch, call.heads, call.queries, call.keys)
    if call.view is not None and (call.gate is not None or any(t.shape[3] > 1 for t in call.score.tensors())):
        raise ValueError(
            "attend: a gate or a score with a key axis needs key and value tensors, not a KVView"
        )
    for owner, held in (("score", call.score), ("normaliser", call.normaliser)):
        for tensor in held.tensors():
            _broadcasts(f"{owner} {held.name}", tensor, full)
    _along_edges(call)
    if call.gate is not None:
        _broadcasts("gate", call.gate, full)
        if call.gate.dim() > len(full):
            raise ValueError(
                f"attend: gate must have 4 axes that broadcast to (batch, heads, queries, keys) = {full}, "
                f"got {tuple(call.gate.shape)}"
            )
    for number, pair in enumerate(call.extra):
        _extra(number, pair, call)
    if call.normaliser.axis == "senders" and (call.extra or call.view is not None):
        what = "extra terms, which have no sender" if call.extra else "KVView, read by some queries at a time"
        raise ValueError(
            f"attend: normaliser {call.normaliser.name} shares each key out among all queries and takes no "
            f"{what}; give key and value tensors of all tokens, and an extra term as one more key"
        )
    if not 0.0 <= call.dropout < 1.0:
        raise ValueError(f"attend: dropout must be at least 0 and below 1, got {call.dropout}")
    if call.return_state and not (call.normaliser.mergeable and call.aggregate.mergeable):
        raise ValueError(
            f"attend: return_state=True needs parts that merge, but {call.normaliser.name} with aggregate "
            f"{call.aggregate.name} does not; attend to all keys in one call"
        )
    if call.return_edge and len(call.pieces()) > 1:
        raise ValueError("attend: return_edge=True needs one pattern for all heads and key and value tensors")


def _along_edges(call: Any) -> None:
    """Tensors of a score that belong to the edges of a graph have that graph, and one row per edge."""
    owner, held = call.score.name, call.edge_tensors
    if held and not isinstance(call.pattern, GraphEdges):
        got = "none" if call.pattern is None else str(call.pattern)
        raise ValueError(
            f"attend: score {owner} has tensors of the edges of a graph, so that the pattern must be that "
            f"Graph and nothing else, got {got}; remove edges with attlas.graph.keep_edges"
        )
    for tensor in held:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"attend: score {owner}: an edge tensor must be a tensor, got {type(tensor).__name__}"
            )
        edges, shape = call.pattern.graph.edges, tuple(tensor.shape)
        if not shape or shape[0] != edges:
            raise ValueError(
                f"attend: score {owner}: an edge tensor must have one row for each of {edges} edges, in the "
                f"order of the graph's edge_index, got shape {shape}"
            )
        if len(shape) > 1 and shape[1] not in (1, call.heads):
            raise ValueError(
                f"attend: score {owner}: an edge tensor must be (edges,), (edges, heads) or (edges, heads, "
                f"...) with {call.heads} heads or 1, got shape {shape}; write edge[:, None] for features "
                "that all heads share"
            )
        if tensor.device != call.device:
            raise TypeError(
                f"attend: score {owner}: an edge tensor is on {tensor.device} but query on {call.device}"
            )


def _broadcasts(name: str, tensor: Any, full: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"attend: {name} must be a tensor, got {type(tensor).__name__}")
    fits = tensor.dim() >= 4 and all(got in (1, want) for got, want in zip(tensor.shape, full, strict=False))
    if not fits:
        raise ValueError(
            f"attend: {name} must broadcast to (batch, heads, queries, keys) = {full}, "
            f"got {tuple(tensor.shape)}"
        )


def _extra(number: int, pair: Any, call: Any) -> None:
    expected = "(logit (B, H, N, 1), value (B, H, N, V)), axes of length 1 broadcast"
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
        raise TypeError(
            f"attend: extra[{number}] must be a pair of tensors {expected}, got {type(pair).__name__}"
        )
    rows = (call.batch, call.heads, call.queries)
    for tensor, last in zip(pair, (1, call.value_width), strict=True):
        shape = tuple(tensor.shape)
        fits = len(shape) == 4 and shape[3] == last
        if not fits or not all(got in (1, want) for got, want in zip(shape[:3], rows, strict=True)):
            raise ValueError(f"attend: extra[{number}] must be {expected} with B, H, N = {rows}, got {shape}")
