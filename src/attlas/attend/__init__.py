"""Attention as message passing: `attend`, its normalisers, aggregates, states, backends and second pass.

out = attend(query, key, value, pattern=causal() & window(256))
out, state = merge([attend(..., return_state=True), attend(..., return_state=True)])
"""

from attlas._common.room import make_callable
from attlas.attend.adjacency import Binary, SoftThreshold, TopShare
from attlas.attend.aggregate import Aggregate, Max, Mean, Min, NeighbourMax, Sum
from attlas.attend.backends import BACKENDS, Choice, Fallbacks, choose, counting, record_fallback
from attlas.attend.block import forget_layouts
from attlas.attend.core import Planned, attend, explain, plan
from attlas.attend.cost import Cost, Machine, Shapes, cost
from attlas.attend.counts import OverCount, TimesLogCount
from attlas.attend.edge_sums import apply_weights, sum_over_edges
from attlas.attend.edge_weights import weights
from attlas.attend.flashsigmoid import flash_sigmoid, over_count_sigmoid
from attlas.attend.lssa import PortedPower, Scoring, ShiftPower, lssa, lssar, lssar_port
from attlas.attend.natten import na1d, na2d, na3d, neighbourhood
from attlas.attend.normaliser import (
    Chain,
    Identity,
    Normaliser,
    RowContext,
    Sigmoid,
    Softmax,
    Threshold,
)
from attlas.attend.observing import observing
from attlas.attend.ratio import L1, Ratio
from attlas.attend.reducers import (
    ArgmaxPerKey,
    BandMean,
    ColumnMean,
    Entropy,
    GroupShare,
    Reducer,
    RowDistance,
)
from attlas.attend.request import Piece, Request, make_request
from attlas.attend.second_pass import Above, edges_above, reduce
from attlas.attend.senders import SenderSoftmax
from attlas.attend.state import Part, State, merge
from attlas.attend.tile_cost import ATTENTION_SHARE, TileCost, tile_cost
from attlas.attend.via import via
from attlas.attend.view import KVGroup, KVView

__all__ = [
    "ATTENTION_SHARE",
    "BACKENDS",
    "L1",
    "Above",
    "Aggregate",
    "ArgmaxPerKey",
    "BandMean",
    "Binary",
    "Chain",
    "Choice",
    "ColumnMean",
    "Cost",
    "Entropy",
    "Fallbacks",
    "GroupShare",
    "Identity",
    "KVGroup",
    "KVView",
    "Machine",
    "Max",
    "Mean",
    "Min",
    "NeighbourMax",
    "Normaliser",
    "OverCount",
    "Part",
    "Piece",
    "Planned",
    "PortedPower",
    "Ratio",
    "Reducer",
    "Request",
    "RowContext",
    "RowDistance",
    "Scoring",
    "SenderSoftmax",
    "Shapes",
    "ShiftPower",
    "Sigmoid",
    "SoftThreshold",
    "Softmax",
    "State",
    "Sum",
    "Threshold",
    "TileCost",
    "TimesLogCount",
    "TopShare",
    "apply_weights",
    "attend",
    "choose",
    "cost",
    "counting",
    "edges_above",
    "explain",
    "flash_sigmoid",
    "forget_layouts",
    "lssa",
    "lssar",
    "lssar_port",
    "make_request",
    "merge",
    "na1d",
    "na2d",
    "na3d",
    "neighbourhood",
    "observing",
    "over_count_sigmoid",
    "plan",
    "record_fallback",
    "reduce",
    "sum_over_edges",
    "tile_cost",
    "via",
    "weights",
]

make_callable(__name__, attend)
