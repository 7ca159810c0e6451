"""Zoology's hybrid: attention for a few rows that the input chooses, nothing for the others.

Legend: B batch, H heads, N tokens, T tokens so far, K rows attended, D head width, C width.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.attend import attend
from attlas.layers.inputs import check_tokens
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.pattern import Tokens, causal
from attlas.scan import State

__all__ = [
    "RandomChoice",
    "RowChoice",
    "SigmoidChoice",
    "SoftmaxChoice",
    "SparseHybrid",
    "TwoWayChoice",
    "root_rows",
]

PENALTY, TEMPERATURE, THRESHOLD = 1e-3, 0.3, 0.5


def root_rows(tokens: int) -> int:
    """ceil(sqrt N), the published number of attended rows."""
    return math.isqrt(max(0, tokens - 1)) + 1 if tokens else 0


@runtime_checkable
class RowChoice(Protocol):
    """How much every row is to be attended: f (B, N) >= 0.

    causal: f_t depends on x_t alone (else it needs the whole sequence, and padding is told by `valid`).
    """

    causal: bool

    def __call__(
        self, x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B N"]: ...


class SoftmaxChoice(nn.Module):
    """f = softmax over the sequence of w . x_t + b."""

    causal = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N"]:
        """Padding gets nothing."""
        score = self.score(x)[..., 0]
        if valid is not None:
            score = score.masked_fill(~valid, float("-inf"))
        # A sequence of padding alone would be 0 / 0.
        return score.softmax(1).nan_to_num() if valid is not None else score.softmax(1)


class SigmoidChoice(nn.Module):
    """f_t = sigmoid(w . x_t); `SparseHybrid` adds `penalty` * relu(mean_t f_t - K / N) to the loss."""

    causal = True

    def __init__(self, width: int, *, penalty: float = PENALTY) -> None:
        super().__init__()
        self.penalty = penalty
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N"]:
        """Every row by itself."""
        return self.score(x)[..., 0].sigmoid()


class TwoWayChoice(nn.Module):
    """f_t = softmax((u . x_t + b, w . x_t + c) / tau)_2, tau learned, 0.3 sqrt(width) at the start."""

    causal = True

    def __init__(self, width: int, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.score = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.full((1,), temperature * math.sqrt(width)))

    def forward(self, x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N"]:
        """Every row by itself."""
        return (self.score(x) / self.temperature).softmax(-1)[..., 1]


class RandomChoice(nn.Module):
    """Rows by chance, equally in training and in evaluation: f is 1 for `rows(N)` of them. A baseline."""

    causal = False

    def __init__(self, rows: Callable[[int], int] = root_rows, *, seed: int = 0) -> None:
        super().__init__()
        self.rows, self.generator = rows, torch.Generator().manual_seed(seed)

    def forward(self, x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N"]:
        """Drawn anew at each call."""
        drawn = torch.rand(x.shape[:2], generator=self.generator).to(x.device)
        drawn = drawn if valid is None else drawn.masked_fill(~valid, -1.0)
        chosen = drawn.topk(min(self.rows(x.shape[1]), x.shape[1]), dim=1).indices
        return torch.zeros_like(x[..., 0]).scatter(1, chosen, 1.0)


class SparseHybrid(nn.Module):
    """y_t = x_t + f_t attention(x)_t for the rows t that are chosen, y_t = x_t for all others.

    In training mode every row is attended and f alone weighs it; in evaluation only the chosen rows are
    computed: the `rows(N)` of largest f, O(K N D), or with `threshold` all rows with f_t above it.

    Args:
        width, heads; choice: f, `SoftmaxChoice`, `SigmoidChoice` (unless given) or `TwoWayChoice`.
        rows: K of a length (ceil sqrt N). It looks at the whole sequence: not causal, though attention is.
        threshold: causal for a choice that is (ours, for decoding; the official code has none); K then
            only sets the penalty. causal: attention sees earlier tokens alone.

    `auxiliary` is the penalty of the last call in training mode, 0 for choices without one; add it to the
    loss. Shapes: (B, N, width) -> (B, N, width). Has state (keys and values so far) with a threshold and a
    causal choice. Source: Arora et al. 2023, arXiv 2312.04927, HazyResearch/zoology mixers/selective.py,
    which adds in place into its input in evaluation. The paper's rule without parameters (tokens that
    repeat earlier ones) is not here.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        choice: RowChoice | None = None,
        rows: Callable[[int], int] = root_rows,
        threshold: float | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.rows, self.threshold, self.causal = heads, rows, threshold, causal
        self.choice = SigmoidChoice(width) if choice is None else choice
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.auxiliary = torch.zeros(())

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence."""
        query, key, value = self._project(x)
        return self._mix(x, query, key, value, valid, past=0)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no penalty: that of the last call hangs on the graph of its gradients."""
        return self.__dict__ | {"auxiliary": torch.zeros(())}

    def start(self, batch: int) -> State:
        """No keys and values yet."""
        if self.threshold is None or not self.choice.causal or not self.causal:
            raise ValueError(
                "SparseHybrid chooses among the whole sequence; to go on piece by piece give it a threshold, "
                "a choice that looks at each token alone (SigmoidChoice, TwoWayChoice), and causal=True"
            )
        weight = self.out.weight
        none = weight.new_zeros(batch, self.heads, 0, weight.shape[0] // self.heads)
        return State(
            {"key": none, "value": none}, torch.zeros(batch, dtype=torch.int64, device=weight.device)
        )

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state with their keys and values."""
        query, key, value = self._project(x)
        key = torch.cat([state["key"].to(key.dtype), key], 2)
        value = torch.cat([state["value"].to(value.dtype), value], 2)
        y = self._mix(x, query, key, value, None, past=key.shape[2] - x.shape[1])
        return y, State({"key": key, "value": value}, state.position + x.shape[1])

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _mix(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, past: int
    ) -> Tensor:
        share = self.choice(x, valid)
        if valid is not None:
            share = share.masked_fill(~valid, 0.0)
        keys = Tokens(key.shape[2], total=key.shape[2], valid=valid)
        if self.training:
            check_tokens("SparseHybrid in training", x=x)
            self.auxiliary = self._penalty(share, valid)
            place = torch.arange(past, past + x.shape[1], device=x.device).expand(x.shape[0], -1)
            return x + share[..., None] * self._attend(query, key, value, place, keys)
        weight, chosen = self._chosen(share, valid)
        if not chosen.shape[1]:
            return x
        index = chosen[:, None, :, None].expand(-1, self.heads, -1, query.shape[-1])
        found = self._attend(query.gather(2, index), key, value, past + chosen, keys)
        added = (weight[..., None] * found).to(x.dtype)
        return x.scatter_add(1, chosen[..., None].expand(-1, -1, x.shape[2]), added)

    def _chosen(self, share: Tensor, valid: Tensor | None) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """f and place of the rows to attend; f is 0 for those that fill up a shorter choice."""
        if self.threshold is not None:
            wanted = (share > self.threshold).sum(1)
        else:
            lengths = [share.shape[1]] * len(share) if valid is None else valid.sum(1).tolist()
            wanted = torch.tensor([min(self.rows(n), n) for n in lengths], device=share.device)
        most = int(wanted.max()) if len(wanted) else 0
        weight, chosen = share.topk(most, dim=1)
        return weight * (torch.arange(most, device=share.device) < wanted[:, None]), chosen

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, place: Tensor, keys: Tokens) -> Tensor:
        found = attend(
            query, key, value, pattern=causal() if self.causal else None,
            q_at=Tokens.at(place, total=keys.total), k_at=keys,
        )  # fmt: skip
        return self.out(torch.as_tensor(found).transpose(1, 2).flatten(2))

    def _penalty(self, share: Tensor, valid: Tensor | None) -> Tensor:
        weight = getattr(self.choice, "penalty", 0.0)
        if not weight:
            return share.new_zeros(())
        count = share.numel() if valid is None else int(valid.sum())
        return weight * (share.sum() / max(1, count) - self.rows(share.shape[1]) / share.shape[1]).relu()


def _make(setting: Setting) -> SparseHybrid:
    threshold = THRESHOLD if setting.causal else None
    return SparseHybrid(setting.width, setting.heads, threshold=threshold, causal=setting.causal)


register_mixer(
    MixerEntry(
        "sparse_hybrid",
        _make,
        frozenset({"NS", "CS"}),
        stateful=True,
        padding=True,
        differentiable="almost",
        permutes=True,
        why_not=(
            "rows are chosen and attended within one sequence; the causal form chooses by a threshold, "
            "where the paper takes the largest of the whole sequence"
        ),
    )
)
