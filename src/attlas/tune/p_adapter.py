"""p-adapters in a frozen encoder: on the output projection of every attention, and before every FFN's norm.

Source: Wu et al. 2023, arXiv 2312.10613; wuhy68/p-Adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.bridges.attention import installed
from attlas.bridges.mask import TokenMask
from attlas.bridges.models import UnsupportedModel, Wiring, wiring
from attlas.layers.p_adapter import Bottleneck, PAdapter
from attlas.pattern import Tokens
from attlas.score import Dot

__all__ = ["PAdapters", "p_adapter"]


class PAdapters(nn.Module):
    """A `PAdapter` for the attention of each layer, and a `Bottleneck` on each FFN's residual input.

    model: a Hugging Face encoder of BERT's form. reduction: r of both; ffn: with the bottlenecks. named:
    further arguments of `PAdapter`. Changes start small, as the linear layers do. UnsupportedModel: another
    form.
    """

    def __init__(self, model: nn.Module, *, reduction: int = 8, ffn: bool = True, **named: Any) -> None:
        super().__init__()
        wired = wiring(model)
        width, count = int(wired.config.hidden_size), wired.shape.layers
        self.attention = nn.ModuleList(
            PAdapter(width, wired.shape.heads, reduction=reduction, **named) for _ in range(count)
        )
        inner = width // reduction
        self.ffn = nn.ModuleList(Bottleneck(width, inner) for _ in range(count if ffn else 0))


@contextmanager
def p_adapter(model: nn.Module, adapters: PAdapters) -> Iterator[None]:
    """Inside the block every attention's D(attn) goes through its p-adapter, and FFNs through bottlenecks.

        with p_adapter(encoder, adapters):
            features = encoder(**tokens).last_hidden_state

    Query and value nodes are what the frozen projection D makes of the layer's own queries and values; maps
    are made anew tile by tile (the released step, `official=True`, holds them). Padding is no node. The
    weights of the model are never touched. UnsupportedModel: the model is not of BERT's form.
    """
    wired = wiring(model)
    run = _Run(adapters)
    with ExitStack() as stack:
        for layer, attention in enumerate(wired.modules):
            for handle in run.hooks(layer, *_owners(model, wired, attention)):
                stack.callback(handle.remove)
        stack.enter_context(installed(model, wired, run, {}))
        yield


class _Run:
    """The attention of all layers, and the projections that the adapter of a layer asks for after it."""

    def __init__(self, adapters: PAdapters) -> None:
        self.adapters = adapters
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor, float, Tokens]] = {}

    def attention(
        self, layer: int, query: Tensor, key: Any, value: Any, mask: TokenMask, scaling: float, dropout: float
    ) -> Tensor:
        """The model's own attention."""
        keys = Tokens(key.shape[2], valid=mask.valid)
        self.seen[layer] = query, key, value, scaling, keys
        found: Tensor = attend(query, key, value, score=Dot(scaling), k_at=keys, dropout=dropout)
        return found

    def hooks(self, layer: int, project: nn.Linear, ffn: nn.Module) -> list[Any]:
        def projected(module: nn.Module, given: Any, out: Tensor) -> Tensor:
            query, key, value, scaling, keys = self.seen.pop(layer)
            # Not by the module itself, whose hook this is.
            nodes = [
                functional.linear(part.transpose(1, 2).flatten(2), project.weight, project.bias)
                for part in (query, value)
            ]
            adapter = self.adapters.attention[layer]
            if adapter.official:
                found: Tensor = adapter(out, *nodes, _held(query, key, scaling, keys))
            else:
                found = adapter(out, *nodes, query=query, key=key, score=Dot(scaling), k_at=keys)
            return found

        def residual(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return given[0], self.adapters.ffn[layer](given[1]), *given[2:]

        handles = [project.register_forward_hook(projected)]
        if len(self.adapters.ffn):
            handles.append(ffn.register_forward_pre_hook(residual))
        return handles


def _held(query: Tensor, key: Tensor, scaling: float, keys: Tokens) -> Tensor:
    """The whole map, for the released step alone."""
    logits = scaling * query @ key.transpose(-1, -2)
    if keys.valid is not None:
        absent = ~torch.atleast_2d(keys.valid)[:, None, None]
        logits = logits.masked_fill(absent, -float("inf"))
    return logits.softmax(-1)


def _owners(model: nn.Module, wired: Wiring, attention: nn.Module) -> tuple[nn.Linear, nn.Module]:
    """The output projection of an attention module, and the module that adds the FFN to its residual."""
    name = next(name for name, module in model.named_modules() if module is attention)
    block, _, _ = name.rpartition(".")
    layer, _, _ = block.rpartition(".")
    modules = dict(model.named_modules())
    project, ffn = modules.get(f"{block}.output.dense"), modules.get(f"{layer}.output")
    same = wired.shape.heads == wired.shape.kv_heads
    if wired.causal or not same or not isinstance(project, nn.Linear) or ffn is None:
        raise UnsupportedModel(
            f"{wired.shape.name}: p_adapter() needs an encoder of BERT's form, whose attention is projected "
            "by a linear layer output.dense and whose layers end in a module output(hidden, residual)"
        )
    return project, ffn
