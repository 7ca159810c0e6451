"""Aaren's claim: near a Transformer in accuracy, with a state that does not grow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "judge", "measure"]

WIDTH, HEADS, LAYERS = 64, 4, 2
MIXERS = ("Aaren", "Transformer")
TASKS = ("digits by rows", "digits by pixels", "text")
TRAIN, TEST, BATCH = 1437, 359, 64
TEXT_LENGTH, TEXT_TEST = 48, 400
TEXTS = ("python-docs", "python-docstrings")
HELD_OUT = 0.2
STEPS, LONG_STEPS = 200, 1500
LEARNING_RATE = 2e-3
PLACES = (1250, 5000, 20_000)
TIMED, REPEATS, PIECE = 16, 7, 1250
CHANCE = {"digits by rows": 0.1, "digits by pixels": 0.1, "text": 0.5}
ABOVE_CHANCE, NEAR, FLAT = 0.2, 0.03, 1.5
SETTINGS = {
    "tasks": "scikit-learn digits as 8 rows of 8 pixels and as 64 pixels; which of two texts "
    f"({', '.join(TEXTS)}) {TEXT_LENGTH} bytes come from",
    "net": f"{LAYERS} pre-norm layers, width {WIDTH}, {HEADS} heads, learned positions, read at the last "
    "token",
    "training": f"AdamW {LEARNING_RATE} cosine, {STEPS} batches of {BATCH}, {LONG_STEPS} with --long",
    "streaming": f"one layer, CPU time of {TIMED} tokens one by one at {', '.join(map(str, PLACES))} "
    f"tokens, least of {REPEATS}",
}


def mixer(name: str) -> Any:
    """One token mixer of the two."""
    from attlas.layers import Aaren, SelfAttention
    from attlas.pattern import causal

    return Aaren(WIDTH, HEADS) if name == "Aaren" else SelfAttention(WIDTH, HEADS, pattern=causal())


def network(name: str, enter: nn.Module, length: int, classes: int) -> nn.Module:
    """`enter`, learned positions, blocks, and the classes at the last token."""
    import torch
    from torch import nn

    from attlas.layers import Block

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.places = enter, nn.Parameter(torch.randn(length, WIDTH))
            self.blocks = nn.ModuleList(Block(WIDTH, mixer(name)) for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

        def forward(self, inputs: Tensor) -> Tensor:
            x = self.enter(inputs) + self.places
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x[:, -1]))

    return Reader()


def digits(task: str, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(inputs (n, tokens, features), labels) to train and to test on."""
    from attlas.tasks import digits_on_canvas

    tokens = 8 if task == "digits by rows" else 64
    parts = digits_on_canvas(8, step=None, train=TRAIN, test=TEST, seed=seed)
    train, test = ((part.images.reshape(len(part.images), tokens, -1), part.labels) for part in parts)
    return train, test


