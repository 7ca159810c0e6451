"""Sparse GIN fine-tuning of a frozen decoder: graph networks on its own attention, layer by layer.

Source: Buehler 2025, arXiv 2501.02393; lamm-mit/Graph-Aware-Transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from attlas.attend import attend
from attlas.bridges.attention import installed
from attlas.bridges.mask import TokenMask
from attlas.bridges.models import UnsupportedModel, Wiring, wiring
from attlas.layers.sparse_gin import SparseEdges, SparseGIN, lambda_schedule, strong_edges
from attlas.pattern import Tokens, causal, window
from attlas.score import Dot

__all__ = ["SparseGINAdapters", "sparse_gin"]


class SparseGINAdapters(nn.Module):
    """A `SparseGIN` for each of some layers of a decoder; the only parameters that are trained.

    Args:
        model: a Hugging Face decoder whose layers add attention and MLP one after the other (Llama's form).
        layers: which, all unless given. inner: width of the graph networks. first, last: λ of the first and
            the last layer of the model at the start, linear in between.
        kappa, theta, tau, self_loops, official: of `strong_edges`. named: further arguments of `SparseGIN`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[int] | None = None,
        inner: int = 155,
        first: float = 0.0,
        last: float = 0.5,
        kappa: float = 10.0,
        theta: float = 0.1,
        tau: float = 0.6,
        self_loops: bool = True,
        official: bool = False,
        **named: Any,
    ) -> None:
        super().__init__()
        wired = wiring(model)
        count, width = wired.shape.layers, int(wired.config.hidden_size)
        chosen = range(count) if layers is None else layers
        if any(not 0 <= layer < count for layer in chosen):
            raise ValueError(f"layers must be numbers from 0 to {count - 1}, got {list(chosen)}")
        amounts = lambda_schedule(count, first, last)
        self.layers = nn.ModuleDict(
            {str(layer): SparseGIN(width, inner, amount=amounts[layer], **named) for layer in chosen}
        )
        self.options = {
            "kappa": kappa, "theta": theta, "tau": tau, "self_loops": self_loops, "official": official,
        }  # fmt: skip


@contextmanager
def sparse_gin(model: nn.Module, adapters: SparseGINAdapters) -> Iterator[None]:
    """Inside the block x <- x + λ GNN(x) behind the attention's residual of every adapted layer.

        with sparse_gin(model.requires_grad_(False), adapters):
            loss_of(model(ids)).backward()

    Forward, cached decoding and `generate` (its cache must begin inside the block, and one cache must be
    done with before another begins: two of one length are not told apart); padding changes nothing.
    The weights of the model are never touched. Decoding keeps W numbers a token and adapted layer beside the
    keys and values. UnsupportedModel: not a decoder of this form, beam search (which re-orders caches
    unseen), caches that drop or share keys. ValueError: a cache begun elsewhere.
    """
    wired = wiring(model)
    run = _Run(adapters)
    with ExitStack() as stack:
        for layer, attention in enumerate(wired.modules):
            if str(layer) in adapters.layers:
                for handle in run.hooks(layer, attention, _owner(model, wired, attention)):
                    stack.callback(handle.remove)
        overrides = {}
        if hasattr(model, "_prepare_cache_for_generation"):
            overrides["_prepare_cache_for_generation"] = _without_beams(model)
        stack.enter_context(installed(model, wired, run, overrides))
        yield


class _Run:
    """Attention of all layers, and what the adapted ones remember of a pass and of the tokens before it."""

    def __init__(self, adapters: SparseGINAdapters) -> None:
        self.adapters = adapters
        self.edges: dict[int, SparseEdges] = {}
        self.residual: dict[int, Tensor] = {}
        self.past: dict[int, Tensor] = {}

    def attention(
        self, layer: int, query: Tensor, key: Any, value: Any, mask: TokenMask, scaling: float, dropout: float
    ) -> Tensor:
        """The model's own attention; the strong edges of adapted layers on the way."""
        if not isinstance(key, Tensor) or mask.key_start:
            raise UnsupportedModel(
                f"layer {layer} does not hand all keys as one tensor: sparse_gin() needs a cache that keeps "
                "every token, such as DynamicCache"
            )
        pattern = causal() if mask.window is None else causal() & window(mask.window)
        valid = None if mask.valid is None else mask.valid[:, : key.shape[2]]
        options: dict[str, Any] = {
            "pattern": pattern,
            "q_at": Tokens(query.shape[2], start=mask.query_start),
            "k_at": Tokens(key.shape[2], valid=valid),
        }
        if str(layer) in self.adapters.layers:
            self._check_past(layer, mask.query_start)
            given = {**self.adapters.options, **options}
            self.edges[layer] = strong_edges(query, key, scale=scaling, **given)
        found: Tensor = attend(query, key, value, score=Dot(scaling), dropout=dropout, **options)
        return found

    def _check_past(self, layer: int, before: int) -> None:
        """That as many states are remembered as the cache holds tokens, which is all that can be seen."""
        if not before:
            self.past.pop(layer, None)
        kept = self.past[layer].shape[1] if layer in self.past else 0
        if kept != before:
            raise ValueError(
                f"the cache holds {before} tokens, but layer {layer} of sparse_gin() remembers {kept} of its "
                "neighbours' states: begin the cache inside the block, and use one at a time"
            )

    def hooks(self, layer: int, attention: nn.Module, owner: nn.Module) -> list[Any]:
        def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.residual[layer] = given[0] if given else named["hidden_states"]

        def leave(module: nn.Module, given: Any, out: tuple[Any, ...]) -> tuple[Any, ...]:
            adapter = self.adapters.layers[str(layer)]
            x = self.residual.pop(layer) + out[0]
            kind = adapter.enter.weight.dtype  # type: ignore[union-attr]
            change, every = adapter.change(x.to(kind), self.edges.pop(layer), self.past.get(layer))  # type: ignore[operator]
            self.past[layer] = every.detach()
            return out[0] + change.to(out[0].dtype), *out[1:]

        return [
            owner.register_forward_pre_hook(enter, with_kwargs=True),
            attention.register_forward_hook(leave),
        ]


def _owner(model: nn.Module, wired: Wiring, attention: nn.Module) -> nn.Module:
    """The decoder layer of an attention module, if x + attention(norm(x)) is all that it does first."""
    name = next(name for name, module in model.named_modules() if module is attention)
    owner = model.get_submodule(name.rpartition(".")[0])
    plain = {"self_attn", "input_layernorm", "post_attention_layernorm", "mlp"}
    more = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
    names = {child for child, _ in owner.named_children()}
    scaled = hasattr(owner, "residual_multiplier")
    if not wired.causal or not plain <= names or more & names or scaled:
        raise UnsupportedModel(
            f"{wired.shape.name}: sparse_gin() needs decoder layers of Llama's form (input_layernorm, "
            "self_attn, post_attention_layernorm, mlp, each half added to what it reads), got "
            f"{', '.join(sorted(names))}"
        )
    return owner


def _without_beams(model: nn.Module) -> Any:
    """`generate`'s own preparation, which refuses beam search."""

    def prepare(generation_config: Any, *rest: Any, **named: Any) -> Any:
        if (generation_config.num_beams or 1) > 1:
            raise UnsupportedModel(
                "beam search re-orders the rows of a cache, which sparse_gin() is not told: generate with "
                "num_beams=1"
            )
        original = type(model)._prepare_cache_for_generation  # type: ignore[attr-defined]
        return original(model, generation_config, *rest, **named)

    return prepare
