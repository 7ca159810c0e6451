"""Checks of `attlas.layers.check_graph_layer` on numbers: gradients, training, and other dtypes.

Each yields a sentence for every promise not kept.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from attlas.layers.contract_probe import gap
from attlas.layers.graph_contract_probe import GraphProbe

__all__ = ["gradient", "narrow", "training"]

STEP = 1e-6  # of the finite differences
NARROW = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # largest share by which an output may be off


def gradient(probe: GraphProbe) -> Iterator[str]:
    """x, floating edge_attr and every weight get gradients, those of finite differences."""
    given = probe.given()
    weights = {name: weight.detach().requires_grad_() for name, weight in probe.module.named_parameters()}
    features = [given.x.requires_grad_()]
    if given.edge is not None and given.edge.is_floating_point():
        features.append(given.edge.requires_grad_())
    named = [*zip(("x", "edge_attr"), features, strict=False), *weights.items()]

    def loss(tensors: list[Tensor]) -> Tensor:
        own = dict(zip(weights, tensors[len(features) :], strict=True))
        edge = tensors[1] if len(features) > 1 else given.edge
        found = functional_call(probe.module, own, (tensors[0], given.graph, edge))
        parts = found if isinstance(found, tuple) else (found,)
        shares = torch.Generator().manual_seed(3)
        return torch.stack(
            [(part * torch.randn(part.shape, generator=shares, dtype=part.dtype)).sum() for part in parts]
        ).sum()

    tensors = [tensor for _, tensor in named]
    slopes = torch.autograd.grad(loss(tensors), tensors, allow_unused=True)
    for at, ((name, tensor), slope) in enumerate(zip(named, slopes, strict=True)):
        if slope is None or (name in ("x", "edge_attr") and tensor.numel() and not slope.abs().sum() > 0):
            yield f"no gradient reaches {name}"
        elif not torch.isfinite(slope).all():
            yield f"the gradient of {name} is not finite"
        elif tensor.numel():
            way = functional.normalize(probe.random(tensor.numel()), dim=0).view_as(tensor)
            with torch.no_grad():
                ahead, behind = (
                    loss([*tensors[:at], tensor + step * way, *tensors[at + 1 :]]) for step in (STEP, -STEP)
                )
            wanted, got = float((ahead - behind) / (2 * STEP)), float((slope * way).sum())
            # As torch's gradcheck: an entry of the Jacobian may be off by 1e-5.
            most = 1e-5 * given.x.numel() * float(way.abs().sum()) + 1e-3 * abs(wanted)
            if abs(got - wanted) > most:
                yield (
                    f"the gradient of {name} is not that of finite differences: {got:.3e} in a random "
                    f"direction, not {wanted:.3e}"
                )


def narrow(probe: GraphProbe) -> Iterator[str]:
    """float32 is near float64, and so is bfloat16 where it runs; the output has the input's dtype."""
    given = probe.given()
    wanted = probe.run(given)
    for dtype, most in NARROW.items():
        module = copy.deepcopy(probe.module).to(dtype)
        edge = (
            given.edge.to(dtype) if given.edge is not None and given.edge.is_floating_point() else given.edge
        )
        try:
            answer = module(given.x.to(dtype), given.graph, edge)
        except Exception:
            if dtype == torch.bfloat16:
                continue
            raise
        found = answer if isinstance(answer, tuple) else (answer,)
        for part, right in zip(found, (one for one in wanted if one is not None), strict=True):
            if part.dtype != dtype:
                yield f"the output of {dtype} features is {part.dtype}"
            by = gap(part.double(), right)
            if by > most:
                yield f"{dtype} is off by {by:.1e} of the largest output, more than {most}"


def training(probe: GraphProbe) -> Iterator[str]:
    """In training, too, one node that nobody sends to and no nodes give numbers, and as many rows."""
    module = copy.deepcopy(probe.module).train()
    for nodes, what in ((1, "one node without edges"), (0, "no nodes")):
        given = probe.given((), nodes)
        try:
            answer = module(given.x, given.graph, given.edge)
        except Exception as error:
            yield f"{what} in training: {type(error).__name__}: {error}"
            continue
        out = answer[0] if isinstance(answer, tuple) else answer
        if len(out) != nodes:
            yield f"{what} in training: the output has {len(out)} rows"
        elif not torch.isfinite(out).all():
            yield f"{what} in training: the output is not finite"
