"""Attlas, an atlas of attention.

    import attlas as at

    out = at.attend(query, key, value, pattern=at.causal() & (at.window(256) | at.sink(4)))
    plan = at.tune(model, tokenizer, data, budget=0.5)
    with at.applied(model, plan):
        model.generate(...)

Names are loaded on first use: importing Attlas patches nothing and does not load transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

ROOMS = (
    "graph",
    "pattern",
    "score",
    "attend",
    "scan",
    "cache",
    "layers",
    "models",
    "bridges",
    "laws",
    "tasks",
    "train",
    "inspect",
    "tune",
    "serve",
    "report",
    "catalog",
)

_FROM = {
    "graph": "Graph",
    "pattern": (
        "Elastic elastic Tokens Pattern causal dense window sink distance key group along ball rounded "
        "halo block_windows grid_windows power slashes s2_attention sf_attention radial radial_official "
        "clear joint per_head per_kv_head same role linked linked_groups opaque parse Segments BlockTable "
        "NeighbourList Plan PlanMismatch Order sorted_by tile groups grid serpentine ModelShape span_rule "
        "band_rule uniform_plan load_official"
    ),
    "score": (
        "Score Dot Bilinear Cosine DistanceBias EdgeBias Given LowRankBias RowScale alibi squared_distance "
        "GraphBias TypedBias Additive EdgeProduct"
    ),
    "attend": (
        "Softmax SenderSoftmax Sigmoid Identity L1 Ratio Threshold ShiftPower TimesLogCount OverCount lssa "
        "lssar flash_sigmoid Sum Mean Max Min State merge KVView KVGroup explain cost counting via weights "
        "reduce edges_above apply_weights na1d na2d na3d tile_cost"
    ),
    "cache": "RaggedCache",
    "bridges": "applied describe gates_for insert load_changes load_model save_changes swap",
    "train": "distil Recipe",
}
_HOME = {name: room for room, names in _FROM.items() for name in names.split()}

__all__ = ["ROOMS", "__version__", *ROOMS, *_HOME]

if TYPE_CHECKING:
    from attlas.attend import attend as attend
    from attlas.bridges import applied as applied
    from attlas.scan import scan as scan
    from attlas.tune import tune as tune


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return import_module(f"attlas.{name}")
    if name in _HOME:
        value = getattr(import_module(f"attlas.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'attlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
