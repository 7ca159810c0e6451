"""The static patterns on grids, frames x height x width, that are compared with each other: one row each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

from attlas.catalog.static_patterns import Place, Stack, StaticPattern, fit
from attlas.pattern import RADIAL_SCHEDULES, Pattern, along, ball, radial, radial_official

__all__ = ["GRID", "own_density"]

# Steps in which the windows of a grid grow together, each axis in proportion to its length.
STEPS = 256


def _sides(place: Place, k: int) -> dict[str, int]:
    """A window's side on every axis, k of STEPS parts of it; axes grow in turn: densities lie close."""
    axes = place.space.axes
    return {
        name: min(size, max(1, int(size * k / STEPS + (at + 1) / (len(axes) + 1))))
        for at, (name, size) in enumerate(axes)
    }


@lru_cache(maxsize=64)
def _cuts(axes: tuple[tuple[str, int], ...]) -> tuple[tuple[int, ...], ...]:
    """Into how many parts to cut every axis, from one token a part to a single part.

    Of the cuts of one density the one whose parts are nearest to a cube.
    """
    sizes = [size for _, size in axes]
    found: dict[float, tuple[float, tuple[int, ...]]] = {}
    for cuts in product(*(range(1, size + 1) for size in sizes)):
        sides = [-(-size // cut) for size, cut in zip(sizes, cuts, strict=True)]
        share, shape = prod(sides) / prod(sizes), max(sides) / min(sides)
        found[share] = min(found.get(share, (shape, cuts)), (shape, cuts))
    return tuple(found[share][1] for share in sorted(found))


def _cut(place: Place, k: int) -> list[tuple[str, int, int]]:
    """(axis, size of a part, number of parts)."""
    axes = place.space.axes
    return [(name, -(-size // cut), cut) for (name, size), cut in zip(axes, _cuts(axes)[k - 1], strict=True)]


def _every_cut(place: Place) -> int:
    return len(_cuts(place.space.axes))


def _joined(parts: Sequence[Pattern]) -> Pattern:
    found = parts[0]
    for part in parts[1:]:
        found = found & part
    return found


def _neighbourhood(place: Place, k: int) -> Stack:
    return (_joined([along(name, side) for name, side in _sides(place, k).items()]),)


def _dilated(place: Place, k: int) -> Stack:
    """Every second row and column of a frame; frames are too far apart to leave some out."""
    frames, *frame = _sides(place, k).items()
    sizes = dict(place.space.axes)
    spread = [along(name, min(side, max(1, sizes[name] // 2)), dilation=2) for name, side in frame]
    return (_joined([along(*frames), *spread]),)


def _halo(place: Place, k: int) -> Stack:
    """Blocks with a halo of half a block on each side, cut off at the border."""
    halves = [(name, max(1, side // 2)) for name, side in _sides(place, k).items()]
    parts = [along(name, block + 2 * (block // 2), stride=block, border="mask") for name, block in halves]
    return (_joined(parts),)


def _inward(place: Place, k: int) -> Stack:
    """All frames, and a window on each that slides inward."""
    _, *frame = _sides(place, k).items()
    return (_joined([along(name, side) for name, side in frame]),)


def _strided(place: Place, k: int) -> Stack:
    sides = _sides(place, k).items()
    return (_joined([along(name, side, stride=max(1, side // 2)) for name, side in sides]),)


def _blocks(place: Place, k: int) -> Stack:
    return (_joined([along(name, side, stride=side) for name, side, _ in _cut(place, k)]),)


def _grid(place: Place, k: int) -> Stack:
    return (_joined([along(name, side, dilation=cut) for name, side, cut in _cut(place, k)]),)


def _blocks_and_grid(place: Place, k: int) -> Stack:
    return (*_blocks(place, k), *_grid(place, k))


def _ball(place: Place, k: int) -> Stack:
    return (ball(k, tuple(name for name, _ in place.space.axes)),)


def _radial(place: Place, k: int) -> Stack:
    return (radial(*_frame(place)),)


def _radial_blocks(place: Place, k: int) -> Stack:
    # At a released setting: a smaller decay changes nothing once bands are as narrow as a block.
    released, frames = RADIAL_SCHEDULES["hunyuan 1x"], place.space.axes[0][1]
    return (radial_official(frames, *_frame(place), decay=released.decay, sink=released.sink),)


def _frame(place: Place) -> list[int]:
    return [size for _, size in place.space.axes[1:]]


def _steps(place: Place) -> int:
    return STEPS


def _one(place: Place) -> int:
    return 1


GRID: tuple[StaticPattern, ...] = (
    StaticPattern("neighbourhood", "neighbourhood", "arXiv:2204.07143", _neighbourhood, _steps),
    StaticPattern("dilated", "neighbourhood, dilation 2", "arXiv:2209.15001", _dilated, _steps),
    StaticPattern("freeswim", "all frames, inward window (FreeSwim)", "arXiv:2511.14712", _inward, _steps),
    StaticPattern("halonet", "blocks with halos (HaloNet)", "arXiv:2103.12731", _halo, _steps),
    StaticPattern("gna", "neighbourhood, strides of half (GNA)", "arXiv:2504.16922", _strided, _steps),
    StaticPattern("blocks", "blocks", "arXiv:2103.14030", _blocks, _every_cut),
    StaticPattern("grid", "grid (every n-th token)", "arXiv:2204.01697", _grid, _every_cut),
    StaticPattern("maxvit", "blocks and grid in turn", "arXiv:2204.01697", _blocks_and_grid, _every_cut),
    StaticPattern(
        "clear",
        "disc (CLEAR)",
        "arXiv:2412.16112",
        _ball,
        lambda place: 2 * max(size for _, size in place.space.axes),
    ),
    StaticPattern("radial", "Radial, by its formula", "arXiv:2506.19852", _radial, _one),
    StaticPattern("radial_blocks", "Radial, by its code", "arXiv:2506.19852", _radial_blocks, _one),
)
"""Frames x height x width; every token may see both what is before and what is behind it."""


def own_density(place: Place) -> float:
    """The density of Radial by its formula, whose size cannot be chosen: the others are fitted to it."""
    fixed = next(row for row in GRID if row.name == "radial")
    return fit(fixed, place, 1.0).density
