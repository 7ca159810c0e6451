"""Flow-Attention: linear attention whose keys compete for, and whose queries are gated by, conserved flow.

Queries are sinks, keys are sources, phi(q_i) . phi(k_j) is the capacity between them. Source: Wu et al. 2022,
arXiv 2202.06258, thuml/Flowformer. Legend: B batch, H heads, N queries, M keys, D width, E value width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.inputs import state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan import LogSumExp, State, prefix, scan
from attlas.scan.state import wide

__all__ = ["CausalFlowAttention", "Flow", "FlowAttention", "causal_flow", "flow", "flow_terms"]

EPS = 1e-6  # of the official code, on both factors of the four flows
DROPOUT = 0.05


@dataclass(frozen=True, eq=False)
class Flow:
    """What flow conservation gives: inflow and allocation of the queries (B, H, N), competition of the keys.

    query, key: phi of both, of padding 0.
    """

    query: Float[Tensor, "B H N D"]
    key: Float[Tensor, "B H M D"]
    inflow: Float[Tensor, "B H N"]
    allocation: Float[Tensor, "B H N"]
    competition: Float[Tensor, "B H M"]


def flow_terms(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H M D"],
    *,
    clamp: float | None = 1.0,
    feature: Callable[[Tensor], Tensor] = torch.sigmoid,
    eps: float = EPS,
    query_valid: Bool[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B M"] | None = None,
) -> Flow:
    """Inflow I and outflow O, both conserved, then competition c of keys and allocation a of queries.

        I_i = phi(q_i) . sum_j phi(k_j)                 O_j = phi(k_j) . sum_i phi(q_i)
        J_i = phi(q_i) . sum_j phi(k_j) / O_j           P_j = phi(k_j) . sum_i phi(q_i) / I_i
        competition c_j = M softmax_j(clamp(P))         allocation a_i = sigmoid(J_i N / M)

    Not causal. eps is added to phi and to the finished sum of all four. N and M count what is valid alone.
    """
    q, k = _features(query, feature, query_valid), _features(key, feature, valid)
    inflow = _flow(q, k.sum(2), eps)
    outflow = _flow(k, q.sum(2), eps)
    into = _flow(q, (k / outflow[..., None]).sum(2), eps)
    out_of = _clamped(_flow(k, (q / inflow[..., None]).sum(2), eps), clamp)
    queries, keys = (_count(part, seen) for part, seen in ((q, query_valid), (k, valid)))
    if valid is not None:
        # Not -inf: a row without any key has no NaN, and its phi(k) is 0.
        out_of = out_of.masked_fill(~valid[:, None], torch.finfo(out_of.dtype).min)
    allocation = torch.sigmoid(into * (queries / keys))
    return Flow(q, k, inflow, allocation, keys * out_of.softmax(-1))


def flow(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H M D"],
    value: Float[Tensor, "B H M E"],
    *,
    clamp: float | None = 1.0,
    feature: Callable[[Tensor], Tensor] = torch.sigmoid,
    eps: float = EPS,
    query_valid: Bool[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H N E"]:
    """out_i = a_i phi(q_i) / I_i . sum_j phi(k_j) (c_j v_j)^T, terms as in `flow_terms`; self or cross.

    clamp: bound of |P| before the competition: 1 in the generic and vision code, 5 for text, 10 for
    reinforcement learning, None in the JAX code. With N = M the mean of P is 1, so that a clamp of 1 takes
    about half of the keys out of the competition; with N far above M it takes all. Cost: O((N + M) D E).
    """
    terms = flow_terms(
        query, key, clamp=clamp, feature=feature, eps=eps, query_valid=query_valid, valid=valid
    )
    carried = terms.key.transpose(-1, -2) @ (value.to(terms.key.dtype) * terms.competition[..., None])
    out = (terms.query * (terms.allocation / terms.inflow)[..., None]) @ carried
    return out.to(value.dtype)


def causal_flow(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H N D"],
    value: Float[Tensor, "B H N E"],
    *,
    clamp: float | None = 1.0,
    feature: Callable[[Tensor], Tensor] = torch.sigmoid,
    eps: float = EPS,
    valid: Bool[Tensor, "B N"] | None = None,
    state: State | None = None,
) -> tuple[Float[Tensor, "B H N E"], State]:
    """Flow-Attention in which every sum runs over tokens that are not later; returns (out, State).

    With t_i the number of valid tokens up to i, all sums over j <= i:

        I_i = phi(q_i) . sum phi(k_j)                         O_i = phi(k_i) . sum phi(q_j)
        J_i = phi(q_i) . sum phi(k_j) t_j / O_j / t_i         P_i = phi(k_i) . sum phi(q_j) t_j / I_j / t_i
        c_j = t_j exp(P_j) / sum_{l <= j} exp(P_l)            a_i = sigmoid(J_i), P clamped as in `flow`
        out_i = a_i sum phi(q_i) . phi(k_j) / I_i c_j v_j

    Five scans and one prefix of log-sum-exp. Cost: O(N D E), a decoded token O(D E); state: 4 D + D E + 1
    numbers a head. The official code holds an (N, D, E) tensor.
    """
    q, k = _features(query, feature, None), _features(key, feature, None)
    batch, heads, length, _ = q.shape
    start = torch.zeros(batch, dtype=torch.int64, device=q.device) if state is None else state.position
    steps = torch.ones(batch, length, dtype=torch.int64, device=q.device) if valid is None else valid.long()
    after = start + steps.sum(1)
    # Padding before the first token has seen none; its rows are masked, and 1 keeps them finite.
    seen = (start[:, None] + steps.cumsum(1)).clamp(min=1)[:, None].to(q.dtype)
    parts: dict[str, Tensor | State] = {}

    def run(name: str, receiver: Tensor, sender: Tensor, carried: Tensor) -> Tensor:
        before = None if state is None else state.nested(name)
        out, parts[name] = scan(receiver, sender, carried, valid=valid, state=before, return_state=True)
        return out

    def running(name: str, receiver: Tensor, sender: Tensor, weight: Tensor) -> Tensor:
        receiver = receiver + eps
        carried = weight.expand(batch, heads, length)[..., None]
        return run(name, receiver, sender, carried)[..., 0] + eps * receiver.sum(-1)

    inflow = running("keys", q, k, torch.ones_like(seen))
    outflow = running("queries", k, q, torch.ones_like(seen))
    into = running("conserved_keys", q, k, seen / outflow) / seen
    out_of = _clamped(running("conserved_queries", k, q, seen / inflow) / seen, clamp)
    if valid is not None:
        out_of = out_of.masked_fill(~valid[:, None], -torch.inf)
    (total,), (parts["competition"],) = prefix(
        LogSumExp(), (out_of,), state=None if state is None else (state["competition"],)
    )
    gap = torch.where(total > -torch.inf, out_of - total, -torch.inf)
    carried = value.to(q.dtype) * (seen * gap.exp())[..., None]
    out = run("values", q / inflow[..., None], k, carried) * torch.sigmoid(into)[..., None]
    return out.to(value.dtype), State(parts, after)


def _features(x: Tensor, feature: Callable[[Tensor], Tensor], valid: Tensor | None) -> Tensor:
    found = feature(x.to(wide(x.dtype)))
    return found if valid is None else found.masked_fill(~valid[:, None, :, None], 0.0)


def _flow(own: Tensor, total: Tensor, eps: float) -> Tensor:
    """(B, H, n, D) . (B, H, D), eps on both."""
    return ((own + eps) @ (total + eps)[..., None])[..., 0]


def _clamped(conserved: Tensor, clamp: float | None) -> Tensor:
    return conserved if clamp is None else conserved.clamp(-clamp, clamp)


def _count(part: Tensor, valid: Tensor | None) -> Tensor:
    """(1 or B, 1, 1): how many are valid, at least 1."""
    if valid is None:
        return part.new_full((1, 1, 1), part.shape[2])
    return valid.sum(1).clamp(min=1).to(part.dtype)[:, None, None]


class FlowAttention(nn.Module):
    """W_o of `flow` between W_q x and W_k, W_v of x itself or of a context, then dropout.

    Args:
        width, heads; clamp, feature, eps: as in `flow`. dropout: of the output (0.05 as published). bias: of
            the four projections.

    Shapes: (B, N, C) -> (B, N, C). Cost: 4 C^2 N + O((N + M) C D).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        clamp: float | None = 1.0,
        feature: Callable[[Tensor], Tensor] = torch.sigmoid,
        eps: float = EPS,
        dropout: float = DROPOUT,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"{type(self).__name__}: width must be a multiple of heads, got {width} and {heads}"
            )
        if clamp is not None and not clamp > 0:
            raise ValueError(f"{type(self).__name__}: clamp must be above 0, or None, got {clamp}")
        self.heads, self.clamp, self.feature, self.eps = heads, clamp, feature, eps
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        valid: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """`valid`: the real tokens of the context, or of x itself without one."""
        own = valid if context is None else None
        query, key, value = self.split(x, x if context is None else context)
        mixed = flow(
            query,
            key,
            value,
            clamp=self.clamp,
            feature=self.feature,
            eps=self.eps,
            query_valid=own,
            valid=valid,
        )
        return self.joined(mixed)

    def split(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the source, (B, H, n, D)."""
        query, key, value = (
            make(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for make, given in ((self.query, x), (self.key, source), (self.value, source))
        )
        return query, key, value

    def joined(self, mixed: Tensor) -> Tensor:
        """The heads' outputs, projected and dropped out."""
        out: Tensor = self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return out


class CausalFlowAttention(FlowAttention):
    """The same around `causal_flow`: self-attention to tokens that are not later, with a state.

    Shapes: (B, N, C) -> (B, N, C). State: H (4 D + D^2 + 1) numbers at any length.
    """

    def forward(  # type: ignore[override]  # no context: competition among later queries' keys would leak
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding."""
        return self.advance(x, None, valid=valid)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        return state_before(self.advance, batch, self.out.weight, self.out.out_features)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        mixed, after = causal_flow(
            *self.split(x, x), clamp=self.clamp, feature=self.feature, eps=self.eps, valid=valid, state=state
        )
        return self.joined(mixed), after


def _make(setting: Setting) -> nn.Module:
    kind = CausalFlowAttention if setting.form == "CS" else FlowAttention
    return kind(setting.width, setting.heads, dropout=0.0)


register_mixer(
    MixerEntry(
        "flow",
        _make,
        frozenset({"NS", "CS", "NC"}),
        stateful=True,
        padding=True,
        differentiable="almost",
        permutes=True,
        why_not="a key's outflow sums over all queries, so that a decoder's query would see later ones",
    )
)
