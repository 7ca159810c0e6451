"""Mixers looked at as dynamical systems: state, memory kernel, transfer matrix, consequences.

The transfer matrix is there for mixers whose system is written down (`from_mixer`); the others are measured
from outside, by their Jacobian.

Source: Sieber et al. 2024, arXiv 2405.15731.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas._common.files import write_json
from attlas._common.machine import machine, versions
from attlas.inspect import from_gated as from_gated  # registers its mixers
from attlas.inspect.consequences import consequences
from attlas.inspect.from_mixer import from_mixer, realisable
from attlas.inspect.memory import jacobian_kernel, state_size
from attlas.layers import MIXERS, MixerEntry, Setting, mixer_entry

__all__ = ["NAME", "SCHEMA", "VERSION", "describe_mixer", "inspect_dsf"]

SCHEMA, VERSION, NAME = "attlas.dsf", 1, "dsf"
WIDTH, HEADS = 32, 2
LEAST, MOST = 16, 256
ROWS, PROBES = 8, 8


def inspect_dsf(
    mixers: Sequence[str] = (),
    *,
    length: int = 64,
    out: str | Path | None = None,
    command: str = "",
    seed: int = 0,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Describe the named mixers (all, unless named) at `length` tokens; writes `out`/dsf.json if asked.

    A name is a registered one or "package.module:Class". UsageError: an unknown one, a class of the user's
    that fails, a length out of 16 .. 256. Mixers are at their initial weights, width 32, 2 heads; inputs are
    Gaussian.
    """
    if not LEAST <= length <= MOST:
        raise UsageError(f"length must lie in {LEAST} .. {MOST}, got {length}")
    entries = [_entry(name) for name in mixers or sorted(MIXERS)]
    rows = []
    for entry in entries:
        step(entry.name)
        rows.append(describe_mixer(entry, length, seed))
    result = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": NAME,
        "title": "Token mixers as dynamical systems",
        "command": command,
        "settings": {
            "length": length,
            "width": WIDTH,
            "heads": HEADS,
            "probes": PROBES,
            "seed": seed,
        },
        "mixers": rows,
        "consequences": [vars(check) for check in consequences(seed)],
        "versions": versions(),
        "machine": machine(),
    }
    if out is not None:
        write_json(Path(out) / f"{NAME}.json", result)
    return result


def _entry(name: str) -> MixerEntry:
    try:
        return mixer_entry(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except Exception as error:
        # Importing the user's module runs the user's code.
        raise UsageError(f"mixer {name!r} cannot be imported: {_said(error)}") from error


def _said(error: Exception) -> str:
    clear = isinstance(error, ValueError | TypeError | UsageError)
    return str(error) if clear else f"{type(error).__name__}: {error}"


def describe_mixer(entry: MixerEntry, length: int, seed: int = 0) -> dict[str, Any]:
    """What `attlas inspect dsf` tells of one mixer, as JSON values.

    name; parameters; absent: why there is no system in time, or ""; state: lengths, numbers, bytes,
    constant, or None for a mixer that keeps no state; jacobian and frozen: memory kernels by lag, the latter
    (gates held, from the transfer matrix) None where the system is not written down; error: of that system
    against the module, relative to its largest output.

    UsageError: a class of the user's that fails, whatever it raises, or looks ahead.
    """
    try:
        return _described(entry, length, seed)
    except Exception as error:
        if MIXERS.get(entry.name) is entry:
            raise
        raise UsageError(f"mixer {entry.name}: {_said(error)}") from error


def _described(entry: MixerEntry, length: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.name, "absent": "", "state": None, "jacobian": [], "frozen": None}
    found |= {"error": None, "parameters": 0}
    if "CS" not in entry.forms:
        found["absent"] = entry.why_not or "not causal"
        return found
    torch.manual_seed(seed)
    mixer = entry.build(Setting(WIDTH, HEADS, length=4 * length)).eval()
    found["parameters"] = sum(part.numel() for part in mixer.parameters())
    if entry.stateful:
        size = state_size(mixer, WIDTH, (length // 4, length, 4 * length))
        found["state"] = {
            "lengths": list(size.lengths),
            "numbers": list(size.numbers),
            "bytes": list(size.nbytes),
            "constant": size.constant,
        }
    x = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(seed))
    rows = _rows(length)
    found["jacobian"] = jacobian_kernel(mixer, x, rows, probes=PROBES, seed=seed).tolist()
    if realisable(mixer):
        found |= _frozen(mixer.double(), x.double(), rows)
    return found


def _frozen(mixer: nn.Module, x: Tensor, rows: Sequence[int]) -> dict[str, Any]:
    with torch.no_grad():
        realised, exact = from_mixer(mixer, x), mixer(x)
        error = (realised.run() - exact).abs().max() / exact.abs().max()
        kernel = realised.memory_kernel(rows)[0]
    return {"frozen": kernel.tolist(), "error": error.item()}


def _rows(length: int) -> list[int]:
    """The last token and others spread over the second half."""
    return [length - 1 - index * length // (2 * ROWS) for index in range(ROWS)]
