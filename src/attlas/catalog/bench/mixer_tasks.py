"""The tasks on which token mixers are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from attlas.catalog.bench.task import ACCURACY, BITS, ERROR, UNDER_TEST, Batch, BenchTask, Split
from attlas.models import LastToken, LearnedPositions, MeanToken
from attlas.tasks import (
    PASSKEY_VOCABULARY,
    ByteText,
    Recall,
    byte_text,
    copying,
    digit_tokens,
    forecasts,
    induction,
    load_series,
    load_source,
    mqar,
    passkey,
)

__all__ = [
    "TASKS",
    "copy_task",
    "digits_task",
    "induction_task",
    "passkey_task",
    "recall_task",
    "series_task",
    "text_task",
]

# A short convolution first, as in the recall experiments of Zoology and BASED: it brings a value's key to it.
SHIFTED = ("base_conv", UNDER_TEST)
TWICE = (UNDER_TEST, UNDER_TEST)


def _tokens(vocabulary: int) -> Callable[[int], nn.Module]:
    def make(width: int) -> nn.Embedding:
        embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(embedding.weight, std=0.02)
        return embedding

    return make


def _each(outputs: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.Linear(width, outputs, bias=False)


def _drawn(
    draw: Callable[[int, torch.Generator], Batch], batch: int, test: int, seed: int, tuning: bool
) -> Split:
    """Fresh examples for every batch. No generator of one use is that of another."""
    train, judge = (torch.Generator().manual_seed(4 * seed + 2 * tuning + part) for part in (0, 1))

    def batches() -> Iterator[Batch]:
        while True:
            yield draw(batch, train)

    return Split(batches(), draw(test, judge))


def recall_task(
    name: str = "mqar",
    *,
    vocabulary: int = 128,
    length: int = 64,
    pairs: int = 8,
    train: int = 20_000,
    test: int = 1_000,
    batch: int = 64,
    steps: int = 400,
) -> BenchTask:
    """Multi-query associative recall: the state must hold every pair until its key comes again."""

    @lru_cache(maxsize=1)  # drawing takes a second, and one seed serves all learning rates
    def drawn(seed: int) -> tuple[Recall, Recall]:
        return mqar(vocabulary=vocabulary, length=length, pairs=pairs, train=train, test=test, seed=seed)

    def data(seed: int, tuning: bool) -> Split:
        shown, judged = drawn(2 * seed + tuning)
        return Split(shown.batches(batch, seed), (judged.ids, judged.labels))

    return BenchTask(
        name=name,
        says=f"associative recall, {pairs} pairs in {length} tokens, vocabulary {vocabulary}",
        objective=ACCURACY,
        length=length,
        causal=True,
        layers=SHIFTED,
        embedding=_tokens(vocabulary),
        head=_each(vocabulary),
        data=data,
        batch=batch,
        steps=steps,
    )


def copy_task(
    *, length: int = 65, symbols: int = 30, test: int = 500, batch: int = 64, steps: int = 400
) -> BenchTask:
    """Say a random string again."""
    return BenchTask(
        name="copy",
        says=f"copying {length // 2} random symbols of {symbols}",
        objective=ACCURACY,
        length=length,
        causal=True,
        layers=SHIFTED,
        embedding=_tokens(symbols + 1),
        head=_each(symbols + 1),
        data=partial(
            _drawn, lambda count, generator: copying(count, length, symbols, generator), batch, test
        ),
        batch=batch,
        steps=steps,
    )


def induction_task(
    *, length: int = 64, symbols: int = 30, test: int = 1_000, batch: int = 64, steps: int = 400
) -> BenchTask:
    """Say what followed a special token."""
    return BenchTask(
        name="induction",
        says=f"what followed the special token, once in {length} tokens",
        objective=ACCURACY,
        length=length,
        causal=True,
        layers=SHIFTED,
        embedding=_tokens(symbols + 1),
        head=_each(symbols + 1),
        data=partial(
            _drawn, lambda count, generator: induction(count, length, symbols, generator), batch, test
        ),
        batch=batch,
        steps=steps,
    )


@lru_cache(maxsize=1)
def _text() -> tuple[ByteText, Tensor]:
    """Bytes to train and test on, and those in between, for choosing learning rates."""
    text = byte_text(load_source("python-docs"))
    held_out = len(text.test)
    return ByteText(text.train[:-held_out], text.test), text.train[-held_out:]


def text_task(*, length: int = 256, test: int = 64, batch: int = 8, steps: int = 300) -> BenchTask:
    """A language model over bytes."""

    def data(seed: int, tuning: bool) -> Split:
        text, between = _text()
        judged = ByteText(text.train, between if tuning else text.test).test_windows(length, test)
        batches = ((ids[:, :-1], ids[:, 1:]) for ids in text.batches(batch, length, seed))
        return Split(batches, (judged[:, :-1], judged[:, 1:]))

    return BenchTask(
        name="text",
        says=f"language model over bytes of the Python reference, {length} at a time",
        objective=BITS,
        length=length,
        causal=True,
        layers=SHIFTED,
        embedding=_tokens(256),
        head=_each(256),
        data=data,
        batch=batch,
        steps=steps,
    )


def passkey_task(
    *, length: int = 256, digits: int = 4, test: int = 300, batch: int = 16, steps: int = 600
) -> BenchTask:
    """A number hidden in text."""

    def data(seed: int, tuning: bool) -> Split:
        text, between = _text()
        train, judge = (torch.Generator().manual_seed(4 * seed + 2 * tuning + part) for part in (0, 1))
        held_out = passkey(between if tuning else text.test, test, length, digits, judge)

        def batches() -> Iterator[Batch]:
            while True:
                yield passkey(text.train, batch, length, digits, train)

        return Split(batches(), held_out)

    return BenchTask(
        name="passkey",
        says=f"a number of {digits} digits hidden in {length} bytes of the Python reference",
        objective=ACCURACY,
        length=length,
        causal=True,
        layers=SHIFTED,
        embedding=_tokens(PASSKEY_VOCABULARY),
        head=_each(PASSKEY_VOCABULARY),
        data=data,
        batch=batch,
        steps=steps,
    )


def digits_task(
    name: str, *, causal: bool, train: int = 1_437, test: int = 360, batch: int = 64, steps: int = 300
) -> BenchTask:
    """Handwritten digits pixel by pixel; causal: the last pixel answers, else the mean over all."""

    def data(seed: int, tuning: bool) -> Split:
        # One split for all seeds: the last digits of the training part choose learning rates.
        (images, labels), tested = digit_tokens(0, train=train, test=test)
        kept = train - train // 5
        judged = (images[kept:], labels[kept:]) if tuning else tested

        def batches() -> Iterator[Batch]:
            generator = torch.Generator().manual_seed(seed)
            while True:
                chosen = torch.randint(0, kept, (batch,), generator=generator)
                yield images[chosen], labels[chosen]

        return Split(batches(), judged)

    return BenchTask(
        name=name,
        says="handwritten digits as 64 tokens, " + ("read causally" if causal else "all seen at once"),
        objective=ACCURACY,
        length=64,
        causal=causal,
        layers=TWICE,
        embedding=lambda width: nn.Sequential(_tokens(17)(width), LearnedPositions(64, width)),
        head=lambda width: nn.Sequential(LastToken() if causal else MeanToken(), nn.Linear(width, 10)),
        data=data,
        batch=batch,
        steps=steps,
        grid=None if causal else (8, 8),
    )


def series_task(
    *, length: int = 96, horizon: int = 24, batch: int = 32, steps: int = 400, name: str = "elnino"
) -> BenchTask:
    """A monthly temperature: the next two years from eight."""

    def data(seed: int, tuning: bool) -> Split:
        found = forecasts(load_series(name), length, horizon)
        batches = ((given, answer.flatten(1)) for given, _, answer in found.batches(batch, seed))
        given, _, answer = found.windows(found.validation if tuning else found.test)
        return Split(batches, (given, answer.flatten(1)))

    return BenchTask(
        name="series",
        says=f"{horizon} months of the sea's temperature (El Nino) from the {length} before, standardised",
        objective=ERROR,
        length=length,
        causal=True,
        layers=TWICE,
        embedding=lambda width: nn.Sequential(nn.Linear(1, width), LearnedPositions(length, width)),
        head=lambda width: nn.Sequential(LastToken(), nn.Linear(width, horizon)),
        data=data,
        batch=batch,
        steps=steps,
    )


TASKS: dict[str, BenchTask] = {
    task.name: task
    for task in (
        recall_task(),
        recall_task("mqar_long", vocabulary=512, length=128, pairs=16, steps=800),
        passkey_task(),
        copy_task(),
        induction_task(),
        text_task(),
        series_task(),
        digits_task("digits", causal=False),
        digits_task("digits_causal", causal=True),
    )
}
"""Every task by its name."""
