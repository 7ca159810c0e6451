"""Graph layers that are wrong in one way each, for `attlas.layers.check_graph_layer` to find."""

import torch
from torch import nn

from attlas.graph import Graph, coalesce, segment_reduce, to_padded, with_self_loops
from attlas.layers import graph_of


class Right(nn.Module):
    """x_i W + sum_j (x_j W' + e_ij W''): messages along the edges, spoilt in one way each below."""

    state = False

    def __init__(self, setting):
        super().__init__()
        self.own = nn.Linear(setting.width, setting.width)
        self.other = nn.Linear(setting.width, setting.width)
        if setting.edge_width:
            self.edge = nn.Linear(setting.edge_width, setting.width)
        if setting.edge_types:
            self.kind = nn.Embedding(setting.edge_types, setting.width)

    def forward(self, x, edge_index, edge_attr=None, batch=None):
        graph, edge = graph_of("layer", x, edge_index, edge_attr, batch)
        graph, edge = self.changed(graph, edge)
        message = self.message(x, graph)
        if hasattr(self, "edge"):
            message = message + self.edge(edge)
        if hasattr(self, "kind"):
            message = message + self.kind(edge)
        out = self.own(x) + self.sum(message, graph)
        out = self.finish(out, x, graph)
        return (out, message) if self.state else out

    def changed(self, graph, edge):
        return graph, edge

    def message(self, x, graph):
        return self.other(x)[graph.sender]

    def sum(self, message, graph):
        return segment_reduce(message, graph.by_receiver)

    def finish(self, out, x, graph):
        return out


class RightState(Right):
    """With an edge state: the messages."""

    state = True


class EverySeesEvery(Right):
    """The mean over the nodes of its graph beside the messages: any node matters."""

    def finish(self, out, x, graph):
        padded, there = to_padded(graph, x)
        return out + (padded.sum(1) / there.sum(1, keepdim=True).clamp_min(1))[graph.graph_of]


class TwoHops(Right):
    def message(self, x, graph):
        near = x + segment_reduce(x[graph.sender], graph.by_receiver)
        return self.other(near)[graph.sender]


class Shortens(Right):
    def finish(self, out, x, graph):
        return out[:-1]


class ReturnsMore(Right):
    state = True


class Random(Right):
    def finish(self, out, x, graph):
        return out + torch.rand_like(out)


class NoNumber(Right):
    def finish(self, out, x, graph):
        return out / 0


class Narrow(Right):
    """float32 whatever comes."""

    def forward(self, x, edge_index, edge_attr=None, batch=None):
        return super().forward(x, edge_index, edge_attr, batch).float()


class Backwards(Right):
    """An edge_index is read the other way round than a Graph."""

    def forward(self, x, edge_index, edge_attr=None, batch=None):
        turned = edge_index if isinstance(edge_index, Graph) else edge_index.flip(0)
        return super().forward(x, turned, edge_attr, batch)


class ForgetsTheGraphsFeatures(Right):
    def forward(self, x, edge_index, edge_attr=None, batch=None):
        edge = torch.zeros(21, 8).to(x) if edge_attr is None else edge_attr
        return super().forward(x, edge_index, edge, batch)


class ForgetsTheBatch(EverySeesEvery):
    def forward(self, x, edge_index, edge_attr=None, batch=None):
        return super().forward(x, edge_index, edge_attr)


class TakesAnything(Right):
    def forward(self, x, edge_index, edge_attr=None, batch=None):
        nodes = edge_index.nodes if isinstance(edge_index, Graph) else len(x)
        return super().forward(x[:nodes], edge_index, edge_attr, batch)


class CountsNodes(Right):
    def finish(self, out, x, graph):
        return out + torch.arange(len(x)).to(x)[:, None]


class CountsEdges(Right):
    def message(self, x, graph):
        return super().message(x, graph) * torch.arange(graph.edges).to(x)[:, None]


class MixesTheBatch(Right):
    def finish(self, out, x, graph):
        return out + x.mean(0)


class DividesByNothing(Right):
    def sum(self, message, graph):
        return super().sum(message, graph) / graph.in_degree[:, None]


class RootOfNothing(Right):
    """Numbers, but not their gradients."""

    def finish(self, out, x, graph):
        return out + ((x * graph.in_degree[:, None]) ** 2).sqrt()


class HearsNobody(Right):
    """Where nobody sends, the mean of all nodes."""

    def finish(self, out, x, graph):
        return torch.where((graph.in_degree == 0)[:, None], out + x.mean(0), out)


class AddsLoops(Right):
    """As PyG's GATConv: its own loop in place of those that are there."""

    def changed(self, graph, edge):
        return with_self_loops(graph), edge


class LeavesOutLoops(Right):
    def message(self, x, graph):
        return super().message(x, graph) * (graph.sender != graph.receiver).to(x)[:, None]


class Merges(Right):
    def changed(self, graph, edge):
        return coalesce(graph)[0], edge


class StatesByPlace(Right):
    """Copies of an edge get other states."""

    state = True

    def forward(self, x, edge_index, edge_attr=None, batch=None):
        out, state = super().forward(x, edge_index, edge_attr, batch)
        return out, state.cumsum(0)


class Pads(Right):
    """Sums all nodes of the padded batch with a weight of 0 for those of other graphs."""

    def finish(self, out, x, graph):
        same = (graph.graph_of[:, None] == graph.graph_of).to(x)
        return out + same @ x


class SendsBack(Right):
    def message(self, x, graph):
        return self.other(x)[graph.receiver] + super().message(x, graph)

    def sum(self, message, graph):
        return super().sum(message, graph) + segment_reduce(message, graph.by_sender)


class IgnoresFeatures(Right):
    def changed(self, graph, edge):
        return graph, torch.zeros_like(edge)


class IgnoresNodes(Right):
    def forward(self, x, edge_index, edge_attr=None, batch=None):
        return super().forward(x.detach(), edge_index, edge_attr, batch)


class Unused(Right):
    def __init__(self, setting):
        super().__init__(setting)
        self.never = nn.Linear(2, 2)


class HalfTheGradient(Right):
    def finish(self, out, x, graph):
        return out.detach() / 2 + out / 2


class NoFloat32(Right):
    def finish(self, out, x, graph):
        return out if out.dtype == torch.float64 else out * 1.01


class NoGraph(Right):
    """As PyG's own layers: its edge_index is a tensor and nothing else."""

    def forward(self, x, edge_index, edge_attr=None, batch=None):
        sender, receiver = edge_index
        return self.own(x).index_add(0, receiver, self.other(x)[sender])


class NormalisedInTraining(Right):
    """torch's batch norm, which refuses one row in training."""

    def __init__(self, setting):
        super().__init__(setting)
        self.norm = nn.BatchNorm1d(setting.width)

    def finish(self, out, x, graph):
        return self.norm(out)


class CentredInTraining(Right):
    def finish(self, out, x, graph):
        return out / out.std(0, correction=0) if self.training else out


class IgnoresTypes(Right):
    def changed(self, graph, edge):
        return graph, torch.zeros_like(edge)


class OneRowAtLeast(Right):
    def finish(self, out, x, graph):
        return out if len(out) else out.new_zeros(1, out.shape[1])
