"""Advection and diffusion of a scalar on a mesh, simulated by linear finite elements.

No package ships data of fluid dynamics: everything that flows here is computed. Legend: n nodes, t triangles,
S steps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attlas.tasks.meshes import Mesh

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "DIFFUSION", "FASTEST", "INFLOW", "NODE_KINDS", "NORMAL", "OUTFLOW", "STEP", "WALL", "Elements", "Flow",
    "potential_flow", "simulate_flow",
]  # fmt: skip

NODE_KINDS = 9
"""As in MeshGraphNet's data: normal, obstacle, airfoil, handle, inflow, outflow, wall, and two free ones."""
NORMAL, INFLOW, OUTFLOW, WALL = 0, 4, 5, 6
DIFFUSION, STEP = 0.08, 0.05
FASTEST = 4.0
"""A potential flow is infinitely fast at a sharp edge; around a disc it stays below this."""


@dataclass(frozen=True, eq=False)
class Flow:
    """A trajectory: states (S + 1, n, 1), others (n, 3) = velocity and source, kind (n,), all float32.

    counted: nodes to predict (normal, outflow, wall); inflow nodes are prescribed, and a state holds there
    what is prescribed for the step after it, without which that step is unknown. angle: of the inflow.
    """

    mesh: Mesh
    states: Tensor
    others: Tensor
    kind: Tensor
    angle: float

    @property
    def counted(self) -> Tensor:
        """(n,) bool."""
        return self.kind != INFLOW

    @property
    def positions(self) -> Tensor:
        """(n, 2) float32."""
        return self.mesh.points.to(torch.float32)


class Elements:
    """Linear finite elements on a mesh: gradients of the three hat functions of every triangle, its area."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.nodes = mesh, len(mesh.points)
        self.triangles, points = mesh.triangles.numpy(), mesh.points.numpy()
        corner = points[self.triangles]
        opposite = corner[:, [2, 0, 1]] - corner[:, [1, 2, 0]]
        double = opposite[:, 0, 0] * opposite[:, 1, 1] - opposite[:, 0, 1] * opposite[:, 1, 0]
        self.area = double / 2
        turned = np.stack([-opposite[..., 1], opposite[..., 0]], -1)
        self.gradient = turned / double[:, None, None]

    def matrix(self, entries: np.ndarray) -> "csr_array":
        """The sum of every triangle's (3, 3) entries."""
        from scipy.sparse import coo_array

        rows, columns = (np.broadcast_to(part, entries.shape) for part in (
            self.triangles[:, :, None], self.triangles[:, None, :]
        ))  # fmt: skip
        flat = (entries.ravel(), (rows.ravel(), columns.ravel()))
        return coo_array(flat, (self.nodes, self.nodes)).tocsr()

    def mass(self) -> "csr_array":
        """M_ij = ∫ φ_i φ_j."""
        return self.matrix(self.area[:, None, None] * (np.ones((3, 3)) + np.eye(3)) / 12)

    def stiffness(self) -> "csr_array":
        """K_ij = ∫ ∇φ_i . ∇φ_j."""
        return self.matrix(self.area[:, None, None] * np.einsum("tia,tja->tij", self.gradient, self.gradient))

    def convection(self, velocity: np.ndarray) -> "csr_array":
        """C_ij = ∫ φ_i (b . ∇φ_j) for a velocity b (t, 2) that is constant on each triangle."""
        along = np.einsum("ta,tja->tj", velocity, self.gradient)
        return self.matrix(
            np.broadcast_to((self.area[:, None] / 3 * along)[:, None, :], (len(self.area), 3, 3))
        )

    def at_nodes(self, values: np.ndarray) -> np.ndarray:
        """Values of triangles (t, a) as means over the triangles at each node, weighted by area."""
        total, weight = np.zeros((self.nodes, values.shape[1])), np.zeros(self.nodes)
        for at in range(3):
            np.add.at(total, self.triangles[:, at], values * self.area[:, None])
            np.add.at(weight, self.triangles[:, at], self.area)
        return total / weight[:, None]


