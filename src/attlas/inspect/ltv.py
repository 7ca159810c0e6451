"""A mixer as a linear time-varying system: what all of them can be written as once their gates are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attlas.scan import Affine, prefix

__all__ = ["LTV"]


@dataclass(frozen=True, eq=False)
class LTV:
    """h_i = Lam_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i, with h_{-1} = 0 and diagonal Lam_i.

    Shapes: Lam (*L, n, S), B (*L, n, S, d), C (*L, n, e, S), D (*L, n, e, d) or None for 0; S is the state
    size N of the source, *L are independent systems (batch, heads, channels). Source: arXiv 2405.15731.
    Raises ValueError where the shapes do not fit.
    """

    Lam: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None

    def __post_init__(self) -> None:
        steps, state = self.Lam.shape[:-1], self.Lam.shape[-1]
        expected = {"B": (*steps, state, self.inputs), "C": (*steps, self.outputs, state)}
        if self.D is not None:
            expected["D"] = (*steps, self.outputs, self.inputs)
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {shape} beside Lam of {tuple(self.Lam.shape)}, got {found}"
                )

    @property
    def length(self) -> int:
        """Number of steps n."""
        return self.Lam.shape[-2]

    @property
    def size(self) -> int:
        """Numbers in the state of one system."""
        return self.Lam.shape[-1]

    @property
    def inputs(self) -> int:
        """Width d of u."""
        return self.B.shape[-1]

    @property
    def outputs(self) -> int:
        """Width e of y."""
        return self.C.shape[-2]

    def run(self, u: Float[Tensor, "*L n d"]) -> Float[Tensor, "*L n e"]:
        """The outputs, by a scan over the steps. Cost: O(n S (d + e))."""
        into = (self.B @ u.unsqueeze(-1)).squeeze(-1)
        (_, states), _ = prefix(Affine(), (self.Lam.expand_as(into), into), dim=into.dim() - 2)
        found = (self.C @ states.unsqueeze(-1)).squeeze(-1)
        return found if self.D is None else found + (self.D @ u.unsqueeze(-1)).squeeze(-1)

    def transfer(self, rows: Sequence[int] | None = None) -> Float[Tensor, "*L rows n e d"]:
        """Phi_ij = C_i (Lam_i ... Lam_{j+1}) B_j (+ D_i at j = i, 0 at j > i), y_i = sum_j Phi_ij u_j.

        `rows`: only these i, all by default. Products are formed as they stand, so that a Lam of 0 or below 0
        is exact. For analysis: O(n S d e) per row.
        """
        rows = range(self.length) if rows is None else rows
        wrong = [row for row in rows if not 0 <= row < self.length]
        if wrong:
            raise ValueError(f"rows must lie in 0 .. {self.length - 1}, got {wrong}")
        return torch.stack([self._row(row) for row in rows], -4)

    def _row(self, row: int) -> Tensor:
        seen, parts = self.C[..., row, :, :], []
        for step in range(row, -1, -1):
            parts.append(seen @ self.B[..., step, :, :])
            seen = seen * self.Lam[..., step, None, :]
        found = torch.stack(parts[::-1], -3)
        if self.D is not None:
            found[..., row, :, :] += self.D[..., row, :, :]
        later = found.new_zeros(*found.shape[:-3], self.length - 1 - row, *found.shape[-2:])
        return torch.cat([found, later], -3)

    def memory_kernel(self, rows: Sequence[int] | None = None) -> Float[Tensor, "*L lags"]:
        """Mean over the rows i of the Frobenius norm of Phi_{i, i - lag}, for lag = 0 .. the largest row.

        A row counts at those lags that it has. Independent systems: one kernel each.
        """
        rows = range(self.length) if rows is None else rows
        found = self.transfer(rows).flatten(-2).norm(dim=-1)
        most = max(rows) + 1
        total, count = found.new_zeros(*found.shape[:-2], most), found.new_zeros(most)
        for index, row in enumerate(rows):
            total[..., : row + 1] += found[..., index, : row + 1].flip(-1)
            count[: row + 1] += 1
        return total / count
