"""Mini-CAB: one attention in one small net and task; everything but the attention under test is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.tasks import Forecasts

__all__ = ["ATTENTIONS", "FORM", "METRICS", "SUPPORT", "TASKS", "Task", "mixer", "trained"]

ATTENTIONS = ("vanilla", "local", "abc", "performer")
SUPPORT = {
    "NS": ("vanilla", "local", "abc", "performer"),
    "CS": ("vanilla", "local", "abc"),
    "NC": ("vanilla", "abc", "performer"),
    "CC": ("vanilla", "abc", "performer"),
}
"""Which of the four have a form, by CAB's table (arXiv 2210.07661)."""
Direction: TypeAlias = Literal["higher", "lower"]
FORM = {
    "digits": "NS", "masked bytes": "NS", "next byte": "CS", "sets": "NC", "forecast": "NC",
    "reversed digits": "CC", "spelled digits": "CC",
}  # fmt: skip
"""The tasks, and the pattern whose attention is exchanged in each."""
METRICS: Mapping[str, Mapping[str, Direction]] = {
    "digits": {"accuracy": "higher"},
    "masked bytes": {"bits": "lower"},
    "next byte": {"bits": "lower"},
    "sets": {"MSE": "lower"},
    "forecast": {"MSE": "lower", "MAE": "lower"},
    "reversed digits": {"bits": "lower"},
    "spelled digits": {"bits": "lower"},
}
"""What is measured in each, and which way is better; bits are per symbol."""
WIDTH, HEADS, LAYERS = 48, 4, 2
TEXT, KNOWN, ASKED, REVERSED, SPELLED = 64, 32, 16, 12, 4
GIVEN, AHEAD = 104, 26  # weeks
TESTED = 256
TEST_SEED = 987_654  # of test examples that are drawn, the same for all nets


@dataclass(frozen=True)
class Task:
    """make(mixer) -> net, from what makes the attention under test; batches(seed): endless; loss(net, batch);

    test(): the examples for score(net, examples) -> value of each metric.
    """

    make: Callable[[Callable[[], nn.Module]], nn.Module]
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    test: Callable[[], Any]
    score: Callable[[nn.Module, Any], dict[str, float]]


def mixer(attention: str, form: str) -> nn.Module:
    """CAB's variant of one of ATTENTIONS in one form, or "none": a mixer that gives 0."""
    from attlas.layers import MIXERS, SelfAttention, Setting
    from attlas.models import NoMixing
    from attlas.pattern import causal, window

    if attention == "none":
        return NoMixing()
    if attention not in SUPPORT[form]:
        raise ValueError(f"{attention} has no {form} form in CAB; {', '.join(SUPPORT[form])} have one")
    patterns = {
        ("vanilla", "CS"): causal(),
        ("local", "NS"): window(16),  # 15 tokens on both sides
        ("local", "CS"): causal() & window(15),
    }
    if attention in ("vanilla", "local"):
        return SelfAttention(WIDTH, HEADS, pattern=patterns.get((attention, form)), bias=True)
    return MIXERS[attention].build(Setting(WIDTH, HEADS, causal=form[0] == "C", cross=form[1] == "C"))


def trained(
    name: str, attention: str, seed: int, steps: int, step: Callable[[str], None]
) -> dict[str, float]:
    """Train a task's net with one attention; its metrics on the test examples.

    "none" takes the noncausal self-attention away: the one under test in NS, the net's own in NC.
    """
    import torch

    from attlas.train import Recipe, fit

    across = attention == "none" and FORM[name] == "NC"
    task = TASKS[name]("none" if across else "vanilla")
    kind = "vanilla" if across else attention
    torch.manual_seed(seed)
    net = task.make(lambda: mixer(kind, FORM[name]))
    fit(net, task.batches(seed), task.loss, Recipe(steps, learning_rate=2e-3), step=step)
    with torch.no_grad():
        return task.score(net, task.test())


def _row(
    embedding: nn.Module, make: Callable[[], nn.Module], length: int, head: Callable[[], nn.Module]
) -> nn.Module:
    from attlas.models import Placed, SmallNet

    mixers = (make() for _ in range(LAYERS))
    return SmallNet(Placed(embedding, length, WIDTH), mixers, head, width=WIDTH)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _bits(value: Tensor) -> dict[str, float]:
    return {"bits": value.item() / math.log(2)}


