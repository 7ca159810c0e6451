"""The checks of `attlas.layers.check_mixer`: each yields a sentence for every promise that is not kept.

The four patterns and the test by prefixes are CAB's (arXiv 2210.07661). Legend: B batch, N tokens, M context.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from attlas.layers.contract_probe import Probe, differs, gap

__all__ = ["CHECKS"]

LONG = 131  # tokens of the second look at the future: beyond two chunks of 64
PIECES = ((1,), (3,), (19,), (2, 7, 1))  # tokens per step of incremental runs, over and over
SOME = 19  # tokens in the check of gradients: scans go by chunks, and windows of 16 leave some out
MANY = 16  # sequences in the check of reach
NOTHING = 1e-12  # below it an output has not changed: far tokens may matter little under decays


def _shape(probe: Probe) -> Iterator[str]:
    """Any number of tokens, one and odd ones too: an output of the queries' shape, all numbers.

    Of a mixer with a fixed number: ValueError for any other one.
    """
    for length in probe.lengths:
        given = probe.inputs(2, length)
        out = probe.run(*given)
        if out.shape != given[0].shape:
            yield f"{length} tokens: the output has shape {tuple(out.shape)}, not {tuple(given[0].shape)}"
        elif not torch.isfinite(out).all():
            yield f"{length} tokens: the output is not finite"
    if probe.entry.tokens == "any":
        return
    for length in (probe.length - 1, probe.length + 1):
        try:
            probe.run(*probe.inputs(2, length))
        except ValueError:
            continue
        yield f"{length} tokens are taken, by a mixer of exactly {probe.length}"


def _repeats(probe: Probe) -> Iterator[str]:
    """The same input gives the same output again."""
    given = probe.inputs(2)
    yield from differs(probe.run(*given), probe.run(*given), "a second run gives another output")


def _future(probe: Probe) -> Iterator[str]:
    """Causal forms: output i neither depends on later tokens nor on how many there are, trained or not."""
    if not probe.setting.causal:
        return
    count = probe.length
    yield from _foreseen(probe, (*range(1, count, 3), 8, 16, 32, count - 1), (1, 2, 9, 17, count - 1))
    if count < LONG:
        yield from _foreseen(probe.longer(LONG), (16, 64, 65, LONG - 1), (17, 64, LONG - 1))
    if trained := probe.in_training():
        yield from _foreseen(trained, (1, count // 2, count - 1), (1, count // 2))


def _foreseen(probe: Probe, cuts: Iterable[int], alone: Iterable[int]) -> Iterator[str]:
    """The first of `cuts` that shows what follows it, and the first of `alone` that shows how much does."""
    x, *context = probe.inputs(2)
    length = x.shape[1]
    whole = probe.run(x, *context)
    for count in sorted(cut for cut in cuts if 0 < cut < length):
        other = torch.cat([x[:, :count], 3 * probe.random(*x[:, count:].shape)], 1)
        text = f"the output of the first {count} tokens changes with the {length - count} after them"
        if told := differs(probe.run(other, *context)[:, :count], whole[:, :count], text + probe.mode):
            yield from told
            break
    for count in sorted(cut for cut in alone if 0 < cut < length):
        text = f"the first {count} tokens alone give another output than before {length - count} more"
        if told := differs(probe.run(x[:, :count], *context), whole[:, :count], text + probe.mode):
            yield from told
            break


def _batch(probe: Probe) -> Iterator[str]:
    """A row's output does not depend on the other rows of its batch; nor in training, unless it shares."""
    trained = None if probe.entry.shares else probe.in_training()
    for one in (probe, trained):
        if one is None:
            continue
        given = one.inputs(3)
        together = one.run(*given)
        for row in range(3):
            alone = one.run(*(part[row : row + 1] for part in given))
            text = f"row {row} differs from the same row alone{one.mode}"
            yield from differs(together[row : row + 1], alone, text)


def _reach(probe: Probe) -> Iterator[str]:
    """Outputs depend on what the form lets them see: both ends of the sequence or context, and on the query.

    Causal self: the last output on the first token. Where the entry is local, on any other that it may see.
    """
    given = probe.inputs(MANY)
    whole = probe.run(*given)
    last, end = given[0].shape[1] - 1, given[-1].shape[1] - 1
    every = slice(None)
    asked: list[tuple[int | slice, int, int | slice, str]]
    if probe.setting.cross:
        asked = [(every, 1, 0, "no output depends on the first token of the context")]
        asked += [(every, 1, end, "no output depends on the last token of the context")]
        asked += [(last, 0, last, "the last output does not depend on its query")]
    elif not probe.setting.causal and probe.entry.local:
        asked = [(0, 0, slice(1, None), "the first output does not depend on any other token")]
        asked += [(last, 0, slice(last), "the last output does not depend on any other token")]
    elif not probe.setting.causal:
        asked = [(0, 0, last, "the first output does not depend on the last token")]
        asked += [(last, 0, 0, "the last output does not depend on the first token")]
    elif probe.entry.local:
        asked = [(last, 0, slice(last), "the last output does not depend on any earlier token")]
    else:
        asked = [(last, 0, 0, "the last output does not depend on the first token")]
    for output, part, token, text in asked:
        other = [one.clone() for one in given]
        other[part][:, token] = 3 * probe.random(*given[part].shape)[:, token]
        # A choice of rows may leave out this output in some sequences, not in all.
        if gap(probe.run(*other)[:, output], whole[:, output]) <= NOTHING:
            yield text