def texts(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Windows of bytes and which text they come from; the last fifth of each text is for the test alone."""
    import torch

    from attlas.tasks import byte_text, load_source

    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], []]
    for name in TEXTS:
        text = load_source(name)
        source = byte_text(text, held_out=int(HELD_OUT * len(text.text)))
        for part, data, count in zip(
            parts, (source.train, source.test), (STEPS * BATCH // 2, TEXT_TEST), strict=True
        ):
            starts = torch.randint(0, len(data) - TEXT_LENGTH, (count, 1), generator=generator)
            part.append(data[starts + torch.arange(TEXT_LENGTH)])
    train, test = (
        (torch.cat(part), torch.arange(len(TEXTS)).repeat_interleave(len(part[0]))) for part in parts
    )
    return train, test


def batches(inputs: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, drawn with replacement."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(0, len(labels), (BATCH,), generator=generator)
        yield inputs[chosen], labels[chosen]


def trained(name: str, task: str, seed: int, steps: int, step: Step) -> Values:
    """Accuracy on unseen sequences."""
    import torch
    from torch import nn

    from attlas.train import Recipe, fit, label_loss

    train, test = texts(seed) if task == "text" else digits(task, seed)
    torch.manual_seed(seed)
    enter = nn.Embedding(256, WIDTH) if task == "text" else nn.Linear(train[0].shape[-1], WIDTH)
    net = network(name, enter, train[0].shape[1], len(TEXTS) if task == "text" else 10)
    fit(net, batches(*train, seed), label_loss, Recipe(steps, learning_rate=LEARNING_RATE), step=step)
    with torch.no_grad():
        right = (net(test[0]).argmax(-1) == test[1]).float().mean().item()
    return {f"accuracy on {task}, {name}": right}


def streamed(name: str, seed: int) -> Values:
    """Bytes of the state and CPU microseconds per token of one layer, after more and more tokens."""
    import torch

    torch.manual_seed(seed)
    layer, found = mixer(name), {}
    with torch.no_grad():
        state, here = layer.start(1), 0
        for place in PLACES:
            while here < place:
                _, state = layer.advance(torch.randn(1, PIECE, WIDTH), state)
                here += PIECE
            found[f"bytes at {place}, {name}"] = float(state.nbytes)
            times = []
            for _ in range(REPEATS):
                after = state
                begun = time.process_time()
                for _ in range(TIMED):
                    _, after = layer.advance(torch.randn(1, 1, WIDTH), after)
                times.append((time.process_time() - begun) / TIMED)
            found[f"microseconds at {place}, {name}"] = 1e6 * min(times)
    return found


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Two nets on three tasks, then both mixers token by token."""
    found: dict[str, float] = {}
    steps = LONG_STEPS if long else STEPS
    for name in MIXERS:
        for task in TASKS:

            def say(text: str, where: str = f"{name}, {task}") -> None:
                step(f"{where}: {text}")

            key = f"{name}-{task}".lower().replace(" ", "-")
            found |= remember(folder, key, partial(trained, name, task, seed, steps, say))
        found |= remember(folder, f"stream-{name.lower()}", partial(streamed, name, seed))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(name: str) -> float:
        return table[name]["mean"]

    right = {(task, name): mean(f"accuracy on {task}, {name}") for task in TASKS for name in MIXERS}
    measured = _told(table)
    weak = [task for task in TASKS if right[task, "Transformer"] < CHANCE[task] + ABOVE_CHANCE]
    if weak:
        return Verdict(
            "not shown at this scale", f"The Transformer does not learn {', '.join(weak)}. {measured}"
        )
    gap = sum(right[task, "Transformer"] - right[task, "Aaren"] for task in TASKS) / len(TASKS)
    sizes = {mean(f"bytes at {place}, Aaren") for place in PLACES}
    first, last = PLACES[0], PLACES[-1]
    rules = {
        f"mean accuracy at most {NEAR} below the Transformer": gap <= NEAR,
        "a state of one size": len(sizes) == 1,
        "the Transformer's state in proportion to the tokens": (
            mean(f"bytes at {last}, Transformer") * first == mean(f"bytes at {first}, Transformer") * last
        ),
        f"time per token at {last} at most {FLAT} times that at {first}": (
            mean(f"microseconds at {last}, Aaren") <= FLAT * mean(f"microseconds at {first}, Aaren")
        ),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    accuracy = "; ".join(
        f"{task} "
        + ", ".join(
            f"{name} {table[f'accuracy on {task}, {name}']['mean']:.3f}"
            f" ± {table[f'accuracy on {task}, {name}']['sd']:.3f}"
            for name in MIXERS
        )
        for task in TASKS
    )
    stream = "; ".join(
        f"{name} "
        + ", ".join(
            f"{table[f'bytes at {place}, {name}']['mean']:.0f} bytes and "
            f"{table[f'microseconds at {place}, {name}']['mean']:.0f} us at {place}"
            for place in PLACES
        )
        for name in MIXERS
    )
    return f"Accuracy: {accuracy}. State and CPU time per token of one layer: {stream}."


CLAIM = Claim(
    says=(
        "Attention of a learned query to every prefix reaches accuracy comparable to a Transformer's, and "
        "streams with constant memory and constant time per token."
    ),
    rule=(
        "Sequences classified at their last token by nets that differ in their mixer alone, means over "
        f"the seeds. Averaged over the tasks Aaren is at most {NEAR} below a causal Transformer. Its state "
        f"has one size at {', '.join(map(str, PLACES))} tokens, the Transformer's grows in proportion, and "
        f"a token at {PLACES[-1]} takes at most {FLAT} times the CPU time of one at {PLACES[0]}. Nothing "
        f"is shown where the Transformer is less than {ABOVE_CHANCE} above chance on a task."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
