"""Nets on meshes, the simulator around them, and rollouts with prescribed nodes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attlas.graph import Graph, batch, undirected
from attlas.models.mesh_graph_net import MeshGraphNet
from attlas.models.mesh_simulator import MeshSimulator, RunningNormaliser, all_rollout_error, rollout
from attlas.models.mesh_transformer import MeshTransformer

RING = undirected(Graph.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), num_nodes=5))[0]


def nets():
    torch.manual_seed(0)
    return {
        "transformer": MeshTransformer(4, 2, width=8, heads=2, layers=2).eval(),
        "messages": MeshGraphNet(4, 2, width=8, layers=2).eval(),
    }


@pytest.mark.parametrize("name", ["transformer", "messages"])
def test_a_batch_is_its_graphs_one_by_one(name):
    net = nets()[name].double()
    x, places = torch.randn(2, 10, 4, dtype=torch.float64)[0], torch.rand(10, 2, dtype=torch.float64)
    together = net(x, batch([RING, RING]), positions=places)
    for at in (slice(0, 5), slice(5, 10)):
        torch.testing.assert_close(net(x[at], RING, positions=places[at]), together[at])


def test_self_loops_are_off_unless_asked_for():
    bare, looped = nets()["transformer"], MeshTransformer(4, 2, width=8, heads=2, layers=2, self_loops=True)
    looped.load_state_dict(bare.state_dict())
    x = torch.randn(5, 4)
    again = undirected(Graph.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), num_nodes=5))[0]
    ends = torch.cat([again.edge_index, torch.arange(5).expand(2, 5)], 1)
    torch.testing.assert_close(looped(x, RING), bare(x, Graph.from_edge_index(ends, num_nodes=5)))
    assert (looped(x, RING) - bare(x, RING)).abs().max() > 1e-5


def test_messages_see_vectors_along_links():
    net = nets()["messages"].double()
    for part in net.parameters():  # at its start the net is almost constant
        nn.init.normal_(part, std=0.5)
    x, places = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    out = net(x, RING, positions=places)
    torch.testing.assert_close(net(x, RING, positions=places + 3.0), out)
    assert (net(x, RING, positions=places * 2) - out).abs().max() > 1e-4
    assert (net(x, RING, positions=-places) - out).abs().max() > 1e-4


def test_running_statistics_are_those_of_all_rows():
    x = torch.randn(60, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 1e3, 7.0])
    norm = RunningNormaliser(3)
    assert torch.equal(norm(x), x), "before anything was seen"
    for part in x.split(11):
        norm.see(part)
    expected = (x[:, :2] - x[:, :2].mean(0)) / x[:, :2].std(0, correction=0)
    torch.testing.assert_close(norm(x)[:, :2], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(norm(x)[:, 2], torch.zeros(60)), "a constant channel is 0, not NaN"
    torch.testing.assert_close(norm.undo(norm(x)), x)


def test_sums_stay_in_float64_and_small_channels_count():
    x = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([1.0, 1e-9]) + torch.tensor([1e4, 0.0])
    norm = RunningNormaliser(2)
    norm.see(x)
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    for cast in (norm.float(), norm.to(torch.bfloat16), nn.Sequential(norm).half()[0]):
        assert {part.dtype for part in cast.buffers()} == {torch.float64}
        torch.testing.assert_close(cast(x), expected, rtol=1e-5, atol=1e-5)


class Given(nn.Module):
    """A net that tells what it was given, and answers with a constant."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = answer, None

    def forward(self, features, graph, *, positions):
        self.seen = features
        return self.answer.expand(len(features), -1)


def test_the_loss_counts_normalised_increments_of_counted_nodes():
    net = Given(torch.tensor([[0.5]]))
    simulator = MeshSimulator(net, fields=1, others=2, kinds=3)
    state, following = torch.randn(2, 5, 1)
    others, kind = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 0])
    counted = kind == 0
    found = simulator.train().loss(state, following, others, kind, counted, RING)
    step = (following - state)[counted]
    target = (step - step.mean()) / step.std(correction=0)
    torch.testing.assert_close(found, (0.5 - target).square().mean())
    one_hot = torch.eye(3)[kind]
    torch.testing.assert_close(net.seen[:, 3:], one_hot)
    moved = simulator.eval()(state, others, kind, RING)
    torch.testing.assert_close(moved, state + 0.5 * step.std(correction=0) + step.mean())


def test_noise_falls_on_counted_nodes_in_training_only():
    net = Given(torch.tensor([[0.0]]))
    simulator = MeshSimulator(net, fields=1, others=0, kinds=2, noise=10.0)
    state, kind = torch.zeros(5, 1), torch.tensor([0, 0, 0, 1, 1])
    arguments = (state, state + 1.0, torch.zeros(5, 0), kind, kind == 0, RING)
    simulator.train().loss(*arguments)
    first = net.seen[:, 0]
    assert first[:3].unique().numel() == 3 and first[3] == first[4], "prescribed nodes stay as they are"
    # The target leads from the noisy state to the true next one: their mean is 1 minus that of the noise.
    simulator.eval().loss(*arguments)
    assert net.seen[:, 0].unique().numel() == 1


def test_a_rollout_goes_on_from_predictions_and_keeps_prescribed_nodes():
    states = torch.arange(4.0)[:, None, None] * torch.ones(4, 5, 1)
    prescribed = torch.tensor([True, False, False, False, True])
    found = rollout(lambda state: 2 * state + 1, states, prescribed)
    assert found[:, 1, 0].tolist() == [0, 1, 3, 7] and found[:, 0, 0].tolist() == [0, 1, 2, 3]
    wrong = ((0 + 1 + 16) / 3) ** 0.5  # errors 0, 1, 4 at every counted node
    assert all_rollout_error(found, states, ~prescribed) == pytest.approx(wrong)
