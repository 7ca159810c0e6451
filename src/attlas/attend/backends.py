"""The registry of backends, and the choice among them: deterministic, by estimated cost, always explained.

A backend is a module with `NAME`, `supports(request) -> reason or None`, `estimate(request) -> Cost` and
`run(request) -> (out, state)`. Optional: `NATIVE = True` (it handles extra terms, sinks, views and unequal
batches itself), `inner_fallback(request) -> reason or None` (it would run, but by a slow path of its own or
with an N × M matrix: named, it is counted as a fallback; "auto" does not take it), `detail(request) -> str`
(which of its kernels runs, for `explain`).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from attlas.attend import block, decode, edge, flex, reference, rows, sdpa
from attlas.attend.aggregate import Sum
from attlas.attend.cost import Cost
from attlas.attend.normaliser import Softmax
from attlas.attend.request import Request
from attlas.attend.state import Part, State, merge_softmax

__all__ = [
    "BACKENDS",
    "Backend",
    "Choice",
    "Fallbacks",
    "choose",
    "core_of",
    "counting",
    "execute",
    "record_fallback",
    "settled",
    "tell",
]


@runtime_checkable
class Backend(Protocol):
    """What a backend module offers."""

    NAME: str

    def supports(self, request: Request) -> str | None: ...

    def estimate(self, request: Request) -> Cost: ...

    def run(self, request: Request) -> Part: ...


_MODULES = (reference, sdpa, flex, rows, block, decode, edge)
BACKENDS: dict[str, Backend] = {module.NAME: module for module in _MODULES}
"""All backends by name; `auto` never takes `reference` (the oracle), and `flex` (it compiles for seconds) on
accelerators only, where it is taken if it can run."""

NEVER_AUTO = ("reference",)
GENERIC = "rows"


@dataclass
class Fallbacks:
    """What did not run on the path that it might have: (what, why) with its number of calls."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, what: str, why: str, count: int = 1) -> None:
        self.counts[what, why] += count

    def records(self) -> list[dict[str, str | int]]:
        """[{"what", "why", "count"}], the most frequent first, for reports."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [{"what": what, "why": why, "count": count} for (what, why), count in ordered]

    def __len__(self) -> int:
        return sum(self.counts.values())


_LISTENERS: ContextVar[tuple[Fallbacks, ...]] = ContextVar("attlas_fallbacks", default=())


@contextmanager
def counting() -> Iterator[Fallbacks]:
    """Count every fallback inside the block; blocks nest, each sees all that happens in it."""
    heard = Fallbacks()
    token = _LISTENERS.set((*_LISTENERS.get(), heard))
    try:
        yield heard
    finally:
        _LISTENERS.reset(token)


def record_fallback(what: str, why: str, count: int = 1) -> None:
    """Tell every enclosing `counting()` of a fallback."""
    for heard in _LISTENERS.get():
        heard.add(what, why, count)


@dataclass(frozen=True)
class Choice:
    """A backend, its estimate, why it was taken, what the others said, and the fallback, if it is one."""

    name: str
    cost: Cost
    why: str
    refused: dict[str, str]
    costs: dict[str, Cost]
    fallback: str | None = None

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.name]


def choose(request: Request, backend: str = "auto") -> Choice:
    """The named backend, or with "auto" the cheapest one that can run the request (ties: registry order).

    ValueError: an unknown name, a named backend that cannot run the request, or a fallback under strict=True.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"attend: backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    return _allowed(request, _automatic(request) if backend == "auto" else _named(request, backend))


def settled(request: Request, choice: Choice) -> Choice:
    """A choice made for an earlier request of the kind, with the fallback that this one needs.

    ValueError: the backend cannot run this one (other token spaces, another width), or a fallback under
    strict=True.
    """
    module = choice.backend
    core = core_of(request, module)
    reason = _refusal(module, core)
    if reason is not None:
        raise ValueError(
            f"attend: the plan's backend {choice.name!r} cannot run this call: {reason}; "
            "plan again with tensors and token spaces of this kind"
        )
    return _allowed(
        request, choice if choice.name == GENERIC else replace(choice, fallback=_inner(module, core))
    )


def _allowed(request: Request, choice: Choice) -> Choice:
    if choice.fallback is not None and request.strict:
        raise ValueError(
            f"attend: strict=True forbids a fallback, but {choice.fallback}; "
            "change the request, name a backend that can run it, or allow the fallback with strict=False"
        )
    return choice


