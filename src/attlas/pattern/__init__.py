"""Who attends to whom: recipes, their algebra, layouts, and plans (patterns per layer and head).

pattern = causal() & (window(256) | sink(4))
pattern.mask(Tokens(8), Tokens(8)); pattern.layout(Tokens(8192), Tokens(8192)); parse(str(pattern)) == pattern
"""

from attlas.pattern.atoms import causal, dense, distance, group, key, rounded, sink, window
from attlas.pattern.axes import along, ball
from attlas.pattern.base import Pattern
from attlas.pattern.bound import BOUND, Bound
from attlas.pattern.clear import clear, joint
from attlas.pattern.graph_edges import GraphEdges, as_pattern
from attlas.pattern.grid_order import grid, groups, serpentine, tile
from attlas.pattern.group_links import linked_groups
from attlas.pattern.heads import opaque, per_head, per_kv_head
from attlas.pattern.intervals import Intervals
from attlas.pattern.layout import Layout, Part, Tile, clear_layouts
from attlas.pattern.maps import block_windows, grid_windows, halo
from attlas.pattern.official import load_official
from attlas.pattern.order import Order, sorted_by
from attlas.pattern.plan import ModelShape, Plan, PlanMismatch
from attlas.pattern.power_attention import Power, power, slashes
from attlas.pattern.radial import RADIAL_SCHEDULES, RadialSchedule, radial, radial_official
from attlas.pattern.registry import REGISTRY, register
from attlas.pattern.rules import band_rule, span_rule
from attlas.pattern.sinklora import leaky_s2_attention, rolled_group, s2_attention, sf_attention
from attlas.pattern.size import Elastic, Mean, Size, elastic
from attlas.pattern.slots import linked, role, same
from attlas.pattern.tables import BlockTable, NeighbourList, Segments
from attlas.pattern.text import parse
from attlas.pattern.tokens import Tokens, common_sizes
from attlas.pattern.uniform import uniform_plan

__all__ = [
    "BOUND",
    "RADIAL_SCHEDULES",
    "REGISTRY",
    "BlockTable",
    "Bound",
    "Elastic",
    "GraphEdges",
    "Intervals",
    "Layout",
    "Mean",
    "ModelShape",
    "NeighbourList",
    "Order",
    "Part",
    "Pattern",
    "Plan",
    "PlanMismatch",
    "Power",
    "RadialSchedule",
    "Segments",
    "Size",
    "Tile",
    "Tokens",
    "along",
    "as_pattern",
    "ball",
    "band_rule",
    "block_windows",
    "causal",
    "clear",
    "clear_layouts",
    "common_sizes",
    "dense",
    "distance",
    "elastic",
    "grid",
    "grid_windows",
    "group",
    "groups",
    "halo",
    "joint",
    "key",
    "leaky_s2_attention",
    "linked",
    "linked_groups",
    "load_official",
    "opaque",
    "parse",
    "per_head",
    "per_kv_head",
    "power",
    "radial",
    "radial_official",
    "register",
    "role",
    "rolled_group",
    "rounded",
    "s2_attention",
    "same",
    "serpentine",
    "sf_attention",
    "sink",
    "slashes",
    "sorted_by",
    "span_rule",
    "tile",
    "uniform_plan",
    "window",
]
