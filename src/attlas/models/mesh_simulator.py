"""Next-step prediction on a mesh, rolled out: running normalisation, increments, prescribed nodes.

Source: Garnier et al. 2025, arXiv 2508.18051; Pfaff et al. 2020, arXiv 2010.03409.
Legend: n nodes, F fields, S steps, p other inputs.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.graph import Graph

__all__ = ["MeshSimulator", "RunningNormaliser", "all_rollout_error", "rollout"]

Net = Callable[..., Tensor]
LEAST = 1e-7  # standard deviation over root mean square below which a channel is taken as constant


class RunningNormaliser(nn.Module):
    """(x - mean) / deviation of all rows seen in training so far.

    The sums stay in float64 whatever type the module is cast to: in less, a mean far from 0 leaves nothing of
    the deviation.
    """

    total: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("total", "square"):
            self.register_buffer(name, torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningNormaliser":
        kept = {name: part.clone() for name, part in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, part in kept.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float64:
                setattr(self, name, part.to(moved.device))
        return self

    def see(self, x: Float[Tensor, "n F"]) -> None:
        """Rows that count from now on."""
        rows = x.detach().to(torch.float64)
        self.total += rows.sum(0)
        self.square += rows.square().sum(0)
        self.count += len(rows)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.count:
            return torch.zeros_like(x[0]), torch.ones_like(x[0])
        mean = self.total / self.count
        size = self.square / self.count
        deviation = (size - mean.square()).clamp_min(0.0).sqrt()
        deviation = torch.where(deviation <= LEAST * size.sqrt(), 1.0, deviation)
        return mean.to(x.dtype), deviation.to(x.dtype)

    def forward(self, x: Float[Tensor, "n F"]) -> Float[Tensor, "n F"]:
        """Normalised; as it is before anything was seen. A constant channel becomes 0."""
        mean, deviation = self._statistics(x)
        return (x - mean) / deviation

    def undo(self, x: Float[Tensor, "n F"]) -> Float[Tensor, "n F"]:
        """Back to the units of the data."""
        mean, deviation = self._statistics(x)
        return x * deviation + mean


class MeshSimulator(nn.Module):
    """state + increment that a net predicts from [state, other inputs, one-hot node type], all normalised.

    Args:
        net: maps (n, fields + others + kinds) and a graph, positions=, to (n, fields).
        fields, others: channels of state and of other inputs. kinds: of nodes.
        noise: standard deviation of the Gaussian noise on the state in training; the target is then the
            increment from the noisy state to the true next one.
    """

    def __init__(self, net: nn.Module, *, fields: int, others: int, kinds: int, noise: float = 0.0) -> None:
        super().__init__()
        self.net, self.kinds, self.noise = net, kinds, noise
        self.inputs, self.increments = RunningNormaliser(fields + others), RunningNormaliser(fields)

    def forward(
        self,
        state: Float[Tensor, "n F"],
        others: Float[Tensor, "n p"],
        kind: Int[Tensor, "n"],
        graph: Graph,
        positions: Float[Tensor, "n A"] | None = None,
    ) -> Float[Tensor, "n F"]:
        """The next state, in the units of the data."""
        found = self._normalised(state, others, kind, graph, positions)
        return state + self.increments.undo(found)

    def _normalised(
        self, state: Tensor, others: Tensor, kind: Tensor, graph: Graph, positions: Tensor | None
    ) -> Tensor:
        given = self.inputs(torch.cat([state, others], 1))
        one_hot = nn.functional.one_hot(kind, self.kinds).to(given.dtype)
        out: Tensor = self.net(torch.cat([given, one_hot], 1), graph, positions=positions)
        return out

    def loss(
        self,
        state: Float[Tensor, "n F"],
        following: Float[Tensor, "n F"],
        others: Float[Tensor, "n p"],
        kind: Int[Tensor, "n"],
        counted: Bool[Tensor, "n"],
        graph: Graph,
        positions: Float[Tensor, "n A"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the normalised increment at the counted nodes; these alone get noise."""
        if self.training:
            state = state + self.noise * torch.randn_like(state) * counted[:, None]
            self.inputs.see(torch.cat([state, others], 1))
            self.increments.see((following - state)[counted])
        found = self._normalised(state, others, kind, graph, positions)
        target = self.increments(following - state)
        return (found - target)[counted].square().mean()


@torch.no_grad()
def rollout(
    step: Callable[[Tensor], Tensor], states: Float[Tensor, "S n F"], prescribed: Bool[Tensor, "n"]
) -> Float[Tensor, "S n F"]:
    """From the first state on, step after step on what was predicted; prescribed nodes get true values."""
    found = [states[0]]
    for true in states[1:]:
        following = step(found[-1])
        found.append(torch.where(prescribed[:, None], true, following))
    return torch.stack(found)


def all_rollout_error(
    predicted: Float[Tensor, "S n F"], states: Float[Tensor, "S n F"], counted: Bool[Tensor, "n"]
) -> float:
    """Root of the mean squared error over all steps but the first, which is given, at the counted nodes."""
    return float((predicted - states)[1:, counted].square().mean().sqrt())
