"""Where each kernel call reads and writes: strides of a program's calls for one set of heads and one memory
layout.

The kernel takes two batch axes with arbitrary strides. A call has four: batch row, key head, query head
within its group (stride 0 for keys: grouped queries share a key head without a copy), and tile. Axes whose
strides allow it are joined; what remains beyond two is a loop, over the shortest axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

from attlas.attend.block_program import Call, Program

__all__ = ["Heads", "Step", "View", "forget_steps", "head_sets", "schedule"]

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """Query heads `offset..offset+count` of the groups of key heads first, first + step, ... (`groups` of
    them)."""

    first: int
    step: int
    groups: int
    offset: int
    count: int


@dataclass(frozen=True)
class View:
    """Arguments of `as_strided`."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: int


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call: where q, k, v are read, and where rows (out, lse) and keys (dk, dv) are written.

    rows_out, rows_lse, keys_grad address contiguous (B, N, H, D), (B, H, N) and (B, G, M, D); `split` is the
    size of each of the kernel's two batch axes in terms of the axes of those views; shared: the axis (if
    any) that is summed into a key head; tile: the axis of tiles, whose keys overlap.
    """

    call: Call
    query: View
    key: View
    value: View
    rows_out: View
    rows_lse: View
    split: tuple[int, ...]
    keys_grad: View
    shared: int | None
    tile: int | None


@dataclass(frozen=True)
class _Axis:
    name: str
    size: int
    query: int
    key: int
    value: int
    out: int
    lse: int
    grad: int


def head_sets(programs: Sequence[Program], key_heads: int) -> tuple[tuple[Program, tuple[Heads, ...]], ...]:
    """Query heads with the same program, as few evenly spaced sets as they make up."""
    group = len(programs) // key_heads
    found: dict[int, tuple[Program, list[tuple[int, int, int]]]] = {}
    for head, program in enumerate(programs):
        entry = found.setdefault(id(program), (program, []))[1]
        key_head, offset = divmod(head, group)
        if entry and entry[-1][0] == key_head and entry[-1][1] + entry[-1][2] == offset:
            entry[-1] = (key_head, entry[-1][1], entry[-1][2] + 1)
        else:
            entry.append((key_head, offset, 1))
    return tuple((program, tuple(_even(sets))) for program, sets in found.values())


def _even(sets: Sequence[tuple[int, int, int]]) -> list[Heads]:
    joined: list[Heads] = []
    for key_head, offset, count in sorted(sets, key=lambda entry: entry[1:]):
        if joined and (joined[-1].offset, joined[-1].count) == (offset, count):
            last = joined[-1]
            step = key_head - (last.first + (last.groups - 1) * last.step)
            if last.groups == 1 or step == last.step:
                joined[-1] = Heads(last.first, step, last.groups + 1, offset, count)
                continue
        joined.append(Heads(key_head, 1, 1, offset, count))
    return joined


def _all_steps(
    program: Program,
    heads: Heads,
    shape: tuple[int, int, int, int, int, int],
    query: Strides,
    key: Strides,
    value: Strides,
    most_keys: int | None,
) -> tuple[Step, ...]:
    steps: list[Step] = []
    for call in program.calls:
        most = call.tiles if most_keys is None else max(1, most_keys // call.keys)
        for low in range(0, call.tiles, most):
            tiles = low, min(low + most, call.tiles)
            steps += _steps(call, tiles, heads, shape, query, key, value)
    return tuple(steps)


_kept_steps = lru_cache(maxsize=512)(_all_steps)


def schedule(
    program: Program,
    heads: Heads,
    shape: tuple[int, int, int, int, int, int],
    query: Strides,
    key: Strides,
    value: Strides,
    most_keys: int | None = None,
) -> tuple[Step, ...]:
    """The steps of a program; shape is (B, H, G, N, M, D) and the strides are those of q, k, v in
    elements. Calls whose tiles have more than `most_keys` keys together are cut into several steps. Kept for
    the next call unless the program is that of one call."""
    make = _kept_steps if program.lasting else _all_steps
    return make(program, heads, shape, query, key, value, most_keys)


def forget_steps() -> None:
    """Forget the steps that were kept."""
    _kept_steps.cache_clear()


def _steps(
    call: Call,
    tiles: tuple[int, int],
    heads: Heads,
    shape: tuple[int, int, int, int, int, int],
    query: Strides,
    key: Strides,
    value: Strides,
) -> list[Step]:
    batch, query_heads, key_heads, rows, keys, width = shape
    group = query_heads // key_heads
    first_head = heads.first * group + heads.offset
    leap = heads.step * group
    count = tiles[1] - tiles[0]
    q0, k0 = call.q0 + tiles[0] * call.rows, call.k0 + tiles[0] * call.key_step
    axes = [
        _Axis("batch", batch, query[0], key[0], value[0], rows * query_heads * width, query_heads * rows,
              key_heads * keys * width),
        _Axis("key head", heads.groups, leap * query[1], heads.step * key[1], heads.step * value[1],
              leap * width, leap * rows, heads.step * keys * width),
        _Axis("query head", heads.count, query[1], 0, 0, width, rows, 0),
        _Axis("tile", count, call.rows * query[2], call.key_step * key[2], call.key_step * value[2],
              call.rows * query_heads * width, call.rows, call.key_step * width),
    ]  # fmt: skip
    axes = [axis for axis in axes if axis.size > 1]
    first, second, loops = _arrange(axes)
    inner = [*first, *second]
    starts = (
        first_head * query[1] + q0 * query[2],
        heads.first * key[1] + k0 * key[2],
        heads.first * value[1] + k0 * value[2],
        (q0 * query_heads + first_head) * width,
        first_head * rows + q0,
        (heads.first * keys + k0) * width,
    )
    names = [axis.name for axis in inner]
    steps = []
    for index in product(*(range(axis.size) for axis in loops)):
        shift = [
            start + sum(i * getattr(axis, field) for i, axis in zip(index, loops, strict=True))
            for start, field in zip(starts, ("query", "key", "value", "out", "lse", "grad"), strict=True)
        ]
        sizes = tuple(axis.size for axis in inner)
        steps.append(
            Step(
                call,
                _kernel_view(first, second, "query", (call.rows, width), (query[2], query[3]), shift[0]),
                _kernel_view(first, second, "key", (call.keys, width), (key[2], key[3]), shift[1]),
                _kernel_view(first, second, "value", (call.keys, width), (value[2], value[3]), shift[2]),
                View((*sizes, call.rows, width),
                     (*(axis.out for axis in inner), query_heads * width, 1), shift[3]),
                View((*sizes, call.rows), (*(axis.lse for axis in inner), 1), shift[4]),
                sizes,
                View((*sizes, call.keys, width), (*(axis.grad for axis in inner), width, 1), shift[5]),
                names.index("query head") if "query head" in names else None,
                names.index("tile") if "tile" in names else None,
            )
        )  # fmt: skip
    return steps


def _arrange(axes: list[_Axis]) -> tuple[list[_Axis], list[_Axis], list[_Axis]]:
    """Choose two kernel axes (each a list of joinable axes) with the most work, the rest are loops."""
    best: tuple[int, list[_Axis], list[_Axis], list[_Axis]] | None = None
    for choice in product((0, 1, 2), repeat=len(axes)):
        parts: list[list[_Axis]] = [[], [], []]
        for axis, part in zip(axes, choice, strict=True):
            parts[part].append(axis)
        if not (_joinable(parts[0]) and _joinable(parts[1])):
            continue
        loops = 1
        for axis in parts[2]:
            loops *= axis.size
        if best is None or loops < best[0]:
            best = (loops, parts[0], parts[1], parts[2])
    assert best is not None  # one axis per kernel axis and the rest as loops is always possible
    return best[1], best[2], best[3]


def _joinable(axes: Sequence[_Axis]) -> bool:
    """Whether the axes, outermost first, have the strides of one longer axis in q, k and v."""
    return all(
        getattr(outer, field) == inner.size * getattr(inner, field)
        for outer, inner in pairwise(axes)
        for field in ("query", "key", "value")
    )


def _kernel_view(
    first: Sequence[_Axis],
    second: Sequence[_Axis],
    field: str,
    size: tuple[int, int],
    stride: tuple[int, int],
    start: int,
) -> View:
    sizes, strides = [], []
    for part in (first, second):
        total = 1
        for axis in part:
            total *= axis.size
        sizes.append(total)
        strides.append(getattr(part[-1], field) if part else 0)
    return View((*sizes, *size), (*strides, *stride), start)
