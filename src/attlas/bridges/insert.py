"""Modules of your own inside a pretrained model: gates, scales, whatever acts on a part of its attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attlas.bridges.models import INSERTED, wiring
from attlas.bridges.points import Site, sites
from attlas.bridges.swap import checked_layers
from attlas.layers.gated import KINDS, Gate, LearnedGate, gate_for

__all__ = ["Insertion", "Slot", "gates_for", "insert", "inserted", "paused"]

_GATE_POINTS = {"G1": "head_out", "G2": "v", "G3": "k_normed", "G4": "q_normed", "G5": "attn_out"}

Make = Callable[[int], nn.Module]


class Slot(nn.Module):
    """A module at a point of one layer, as the model holds it; its hooks call `module(part, x)`."""

    def __init__(self, site: Site, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.where, self.layer, self.on = site.where, site.layer, True
        # Not a submodule: the modules that the site names hold this slot.
        self.__dict__["site"] = site
        self.x: Tensor | None = None

    def forward(self, part: Tensor, x: Tensor) -> Tensor:
        """The module's answer, of the part's shape."""
        found: Tensor = self.module(part, x)
        if not isinstance(found, Tensor) or found.shape != part.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{type(self.module).__name__} at {self.where} of layer {self.layer} must give a tensor of "
                f"the shape {tuple(part.shape)} that it got, got {got}"
            )
        return found.to(part.dtype)

    def changed(self, whole: Tensor, x: Tensor | None) -> Tensor:
        """The hooked module's input or output with the point's part replaced."""
        if x is None:
            raise RuntimeError(f"the attention of layer {self.layer} did not run before its {self.where}")
        site: Site = self.__dict__["site"]
        part, parts = site.cut(whole)
        return site.put(self(part, x), parts)

    def note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the query projection: keep what entered the layer."""
        self.x = args[0] if self.on else None

    def entering(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before the attention module: its hidden states come by place or by name."""
        if not self.on:
            return None
        if args:
            return (self.changed(args[0], args[0]), *args[1:]), named
        x = named["hidden_states"]
        return args, {**named, "hidden_states": self.changed(x, x)}

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Before the output projection."""
        if not self.on:
            return None
        x, self.x = self.x, None
        return (self.changed(args[0], x), *args[1:])

    def projected(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Any:
        """Behind a projection of what entered the layer."""
        return self.changed(out, args[0]) if self.on else None

    def after(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Any:
        """Behind a norm or the output projection."""
        if not self.on:
            return None
        x, self.x = self.x, None
        return self.changed(out, x)

    def hook(self) -> list[Any]:
        """Place the hooks; the handles that remove them."""
        site: Site = self.__dict__["site"]
        if site.where == "layer_in":
            return [site.hooked.register_forward_pre_hook(self.entering, with_kwargs=True)]
        if site.form == "columns" and site.side == "out":
            return [site.hooked.register_forward_hook(self.projected)]
        noting = site.query.register_forward_pre_hook(self.note)
        if site.side == "in":
            return [noting, site.hooked.register_forward_pre_hook(self.before)]
        return [noting, site.hooked.register_forward_hook(self.after)]


class Insertion:
    """Modules inserted at one point, removable: `remove()`, or as a context manager on leaving the block."""

    def __init__(self, slots: Sequence[Slot], names: Sequence[str], hooks: Sequence[Any]) -> None:
        self.slots, self.names, self._hooks = tuple(slots), tuple(names), list(hooks)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all inserted modules."""
        for slot in self.slots:
            yield from slot.parameters()

    def describe(self) -> list[dict[str, Any]]:
        """What stands where, as JSON: layer, where, kind, and `spec` of modules that have one."""
        return [described(slot) for slot in self.slots]

    def remove(self) -> None:
        """Take the modules out; the model is bitwise as before. Again: nothing happens."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for slot, name in zip(self.slots, self.names, strict=True):
            slot.__dict__["site"].attention._modules.pop(name, None)

    def __enter__(self) -> Insertion:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def insert(
    model: nn.Module, where: str, module: nn.Module | Make, *, layers: int | Sequence[int] | None = None
) -> Insertion:
    """Let a module of yours change a part of a pretrained model's attention, for good or until removed.

        handle = at.insert(model, "G1", at.gates_for(model, "G1", form="2-sigmoid", start=1.0))

    where: "layer_in", "q", "k", "v", "q_normed", "k_normed", "head_out", "attn_out" (see `points.POINTS`), or
    "G1" .. "G5": head_out, v, k_normed, q_normed, attn_out. module: called as `module(part, x)`,
    part as the point says, x (B, n, C) what enters the layer; gives the part changed. One module goes into
    one layer; a function of the layer's number makes one for each of `layers` (all unless given).

    Its parameters are the model's from then on (optimisers and state_dict see them), on its device and of its
    type; a plan for the model still fits. Several at one point act in the order of insertion. Decoding: what
    changes keys and values is in the cache. UnsupportedModel: an architecture that is not known. ValueError:
    an unknown point, layers, a module that does not take (part, x), a gate of another size, or one per head
    before a norm that would cancel it, a module that stands in another layer or in the model already (its
    weights would be saved twice and come back as two).
    """
    wired = wiring(model)
    chosen = checked_layers((layers,) if isinstance(layers, int) else layers, wired)
    found = sites(model, wired, _GATE_POINTS.get(where, where), chosen)
    if isinstance(module, nn.Module):
        if len(chosen) != 1:
            raise ValueError(
                f"insert: one module goes into one layer, but {len(chosen)} are meant: name it by layers=, "
                "or give a function that makes a module for each layer"
            )
        modules = [module]
    else:
        modules = [module(layer) for layer in chosen]
    _check_own(model, modules, chosen)
    for site, one in zip(found, modules, strict=True):
        _check(site, one)
    slots, names, hooks = [], [], []
    for site, one in zip(found, modules, strict=True):
        like = next(site.query.parameters())
        slot = Slot(site, one).to(like.device, like.dtype if like.is_floating_point() else None)
        slot.train(model.training)
        name = _free(site)
        site.attention.add_module(name, slot)
        slots.append(slot)
        names.append(name)
        hooks += slot.hook()
    return Insertion(slots, names, hooks)


def gates_for(model: nn.Module, place: str, **options: Any) -> Make:
    """A function that makes the gate of a place G1 .. G5 for any layer of the model, for `insert`.

    options: kind, form, bias, start as for `Gate`. The model starts exactly unchanged with form "2-sigmoid"
    and start=1.0, or "add-silu" and start=0.0; the paper's "sigmoid" with start=0.9, say, begins near it, by
    a bias, and cannot be 1.
    """
    wired = wiring(model)
    shape = wired.shape
    width = int(wired.config.hidden_size)

    def make(layer: int) -> nn.Module:
        return gate_for(
            place, width, shape.heads, kv_heads=shape.kv_heads, head_width=shape.head_width, **options
        )

    return make


def inserted(model: nn.Module) -> tuple[Slot, ...]:
    """Every inserted module of the model, in the order of its modules."""
    return tuple(module for module in model.modules() if isinstance(module, Slot))


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Inside the block the model runs without what was inserted."""
    slots = [slot for slot in inserted(model) if slot.on]
    for slot in slots:
        slot.on = False
    try:
        yield
    finally:
        for slot in slots:
            slot.on = True


def described(slot: Slot) -> dict[str, Any]:
    """Layer, point, kind and, where the module has one, `spec` of what is inserted."""
    spec = getattr(slot.module, "spec", None)
    return {
        "layer": slot.layer,
        "where": slot.where,
        "kind": type(slot.module).__name__,
        "spec": spec() if callable(spec) else None,
    }


def _free(site: Site) -> str:
    number = 0
    while f"{INSERTED}{site.where}_{number}" in site.attention._modules:
        number += 1
    return f"{INSERTED}{site.where}_{number}"


def _check_own(model: nn.Module, modules: Sequence[Any], layers: Sequence[int]) -> None:
    """Every layer's module has weights of its own, and none that the model has already."""
    holders = {id(weight): "the model already" for weight in model.parameters()}
    holders |= {id(part): "the model already" for part in model.modules()}
    for layer, module in zip(layers, modules, strict=True):
        if not isinstance(module, nn.Module):
            continue
        for part in (module, *module.parameters()):
            if id(part) in holders:
                raise ValueError(
                    f"insert: the {type(module).__name__} for layer {layer}, or a weight of it, stands in "
                    f"{holders[id(part)]}: saved and loaded it would be two; make one for each layer, such "
                    "as lambda layer: copy.deepcopy(module)"
                )
        holders |= {id(part): f"layer {layer}" for part in (*module.modules(), *module.parameters())}


def _check(site: Site, module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"insert: module must be a torch.nn.Module, or a function that makes one, got {module!r}"
        )
    try:
        inspect.signature(module.forward).bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"insert: {type(module).__name__} must be callable as module(part, x), x what enters the layer; "
            f"its forward does not take two arguments ({error})"
        ) from None
    if not isinstance(module, Gate | LearnedGate):
        return
    if (module.heads, module.head_width) != (site.part_heads, site.part_width):
        raise ValueError(
            f"insert: a gate at {site.where} of layer {site.layer} must be for {site.part_heads} heads of "
            f"width {site.part_width}, got {module.heads} and {module.head_width}; gates_for(model, place) "
            "makes one that fits"
        )
    if isinstance(module, Gate) and module.width != site.width:
        raise ValueError(
            f"insert: a gate of this model takes inputs of width {site.width}, got one for {module.width}"
        )
    if (
        site.normed
        and site.where in ("q", "k")
        and not KINDS[module.kind][1]
        and not module.form.startswith("add")
    ):
        raise ValueError(
            f"insert: this model normalises what passes at {site.where}, which cancels a factor per head: "
            f"insert the gate at {site.where}_normed (G3, G4)"
        )