def potential_flow(elements: Elements, angle: float) -> np.ndarray:
    """Velocity of every triangle (t, 2): ∇φ with Δφ = 0, no flow through walls, (cos, sin) at the rim."""
    from scipy.sparse.linalg import spsolve

    mesh = elements.mesh
    inflow = np.array([np.cos(angle), np.sin(angle)])
    line = mesh.points.numpy()[mesh.outer.numpy()]
    along = line[:, 1] - line[:, 0]
    # The triangle lies to the left of its edges: the outward normal is the edge turned to the right.
    through = along[:, 1] * inflow[0] - along[:, 0] * inflow[1]
    right = np.zeros(elements.nodes)
    for at in range(2):
        np.add.at(right, mesh.outer[:, at].numpy(), through / 2)
    # φ is known up to a constant: node 0 is held at 0.
    matrix = elements.stiffness()[1:, 1:]
    potential = np.concatenate([[0.0], spsolve(matrix.tocsc(), right[1:])])
    return np.einsum("tj,tja->ta", potential[elements.triangles], elements.gradient)


def simulate_flow(
    mesh: Mesh,
    *,
    seed: int,
    steps: int = 30,
    diffusion: float = DIFFUSION,
    step: float = STEP,
    sources: int = 3,
) -> Flow:
    """∂u/∂t + b . ∇u = ν Δu + f by implicit Euler steps: (M + dt (ν K + C)) u' = M (u + dt f).

    b is a potential flow of speed 1 far outside at a random angle; u is prescribed (a sine of time with a
    random phase) where it enters, and free elsewhere (no diffusive flux through walls and outflow). u starts
    as Gaussian bumps; f is `sources` steady ones, at random places. One sparse LU for all steps.

    Plain Galerkin, without stabilisation: the cell Peclet number |b| h / ν stays below 2 on Delaunay meshes
    of at least 300 nodes. Where b is faster than FASTEST (at sharp edges), it is shortened to that.
    """
    from scipy.sparse.linalg import splu

    generator = np.random.default_rng(seed)
    angle = float(generator.uniform(0, 2 * np.pi))
    elements = Elements(mesh)
    velocity = potential_flow(elements, angle)
    velocity *= FASTEST / np.linalg.norm(velocity, axis=1, keepdims=True).clip(min=FASTEST)
    kind = _kinds(mesh, angle)
    points, fixed = mesh.points.numpy(), kind == INFLOW
    source = 10.0 * _bumps(points, generator, sources)
    phase, rate = generator.uniform(0, 2 * np.pi), generator.uniform(2, 6)
    mass = elements.mass()
    matrix = (mass + step * (diffusion * elements.stiffness() + elements.convection(velocity))).tolil()
    matrix[fixed] = 0
    matrix[fixed, fixed] = 1
    solve = splu(matrix.tocsc()).solve
    state = _bumps(points, generator, sources)
    entering = 0.5 * np.sin(phase + rate * step * np.arange(steps + 2))
    state[fixed] = entering[0]
    states = [state]
    for at in range(1, steps + 1):
        right = mass @ (states[-1] + step * source)
        right[fixed] = entering[at]
        states.append(solve(right))
    # What enters next decides the next state and is in none of the fields before.
    for at, state in enumerate(states):
        state[fixed] = entering[at + 1]
    others = np.concatenate([elements.at_nodes(velocity), source[:, None]], 1)
    return Flow(
        mesh, torch.tensor(np.stack(states)[..., None], dtype=torch.float32),
        torch.tensor(others, dtype=torch.float32), torch.from_numpy(kind), angle,
    )  # fmt: skip


def _kinds(mesh: Mesh, angle: float) -> np.ndarray:
    """Of every node; where the outer boundary faces the flow it is inflow, and an end of such an edge too."""
    line = mesh.points.numpy()[mesh.outer.numpy()]
    along = line[:, 1] - line[:, 0]
    through = along[:, 1] * np.cos(angle) - along[:, 0] * np.sin(angle)
    kind = np.full(len(mesh.points), NORMAL, dtype=np.int64)
    kind[mesh.inner.numpy().ravel()] = WALL
    kind[mesh.outer.numpy()[through >= 0].ravel()] = OUTFLOW
    kind[mesh.outer.numpy()[through < 0].ravel()] = INFLOW
    return kind


def _bumps(points: np.ndarray, generator: np.random.Generator, count: int) -> np.ndarray:
    found = np.zeros(len(points))
    for _ in range(count):
        middle, wide = generator.uniform(0.1, 0.9, 2), generator.uniform(0.05, 0.12)
        found += generator.uniform(-1, 1) * np.exp(-((points - middle) ** 2).sum(1) / (2 * wide**2))
    return found