def _padding(probe: Probe) -> Iterator[str]:
    """What stands in padding changes nothing, wherever it is; padding at an end is as if cut off."""
    if not probe.entry.padding:
        return
    given = probe.inputs(2)
    count = given[-1].shape[1]
    steps = torch.arange(count)
    short = max(1, count - 3)
    masks = {
        "behind": torch.stack([steps < count, steps < short]),
        "in front": torch.stack([steps >= 0, steps >= count - short]),
        "in between": torch.stack([steps % 3 != 1, steps % 4 != 2]),
    }
    for where, valid in masks.items():
        noise = 10 * probe.random(*given[-1].shape)
        other = (*given[:-1], torch.where(valid[..., None], given[-1], noise))
        first, second = probe.run(*given, valid=valid), probe.run(*other, valid=valid)
        if not probe.setting.cross:
            first, second = first[valid], second[valid]
        yield from differs(second, first, f"what stands in padding {where} changes the output")
    for where, kept in (("behind", slice(short)), ("in front", slice(count - short, count))):
        cut = (*(part[1:] for part in given[:-1]), given[-1][1:, kept])
        padded = probe.run(*given, valid=masks[where])[1:]
        padded = padded if probe.setting.cross else padded[:, kept]
        yield from differs(padded, probe.run(*cut), f"padding {where} differs from cutting it off")


def _incremental(probe: Probe) -> Iterator[str]:
    """Stateful: piece by piece as all at once, for any pieces; a state serves twice and by rows."""
    if probe.form != "CS" or not probe.entry.stateful:
        return
    module: Any = probe.module
    (x,) = probe.inputs(2)
    whole = probe.run(x)
    for sizes in PIECES:
        state, at = module.start(2), 0
        outs: list[Tensor] = []
        while at < x.shape[1]:
            size = sizes[len(outs) % len(sizes)]
            out, state = module.advance(x[:, at : at + size], state)
            outs.append(out)
            at += size
        text = f"pieces of {', '.join(map(str, sizes))} tokens differ from all at once"
        yield from differs(torch.cat(outs, 1), whole, text)
        if state.position.tolist() != [x.shape[1]] * 2:
            yield f"the state stands at {state.position.tolist()} after {x.shape[1]} tokens"
    middle = x.shape[1] // 2
    _, state = module.advance(x[:, :middle], module.start(2))
    rest = x[:, middle:]
    first, _ = module.advance(rest, state)
    again, _ = module.advance(rest, state)
    yield from differs(again, first, "going on twice from one state differs: the first time changed it")
    swapped, _ = module.advance(rest.flip(0), state.index_select(torch.tensor([1, 0])))
    yield from differs(swapped.flip(0), first, "rows taken from a state by index_select are not its rows")


def _gradient(probe: Probe) -> Iterator[str]:
    """Gradients of inputs and weights are those of finite differences, and everywhere where so declared.

    "almost": at random inputs alone, which are next to no kink or tie. "everywhere": also where all tokens
    are equal, which is where the largest token, the first few and the like have no gradient.
    """
    given = probe.inputs(2, None if probe.fixed else SOME)
    points = {"": given}
    if probe.entry.differentiable == "everywhere":
        points["where all tokens are equal: "] = tuple(part[:, :1].expand_as(part).clone() for part in given)
    weights = {name: weight.detach().requires_grad_() for name, weight in probe.module.named_parameters()}

    def run(*tensors: Tensor) -> Tensor:
        named = dict(zip(weights, tensors[len(given) :], strict=True))
        out: Tensor = functional_call(probe.module, named, tensors[: len(given)])
        return out

    for where, point in points.items():
        inputs = (*(part.requires_grad_() for part in point), *weights.values())
        try:
            torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
        except RuntimeError as error:
            yield f"{where}{type(error).__name__}: {error}"


def _permutes(probe: Probe) -> Iterator[str]:
    """Noncausal self, where declared: permuted tokens give the permuted output."""
    if probe.form != "NS" or not probe.entry.permutes:
        return
    (x,) = probe.inputs(2)
    order = torch.randperm(x.shape[1], generator=probe.generator)
    yield from differs(
        probe.run(x[:, order]), probe.run(x)[:, order], "permuted tokens do not give the permuted output"
    )


def _constant(probe: Probe) -> Iterator[str]:
    """Normalised: the mean of equal values is that value, however many there are and whoever asks."""
    if not probe.normalised:
        return
    *query, source = probe.inputs(2)
    out = probe.run(*query, source[:, :1].expand_as(source))
    yield from differs(out, out[:, :1].expand_as(out), "equal tokens do not give equal outputs")


CHECKS: dict[str, Callable[[Probe], Iterator[str]]] = {
    "shape": _shape,
    "repeats": _repeats,
    "future": _future,
    "reach": _reach,
    "batch": _batch,
    "padding": _padding,
    "incremental": _incremental,
    "gradient": _gradient,
    "permutes": _permutes,
    "constant": _constant,
}
"""The checks by name, in order; each has its sentence."""
