"""results.json of a run: what the report and the command's table are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from attlas._common.files import write_json
from attlas._common.machine import machine, peak_memory, versions
from attlas.pattern import ModelShape, Plan
from attlas.tasks import TextSource
from attlas.tune.evaluate import Evaluation, merge_fallbacks
from attlas.tune.settings import Settings
from attlas.tune.store import Store

__all__ = ["Method", "results"]

SCHEMA, VERSION = "attlas.run", 1


@dataclass
class Method:
    """One compared method: dense (no plan) or a plan, with what was measured of it by length."""

    name: str
    label: str
    budget: float | None
    plan: Plan | None
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    time: dict[int, dict[str, Any]] = field(default_factory=dict)
    multi_key: dict[int, Evaluation] = field(default_factory=dict)

    def to_dict(self, settings: Settings) -> dict[str, Any]:
        """Its entry in results.json."""
        density = {str(n): 1.0 if self.plan is None else self.plan.density(n) for n in settings.all_lengths}
        return {
            "name": self.name,
            "label": self.label,
            "budget": self.budget,
            "density": density,
            "quality": {str(length): found.quality for length, found in sorted(self.evaluations.items())},
            "multi_key": {str(length): found.quality for length, found in sorted(self.multi_key.items())},
            "time": {str(length): entry for length, entry in sorted(self.time.items())},
        }


def results(
    store: Store,
    model: nn.Module,
    shape: ModelShape,
    settings: Settings,
    source: TextSource,
    plan: Plan,
    methods: Mapping[str, Method],
    pareto: Mapping[str, Any],
    notes: list[str],
    fallbacks: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `results.json` (schema attlas.run, version 1) and return its path."""
    alphas, betas = plan.spans()
    every = [
        one
        for method in methods.values()
        for one in (*method.evaluations.values(), *method.multi_key.values())
    ]
    happened = [*fallbacks, *(row for evaluation in every for row in evaluation.fallbacks)]
    value = {
        "schema": SCHEMA,
        "version": VERSION,
        "settings": settings.to_dict()
        | {"text": {"name": source.name, "licence": source.licence, "origin": source.origin}},
        "versions": versions(),
        "machine": machine() | {"peak_memory_bytes": peak_memory()},
        "model": {
            "name": shape.name,
            "family": shape.family,
            "layers": shape.layers,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "head_width": shape.head_width,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "context": getattr(model.config, "max_position_embeddings", None),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        },
        "lengths": list(settings.lengths),
        "extend": settings.extension,
        "budget": settings.budget,
        "methods": [method.to_dict(settings) for method in methods.values()],
        "pareto": dict(pareto),
        "plan": {
            "alphas": alphas,
            "betas": betas,
            "file": "plan.json",
            "rules": [[str(rule) for rule in layer] for layer in plan.layers],
        },
        "fallbacks": merge_fallbacks(happened),
        "stages": store.stages,
        "notes": notes,
    }
    return write_json(store.folder / "results.json", value)
