"""Meshes and flows: geometry, exact solutions of the finite elements, and repeatable trajectories."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import spsolve

from attlas.tasks.flows import (
    DIFFUSION,
    FASTEST,
    INFLOW,
    OUTFLOW,
    STEP,
    WALL,
    Elements,
    potential_flow,
    simulate_flow,
)  # fmt: skip
from attlas.tasks.meshes import airfoil_mesh, delaunay_mesh
from skips import needs


def areas(mesh):
    one, two = (mesh.points[mesh.triangles[:, at]] - mesh.points[mesh.triangles[:, 0]] for at in (1, 2))
    return (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]) / 2


def euler(mesh):
    return len(mesh.points) - mesh.graph.edges // 2 + len(mesh.triangles)


@pytest.mark.parametrize(
    ("nodes", "radius", "sides"), [(400, 0.0, 0), (100, 0.12, 8), (400, 0.12, 14), (900, 0.12, 22)]
)
def test_a_delaunay_mesh_covers_the_square_but_for_the_disc(nodes, radius, sides):
    mesh = delaunay_mesh(nodes, seed=3, radius=radius)
    area = areas(mesh)
    assert (area > 0).all(), "every triangle turns to the left"
    polygon = sides / 2 * radius**2 * np.sin(2 * np.pi / sides) if radius else 0.0
    assert float(area.sum()) == pytest.approx(1 - polygon, abs=1e-9), "nothing is left inside the rim"
    assert len(mesh.inner) == len(mesh.inner.unique()) == sides, "every point of the rim is on the wall"
    assert euler(mesh) == (0 if radius else 1) and (len(mesh.inner) > 0) == (radius > 0)
    graph = mesh.graph
    assert not (graph.sender == graph.receiver).any() and not graph.has_equal_edges
    assert (graph.sender - graph.receiver).abs().max() < 70, "neighbours stand near each other"


@needs("pygsp")
def test_the_airfoil_is_pygsps():
    mesh = airfoil_mesh()
    assert (len(mesh.points), mesh.graph.edges, len(mesh.triangles)) == (4253, 2 * 12_289, 8034)
    assert len(mesh.outer) == 51 and len(mesh.inner) == 425 and euler(mesh) == 1 - 3
    assert (areas(mesh) > 0).all()


def test_elements_integrate_what_they_can_exactly():
    mesh = delaunay_mesh(100, seed=1)
    elements = Elements(mesh)
    x, y = mesh.points.numpy().T
    ones, area = np.ones(len(x)), float(areas(mesh).sum())
    assert ones @ elements.mass() @ ones == pytest.approx(area)
    linear = 3 * x - 2 * y
    assert linear @ elements.stiffness() @ linear == pytest.approx(13 * area), "|grad|^2 = 9 + 4"
    np.testing.assert_allclose(elements.stiffness() @ ones, 0, atol=1e-12)
    velocity = np.tile([0.5, 2.0], (len(mesh.triangles), 1))
    assert ones @ elements.convection(velocity) @ linear == pytest.approx((1.5 - 4.0) * area)
    np.testing.assert_allclose(elements.at_nodes(velocity), np.tile([0.5, 2.0], (len(x), 1)))


def test_without_an_obstacle_the_potential_flow_is_uniform():
    elements = Elements(delaunay_mesh(100, seed=2, radius=0.0))
    np.testing.assert_allclose(
        potential_flow(elements, 0.7),
        np.tile([np.cos(0.7), np.sin(0.7)], (len(elements.area), 1)),
        atol=1e-10,
    )


def test_walls_turn_the_flow_aside():
    mesh = delaunay_mesh(900, seed=4)
    elements = Elements(mesh)
    velocity = elements.at_nodes(potential_flow(elements, 0.0))
    rim = mesh.inner.unique()
    middle = mesh.points[rim].mean(0)
    normal = ((mesh.points[rim] - middle) / 0.12).numpy()
    through = np.abs((velocity[rim.numpy()] * normal).sum(1))
    along = np.abs(velocity[rim.numpy()] @ np.array([0.0, 1.0]))
    assert through.mean() < 0.35 and along.max() > 0.5
    # Around a circle in free space the largest speed is 2; the square narrows the way.
    assert 1.6 < np.linalg.norm(velocity, axis=1).max() < 3.0


def test_a_trajectory_follows_its_equation_and_its_boundary():
    mesh = delaunay_mesh(150, seed=5)
    flow = simulate_flow(mesh, seed=6, steps=8)
    elements = Elements(mesh)
    velocity = potential_flow(elements, flow.angle)
    mass, step = elements.mass(), STEP
    system = (mass + step * (DIFFUSION * elements.stiffness() + elements.convection(velocity))).tocsr()
    free = flow.counted.numpy()
    states, source = flow.states[..., 0].double().numpy(), flow.others[:, 2].double().numpy()
    # A state holds the inflow of the step after it: its own stands in the state before.
    whole = states[1:].copy()
    whole[:, ~free] = states[:-1, ~free]
    for before, after in pairwise(whole):
        right = (mass @ (before + step * source))[free] - system[free][:, ~free] @ after[~free]
        expected = spsolve(system[free][:, free].tocsc(), right)
        np.testing.assert_allclose(after[free], expected, atol=1e-6)
    assert np.ptp(states[:, ~free], axis=1).max() < 1e-6 and np.ptp(states[:, ~free]) > 0.01


def test_elements_are_fine_enough_for_plain_galerkin():
    # Cell Peclet number |b| h / nu, h = the element's length along the flow: below 2 nothing oscillates.
    for seed in range(4):
        elements = Elements(delaunay_mesh(300, seed=seed))
        velocity = potential_flow(elements, float(seed))
        speed = np.linalg.norm(velocity, axis=1)
        slopes = np.abs(np.einsum("ta,tja->tj", velocity, elements.gradient)).sum(1)
        assert (speed * (2 * speed / slopes)).max() / DIFFUSION < 2


@needs("pygsp")
def test_speeds_at_the_sharp_edges_of_the_airfoil_are_limited():
    mesh = airfoil_mesh()
    flow = simulate_flow(mesh, seed=0, steps=1)
    assert np.linalg.norm(potential_flow(Elements(mesh), flow.angle), axis=1).max() > 3 * FASTEST
    assert flow.others[:, :2].norm(dim=1).max() <= FASTEST + 1e-6


def test_kinds_follow_the_inflow():
    flow = simulate_flow(delaunay_mesh(400, seed=7), seed=8, steps=1)
    toward = torch.tensor([np.cos(flow.angle), np.sin(flow.angle)], dtype=torch.float32)
    height = (flow.positions - 0.5) @ toward
    assert height[flow.kind == INFLOW].max() < height[flow.kind == OUTFLOW].max()
    assert height[flow.kind == INFLOW].mean() < -0.2 < 0.2 < height[flow.kind == OUTFLOW].mean()
    assert torch.equal((flow.kind == WALL).nonzero()[:, 0], flow.mesh.inner.unique())
    assert torch.equal(flow.counted, flow.kind != INFLOW)
    again = simulate_flow(delaunay_mesh(400, seed=7), seed=8, steps=1)
    assert torch.equal(flow.states, again.states)
    assert not torch.equal(flow.states, simulate_flow(flow.mesh, seed=9, steps=1).states)


def test_wrong_meshes():
    with pytest.raises(ValueError, match=r"nodes must be at least 25 and radius in 0 \.\. 0.3, got 9, 0.12"):
        delaunay_mesh(9, seed=0)