def _digits() -> Task:
    from torch import nn

    from attlas.models import MeanToken
    from attlas.tasks import digits_on_canvas
    from attlas.train import label_loss

    train, test = digits_on_canvas(8, step=None, train=1438, test=359, seed=0)

    def make(attention: Callable[[], nn.Module]) -> nn.Module:
        return _row(
            nn.Linear(1, WIDTH), attention, 64, lambda: nn.Sequential(MeanToken(), nn.Linear(WIDTH, 10))
        )

    def pixels(images: Tensor) -> Tensor:
        return images.flatten(1)[..., None]

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((pixels(images), labels) for images, labels in train.batches(32, seed))

    def score(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        return {"accuracy": (net(batch[0]).argmax(1) == batch[1]).float().mean().item()}

    return Task(make, batches, label_loss, lambda: (pixels(test.images), test.labels), score)


def _bytes(form: str) -> Task:
    """Masked bytes (NS), or the next byte (CS)."""
    from torch import nn

    from attlas.tasks import byte_text, load_source
    from attlas.tasks.mini_cab import masked_bytes
    from attlas.train import next_token_loss

    text = byte_text(load_source("python-docs"))

    def make(attention: Callable[[], nn.Module]) -> nn.Module:
        return _row(nn.Embedding(257, WIDTH), attention, TEXT, lambda: nn.Linear(WIDTH, 256))

    def masked(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _entropy(net(batch[0]), batch[1])

    loss: Callable[[nn.Module, Any], Tensor] = masked if form == "NS" else next_token_loss
    windows = text.test_windows(TEXT, TESTED)

    def batches(seed: int) -> Iterator[Any]:
        if form == "CS":
            return text.batches(16, TEXT, seed)
        return masked_bytes((ids[:, 1:] for ids in text.batches(16, TEXT, seed)), seed)

    def test() -> Any:
        return windows if form == "CS" else next(masked_bytes(iter([windows[:, 1:]]), TEST_SEED))

    return Task(make, batches, loss, test, lambda net, batch: _bits(loss(net, batch)))


def _across(
    source: nn.Module, target: nn.Module, out: int, own: nn.Module, cross: nn.Module, encoder: str
) -> nn.Module:
    """One encoder block, one decoder block with its `own` mixer and the cross mixer."""
    from torch import nn

    from attlas.models import EncoderDecoder

    return EncoderDecoder(
        source, target, nn.Linear(WIDTH, out), width=WIDTH, encoder=[mixer(encoder, "NS")],
        decoder=[(own, cross)],
    )  # fmt: skip


def _sets(own: str) -> Task:
    """Values of a function at some places, from a set of its points; own: attention among the points."""
    from torch import nn
    from torch.nn import functional

    from attlas.tasks.mini_cab import curves

    def make(attention: Callable[[], nn.Module]) -> nn.Module:
        points, places = nn.Linear(2, WIDTH), nn.Linear(1, WIDTH)
        return _across(points, places, 1, mixer("none", "NS"), attention(), own)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(net(batch[0], batch[1]), batch[2])

    return Task(
        make, lambda seed: curves(32, KNOWN, ASKED, seed), loss,
        lambda: next(curves(TESTED, KNOWN, ASKED, TEST_SEED)),
        lambda net, batch: {"MSE": loss(net, batch).item()},
    )  # fmt: skip


def _forecast(own: str) -> Task:
    """The next half year of atmospheric CO2 from two years of weeks; own: attention among the weeks."""
    from torch.nn import functional

    from attlas.models import SeriesTransformer
    from attlas.tasks import forecasts, load_series

    data: Forecasts = forecasts(load_series("co2"), GIVEN, AHEAD)

    def make(attention: Callable[[], nn.Module]) -> nn.Module:
        return SeriesTransformer(
            1, 1, AHEAD, length=GIVEN, label=AHEAD, width=WIDTH, encoder=[mixer(own, "NS")],
            decoder=[(mixer(own, "NS"), attention())],
        )  # fmt: skip

    def relative(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        # The level rises beyond all that was seen: windows are told from their last step on.
        values, marks, answers = batch
        last = values[:, -1:]
        return values - last, marks, answers - last

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(net(batch[0], batch[1]), batch[2])

    def score(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
        gap = net(batch[0], batch[1]) - batch[2]
        return {"MSE": gap.square().mean().item(), "MAE": gap.abs().mean().item()}

    return Task(
        make, lambda seed: map(relative, data.batches(16, seed)), loss,
        lambda: relative(data.windows(data.test)), score,
    )  # fmt: skip


def _transduction(kind: Literal["reversed", "spelled"]) -> Task:
    """Digits from behind, or spelled letter by letter, each symbol given the right ones before it."""
    from torch import nn

    from attlas.models import Placed
    from attlas.tasks.mini_cab import SPELLING, reversed_digits, spelled_digits

    backwards = kind == "reversed"
    make_batches = reversed_digits if backwards else spelled_digits
    symbols, given, asked = (10, REVERSED, REVERSED) if backwards else (SPELLING, SPELLED, 6 * SPELLED)

    def make(attention: Callable[[], nn.Module]) -> nn.Module:
        source = Placed(nn.Embedding(10, WIDTH), given, WIDTH)
        target = Placed(nn.Embedding(symbols + 1, WIDTH), asked, WIDTH)
        return _across(source, target, symbols, mixer("vanilla", "CS"), attention(), "vanilla")

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        from torch.nn import functional

        source, target = batch
        # One more symbol stands before the first and behind the last.
        before = functional.pad(target[:, :-1].clamp_min(-1).remainder(symbols + 1), (1, 0), value=symbols)
        return _entropy(net(source, before), target)

    return Task(
        make, lambda seed: make_batches(32, given, seed), loss,
        lambda: next(make_batches(TESTED, given, TEST_SEED)), lambda net, batch: _bits(loss(net, batch)),
    )  # fmt: skip


TASKS: dict[str, Callable[[str], Task]] = {
    "digits": lambda own: _digits(),
    "masked bytes": lambda own: _bytes("NS"),
    "next byte": lambda own: _bytes("CS"),
    "sets": _sets,
    "forecast": _forecast,
    "reversed digits": lambda own: _transduction("reversed"),
    "spelled digits": lambda own: _transduction("spelled"),
}
"""The tasks by name, made with the net's own noncausal self-attention where another one is under test."""
