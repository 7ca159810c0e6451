"""Run a pretrained model with a plan (or any pattern) in place of its attention, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attlas.attend import Normaliser, Softmax, attend, choose, counting, decode, make_request, record_fallback
from attlas.attend.backends import Choice, Fallbacks, execute
from attlas.attend.request import Request
from attlas.attend.view import KVView
from attlas.bridges.attention import installed
from attlas.bridges.mask import TokenMask
from attlas.bridges.models import UnsupportedModel, Wiring, wiring
from attlas.bridges.swap import LayerRule, Rules, layer_rules
from attlas.cache import Entry, Part, RaggedCache
from attlas.cache.rows import Job, checked_total
from attlas.pattern import Pattern, Tokens, causal, window
from attlas.score import Dot, Score

__all__ = ["Applied", "applied"]

# (queries, keys or view, values, positions of the keys, whether no pattern is needed, who is told the result)
Observer = Callable[[Tensor, Tensor, float], None]
Call = tuple[Job, Tensor | KVView, Tensor | None, Tokens | None, bool, Observer | None]


_SOFTMAX = Softmax()


@contextmanager
def applied(
    model: nn.Module,
    plan: Rules,
    *,
    total: int | Sequence[int] | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Iterator[Applied]:
    """Inside the block the model attends by `plan`: forward, cached decoding, `generate`; afterwards as
    before.

        with at.applied(model, plan) as handle:
            model.generate(**inputs, max_new_tokens=64)

    plan: a Plan made for this model, one pattern for all layers, or one per layer (a decoder's are made
    causal; the model's own sliding windows stay in force); or `swap(normaliser=, score=, pattern=)`, or a
    list of swaps, which exchange other parts too (by the generic backend, slower: `handle.fallbacks`). N of
    elastic spans is the row's own length: its real tokens in a plain forward, prompt + new tokens in
    `generate`; total= (one number or one per row) fixes it instead, and is needed to continue a cache of
    transformers' own by a second chunk. Padding (left, right) changes nothing.

    `generate` uses a RaggedCache; a DynamicCache (passed, or made by the model's forward) keeps every key and
    is masked by position. PlanMismatch: the plan is for another model. UnsupportedModel: says what is
    missing. RuntimeError: nested use. The model's weights are never touched, its logits afterwards are
    bitwise the same.
    """
    wired = wiring(model)
    handle = Applied(model, wired, layer_rules(plan, wired), total, backend, strict)
    overrides: dict[str, Any] = {}
    if hasattr(model, "_prepare_cache_for_generation"):
        overrides["_prepare_cache_for_generation"] = handle.prepare_cache
    with counting() as handle.counted, installed(model, wired, handle, overrides):
        yield handle


class Applied:
    """What `applied` yields: makes caches, and tells every fallback that happened."""

    def __init__(
        self,
        model: nn.Module,
        wired: Wiring,
        rules: Sequence[LayerRule],
        total: int | Sequence[int] | None,
        backend: str,
        strict: bool,
    ) -> None:
        self.model, self.wired, self.rules = model, wired, tuple(rules)
        self.patterns = tuple(rule.pattern for rule in rules)
        self.total = checked_total(total)
        self.backend, self.strict = backend, strict
        self.counted = Fallbacks()
        self.cache: RaggedCache | None = None
        self._bound: dict[tuple[int, int | None], Pattern] = {}
        self._choices: dict[tuple[int, bool, bool], Choice] = {}

    @property
    def fallbacks(self) -> list[dict[str, str | int]]:
        """Every fallback inside the block so far: {"what", "why", "count"}."""
        return self.counted.records()

    def new_cache(self, total: int | Sequence[int] | None = None) -> RaggedCache:
        """An empty ragged cache for requests of `total` tokens (prompt and new ones), to prefill by hand."""
        shape = self.wired.shape
        cache = RaggedCache(
            self.patterns,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            total=self.total if total is None else total,
            windows=self.wired.windows,
        )
        for what, why in cache.fallbacks:
            record_fallback(what, why)
        return cache

    def prepare_cache(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """`generate`'s hook of the same purpose: a RaggedCache with N = prompt + new tokens of each row."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            original = type(self.model)._prepare_cache_for_generation  # type: ignore[attr-defined]
            return original(self.model, generation_config, model_kwargs, generation_mode, *rest, **more)
        if "assisted" in str(getattr(generation_mode, "value", generation_mode)):
            raise UnsupportedModel(
                "assisted generation takes tokens back, which a ragged cache cannot once a ring has wrapped: "
                "generate without assistant_model and prompt_lookup_num_tokens inside applied()"
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UnsupportedModel(
                f"cache_implementation={generation_config.cache_implementation!r} cannot be combined with "
                "applied(), which brings its own ragged cache: leave cache_implementation unset"
            )
        longest = (more["max_cache_length"] if "max_cache_length" in more else rest[-1]) + 1
        total: int | Sequence[int] = longest
        mask = model_kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            total = [longest - mask.shape[1] + int(real) for real in (mask != 0).sum(dim=1).tolist()]
        self.cache = self.new_cache(None if self.total is not None else total)
        model_kwargs["past_key_values"] = self.cache
        return None

    def attention(
        self, layer: int, query: Tensor, key: Any, value: Any, mask: TokenMask, scaling: float, dropout: float
    ) -> Tensor:
        """One layer's attention; see `attlas.bridges.attention.Handler`."""
        if mask.window != self.wired.windows[layer]:
            raise UnsupportedModel(
                f"layer {layer} of {self.wired.shape.name} applies a sliding window of {mask.window}, but "
                f"its configuration says {self.wired.windows[layer]}: such a model is not supported"
            )
        rule = self.rules[layer]
        score = Dot(scaling) if rule.score is None else rule.score
        if isinstance(key, Entry):
            parts = key.parts(mask.new_valid, layer)
            if any(part.observe is not None for part in parts):
                self._check_full(layer)
            if len(parts) == 1 and parts[0].exact and parts[0].job.whole and not dropout:
                return self._decode(layer, query, parts[0], score)
            width = parts[0].value_width if parts else query.shape[-1]
            calls: list[Call] = [
                (part.job, part.key, part.value, None, part.exact, part.observe) for part in parts
            ]
        elif isinstance(key, Tensor):
            width = value.shape[-1]
            jobs = mask.jobs(query.shape[0], self.total)
            calls = [
                (job, keys.take(key), keys.take(value), _tokens(keys), False, None) for job, keys in jobs
            ]
        else:
            raise UnsupportedModel(
                f"layer {layer} hands {type(key).__name__} to its attention instead of keys"
            )
        return self._run(layer, query, width, calls, score, dropout)

    def _decode(self, layer: int, query: Tensor, part: Part, score: Score) -> Tensor:
        """One token per row on exactly what the cache keeps: no pattern, and the backend is chosen only
        once."""
        if not isinstance(part.key, KVView):
            raise TypeError(f"a decoded token needs a KVView, got {type(part.key).__name__}")
        own, normaliser, q_at = self.rules[layer].own, self._normaliser(layer), _tokens(part.job)
        kind = (layer, part.key.groups[0].valid is None, query.requires_grad)
        choice = self._choices.get(kind)
        if choice is None:
            request = make_request(
                query, part.key, score=score, normaliser=normaliser, q_at=q_at, strict=self.strict
            )
            choice = self._choices[kind] = choose(request, self.backend)
        if own and choice.name == decode.NAME and choice.fallback is None:
            out, lse = decode.attend_view(query, part.key, _scale(score, query))
        else:
            request = Request(
                query, None, None, part.key, q_at, None, score=score, normaliser=normaliser,
                strict=self.strict,
            )  # fmt: skip
            out, state = execute(request, choice)
            lse = state.lse
        if part.observe is not None:
            part.observe(query, lse, _scale(score, query))
        return out

    def _run(
        self, layer: int, query: Tensor, value_width: int, calls: Sequence[Call], score: Score, dropout: float
    ) -> Tensor:
        """Attend call by call and put the rows together; padded queries give 0."""
        outs = []
        for job, key, value, k_at, exact, observe in calls:
            pattern = None if exact else self._pattern(layer, job.total)
            asked = job.take(query)
            found = attend(
                asked,
                key,
                value,
                pattern=pattern,
                score=score,
                normaliser=self._normaliser(layer),
                q_at=_tokens(job),
                k_at=k_at,
                dropout=dropout,
                backend=self.backend,
                strict=self.strict,
                return_state=observe is not None,
            )
            out = found
            if observe is not None:
                out, state = found
                observe(asked, state.lse, _scale(score, query))
            if job.whole and job.count == query.shape[2]:
                return out
            outs.append((job, out))
        batch, heads, count, _ = query.shape
        # In memory as transformers wants it, (B, n, H, V), so that nothing is copied for it later.
        together = query.new_zeros(batch, count, heads, value_width).transpose(1, 2)
        for job, out in outs:
            job.put(together, out)
        return together

    def _normaliser(self, layer: int) -> Normaliser:
        return self.rules[layer].normaliser or _SOFTMAX

    def _check_full(self, layer: int) -> None:
        """A cache that evicts by weight decides alone what is seen, by the weights of a softmax."""
        shape = self.wired.shape
        if not self.rules[layer].own:
            raise UnsupportedModel(
                f"layer {layer} attends by {self.rules[layer].changed}, but an EvictingCache weighs its keys "
                "by the softmax of the model's own logits: use the cache of handle.new_cache(total=...)"
            )
        kinds = set(self.patterns[layer].expand(shape.heads, shape.kv_heads))
        if kinds != {causal()} or self.wired.windows[layer] is not None:
            window = self.wired.windows[layer]
            raise UnsupportedModel(
                f"layer {layer} attends by {self.patterns[layer]}"
                + ("" if window is None else f" inside the model's own window of {window}")
                + ", but an EvictingCache is for full causal attention: use applied(model, attlas.causal()) "
                "on a model without sliding windows, or the cache of handle.new_cache(total=...)"
            )

    def _pattern(self, layer: int, total: int | None) -> Pattern:
        """The layer's pattern at length N, inside the model's own window."""
        key = (layer, total)
        if key not in self._bound:
            pattern, own = self.patterns[layer], self.wired.windows[layer]
            if pattern.free and total is None:
                raise ValueError(
                    f"the spans of layer {layer} grow with the length N of the request, which is not known "
                    "when a cache is continued by a second chunk: pass total= (prompt and new tokens "
                    "together) to applied(), or use the cache of handle.new_cache(total=...)"
                )
            if own is not None:
                pattern = pattern & window(own)
            self._bound[key] = pattern if total is None else pattern.bind(N=total)
        return self._bound[key]


def _tokens(job: Job) -> Tokens:
    return Tokens(job.count, start=job.start, total=job.total)


def _scale(score: Score, query: Tensor) -> float:
    """Of the dot product, which any observer of weights assumes."""
    if not isinstance(score, Dot):
        raise TypeError(f"a scale belongs to a dot product, not to {score.name}")
    return score.scale_for(query.shape[-1])
