"""Where the parts of attention pass by in a Hugging Face model: resolved once per architecture.

Legend: B batch, n tokens, H query heads, G KV heads, E head width, C hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attlas.bridges.models import UnsupportedModel, Wiring

__all__ = ["ARCHITECTURES", "POINTS", "Architecture", "Site", "sites"]

POINTS = {
    "layer_in": "what enters the attention layer, behind its norm where that stands before it (B, n, C)",
    "q": "queries as projected (B, H, n, E)",
    "k": "keys as projected (B, G, n, E)",
    "v": "values as projected, before the cache (B, G, n, E)",
    "q_normed": "queries behind the model's own norm of them, if it has one, before rotation (B, H, n, E)",
    "k_normed": "keys likewise (B, G, n, E)",
    "head_out": "what the heads found, before the output projection (B, H, n, E)",
    "attn_out": "what the output projection gives, before dropout and the residual sum (B, n, C)",
}
"""The points of `insert`, each with what passes there."""


@dataclass(frozen=True)
class Architecture:
    """Names inside an attention module: projections of query, key and value, the output's, and norms.

    packing: how a projection's columns lie: one part each; q, k, v side by side; or q, k, v of each head
    together. heads_first: whether its norms get (B, heads, n, E) rather than (B, n, heads, E). A leading
    ".." is the module around.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    out: str = "o_proj"
    packing: Literal["separate", "side by side", "by head"] = "separate"
    query_norm: str | None = None
    key_norm: str | None = None
    heads_first: bool = False


_LLAMA = Architecture()
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": Architecture(query_norm="q_norm", key_norm="k_norm"),
    "gemma3_text": Architecture(query_norm="q_norm", key_norm="k_norm", heads_first=True),
    "phi": Architecture(out="dense", query_norm="q_layernorm", key_norm="k_layernorm", heads_first=True),
    "phi3": Architecture("qkv_proj", "qkv_proj", "qkv_proj", packing="side by side"),
    "gpt2": Architecture("c_attn", "c_attn", "c_attn", "c_proj", packing="side by side"),
    "gpt_neox": Architecture(
        "query_key_value", "query_key_value", "query_key_value", "dense", packing="by head"
    ),
    "bert": Architecture("query", "key", "value", "..output.dense"),
}
"""By the configuration's model_type; each is tested."""


@dataclass(frozen=True, eq=False)
class Site:
    """One point of one layer: the module whose input or output it is, and how to exchange the part.

    attention, query, hooked: the attention module, its query projection (whose input is what entered the
    layer), and the module that is hooked. side: "in" or "out" of the hooked module. heads: of the part, 0
    where it has none; index: of the part among those in one projection.
    """

    where: str
    layer: int
    attention: nn.Module
    query: nn.Module
    hooked: nn.Module
    side: Literal["in", "out"]
    packing: Literal["separate", "side by side", "by head"]
    index: int
    heads: tuple[int, int]
    head_width: int
    width: int
    form: Literal["tokens", "columns", "heads first", "heads last"]
    normed: bool

    @property
    def part_heads(self) -> int:
        """Heads of the part; 1 where it has none."""
        if self.form == "tokens":
            return 1
        return self.heads[0] if self.where in ("q", "q_normed", "head_out") else self.heads[1]

    @property
    def part_width(self) -> int:
        """Width of a head of the part."""
        return self.width if self.form == "tokens" else self.head_width

    def cut(self, whole: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The part, (B, heads, n, E) or (B, n, C), and all parts (B, n, heads, E) that lie beside it."""
        if self.form in ("tokens", "heads first"):
            return whole, []
        if self.form == "heads last":
            return whole.transpose(1, 2), []
        if self.packing == "separate":
            parts = [whole.unflatten(-1, (self.part_heads, -1))]
        elif self.packing == "side by side":
            columns = [count * self.head_width for count in (self.heads[0], self.heads[1], self.heads[1])]
            parts = [part.unflatten(-1, (-1, self.head_width)) for part in whole.split(columns, -1)]
        else:
            parts = list(whole.unflatten(-1, (self.heads[0], 3, -1)).unbind(-2))
        return parts[self.index].transpose(1, 2), parts

    def put(self, part: Tensor, parts: list[Tensor]) -> Tensor:
        """The whole with another part; the inverse of `cut`."""
        if self.form in ("tokens", "heads first"):
            return part
        if self.form == "heads last":
            return part.transpose(1, 2)
        parts = [*parts[: self.index], part.transpose(1, 2), *parts[self.index + 1 :]]
        if self.packing == "by head":
            return torch.stack(parts, -2).flatten(-3)
        flat = [one.flatten(-2) for one in parts]
        if len(flat) == 1:
            return flat[0]
        return torch.cat(flat, -1)


def sites(model: nn.Module, wired: Wiring, where: str, layers: tuple[int, ...]) -> tuple[Site, ...]:
    """The point in each of the layers; UnsupportedModel, ValueError: an unknown architecture or point."""
    if where not in POINTS:
        known = "; ".join(f"{name}: {what}" for name, what in POINTS.items())
        raise ValueError(
            f"a point of attention must be one of {known}; or G1 .. G5 for a gate; got {where!r}"
        )
    kind = str(wired.config.model_type)
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{wired.shape.name} is of the type {kind}, whose points of attention are not known; known: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(
        _site(model, wired, ARCHITECTURES[kind], where, layer, names[id(wired.modules[layer])])
        for layer in layers
    )


def _site(model: nn.Module, wired: Wiring, found: Architecture, where: str, layer: int, name: str) -> Site:
    def inside(path: str | None) -> nn.Module | None:
        if path is None:
            return None
        start = name.rpartition(".")[0] if path.startswith("..") else name
        try:
            return model.get_submodule(".".join(part for part in (start, path.lstrip(".")) if part))
        except AttributeError:
            return None

    def needed(path: str) -> nn.Module:
        module = inside(path)
        if module is None:
            raise UnsupportedModel(
                f"{wired.shape.name}: the attention of layer {layer} has no module {path}, which other "
                f"models of the type {wired.config.model_type} have"
            )
        return module

    attention, query = wired.modules[layer], needed(found.query)
    letter = where[0]
    paths = {"q": found.query, "k": found.key, "v": found.value}
    own_norm = inside({"q": found.query_norm, "k": found.key_norm}.get(letter))
    norm = own_norm if where.endswith("_normed") else None
    form: Literal["tokens", "columns", "heads first", "heads last"] = "columns"
    packing, index, side = found.packing, 0, "out"
    if where == "layer_in":
        hooked, form, side = attention, "tokens", "in"
    elif where == "attn_out":
        hooked, form = needed(found.out), "tokens"
    elif where == "head_out":
        hooked, packing, side = needed(found.out), "separate", "in"
    elif norm is not None:
        hooked, form = norm, "heads first" if found.heads_first else "heads last"
    else:
        hooked = needed(paths[letter])
        index = 0 if packing == "separate" else "qkv".index(letter)
    shape = wired.shape
    return Site(
        where, layer, attention, query, hooked, "in" if side == "in" else "out", packing, index,
        (shape.heads, shape.kv_heads), shape.head_width, int(wired.config.hidden_size), form,
        normed=own_norm is not None,
    )  # fmt: skip