def _named(request: Request, name: str) -> Choice:
    module = BACKENDS[name]
    core = core_of(request, module)
    reason = _refusal(module, core)
    if reason is not None:
        raise ValueError(
            f"attend: backend {name!r} cannot run this request: {reason}; use backend='auto' or 'rows'"
        )
    return Choice(name, module.estimate(core), "it was named", {}, {}, _inner(module, core))


def _automatic(request: Request) -> Choice:
    refused: dict[str, str] = {}
    costs: dict[str, Cost] = {}
    along_edges = False
    for name, module in BACKENDS.items():
        if name in NEVER_AUTO or name == GENERIC or (name == flex.NAME and request.device.type == "cpu"):
            continue
        core = core_of(request, module)
        # The generic way runs everything in linear memory: nobody else needs to run by a slow path.
        reason = _refusal(module, core)
        along_edges = along_edges or (module is edge and reason is None)
        reason = reason or _inner(module, core)
        if reason is None:
            costs[name] = module.estimate(core)
        else:
            refused[name] = reason
    if "block" in costs and "sdpa" in costs and not sdpa.maskless(core_of(request, BACKENDS["sdpa"])):
        # A mask hides pairs and saves none: tiles are never much slower.
        refused["sdpa"] = "it would mask what it computes"
        del costs["sdpa"]
    if flex.NAME in costs:
        return Choice(flex.NAME, costs[flex.NAME], "the compiled kernel of accelerators", refused, costs)
    if not costs and along_edges:
        reasons = "; ".join(f"{other}: {reason}" for other, reason in refused.items())
        estimate = edge.estimate(core_of(request, BACKENDS[edge.NAME]))
        fallback = f"the generic rows of edges run it ({reasons})"
        del refused[edge.NAME]
        return Choice(edge.NAME, estimate, "it runs everything along edges", refused, {}, fallback)
    if not costs:
        reasons = "; ".join(f"{other}: {reason}" for other, reason in refused.items())
        alone = edge.only_there(request, GENERIC)
        if alone is not None:
            raise ValueError(f"attend: {alone}; no backend can run this request ({reasons})")
        fallback = f"the generic row-block backend runs it ({reasons})"
        generic = BACKENDS[GENERIC]
        estimate = generic.estimate(core_of(request, generic))
        return Choice(GENERIC, estimate, "the only one that can", refused, {GENERIC: estimate}, fallback)
    order = list(costs)
    name = min(costs, key=lambda one: (costs[one].seconds, order.index(one)))
    why = "the lowest estimated time" if len(costs) > 1 else "the only one that can"
    return Choice(name, costs[name], why, refused, costs)


def _refusal(module: Backend, core: Request) -> str | None:
    """Why the backend cannot answer, or would answer for a set of pairs where edges are counted."""
    return module.supports(core) or edge.only_there(core, module.NAME)


def _inner(module: Backend, core: Request) -> str | None:
    inner = getattr(module, "inner_fallback", None)
    return None if inner is None else inner(core)


def tell(choice: Choice) -> None:
    """Count the choice, if it is a fallback."""
    if choice.fallback is not None:
        record_fallback(f"attend ran on {choice.name}", choice.fallback)


def core_of(request: Request, module: Backend) -> Request:
    """What the backend itself is asked: without extra terms and sink, which `execute` merges in."""
    if (
        getattr(module, "NATIVE", False)
        or type(request.normaliser) is not Softmax
        or request.gate is not None
        or type(request.aggregate) is not Sum
    ):
        return request
    core = request.expanded()
    if request.extra or request.normaliser.sink is not None:
        core = core.but(extra=(), normaliser=Softmax(), return_state=True)
    return core


def execute(request: Request, choice: Choice) -> Part:
    """Run the chosen backend and merge what it was not asked for; counts the fallback, if it is one."""
    tell(choice)
    core = core_of(request, choice.backend)
    out, state = choice.backend.run(core)
    if core is request or (not request.extra and core.normaliser is request.normaliser):
        return out, state
    return _finished(request, out, state)


def _finished(request: Request, out: torch.Tensor, state: State) -> Part:
    parts = [(out, State(state.lse))]
    for logit, value in request.extra:
        wide = value.expand(out.shape).to(out.dtype)
        parts.append((wide, State(logit.expand(*out.shape[:3], 1).squeeze(-1).to(state.lse.dtype))))
    out, state = merge_softmax(parts)
    sink = request.normaliser.sink if type(request.normaliser) is Softmax else None
    if sink is not None:
        logit = torch.as_tensor(sink, dtype=state.lse.dtype, device=state.lse.device).view(1, -1, 1)
        share = (state.lse - torch.logaddexp(state.lse, logit)).exp()
        out = (out * share.unsqueeze(-1)).to(out.dtype)
    return out, State(state.lse, None, request.normaliser)
