"""Mixers of the user's own: what they must keep, what becomes of their errors, which code they are."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.catalog.bench.task import BenchTask
from attlas.layers import MixerEntry, Setting
from attlas.layers.contract import check_mixer

__all__ = ["Absent", "breaches", "breaches_at", "check_small", "is_own", "own_code", "taking_part"]

TOLERANCE = 1e-8  # of float64 outputs, relative to the largest where that is above 1
DISTURBED = 0.1  # standard deviation of what is added to weights of SMALL inputs, less of wider ones
SMALL = 8
FILES = 1_000  # of a package whose contents are read; of larger ones the modules in use alone
ELSEWHERE = ("builtins", "torch", "attlas")  # whose versions and code are told apart already


class Absent(ValueError):
    """A mixer cannot take part here; the text says why."""


def is_own(name: str) -> bool:
    """Whether the name is "package.module:Class" and none of the registered ones."""
    return ":" in name


@contextmanager
def taking_part(entry: MixerEntry) -> Iterator[None]:
    """Makes `Absent` of what the mixer raises: of a registered one of ValueError, of the user's of anything.

    UsageError is not the mixer's and passes.
    """
    caught: type[Exception] = Exception if is_own(entry.name) else ValueError
    try:
        yield
    except (UsageError, Absent):
        raise
    except caught as error:
        if isinstance(error, ValueError):
            raise Absent(str(error)) from error
        text = (str(error).strip() or "no text").splitlines()[0]
        raise Absent(f"{entry.name} raised {type(error).__name__}: {text}") from error


def check_small(entry: MixerEntry, heads: int) -> None:
    """The whole contract of mixers at a small size; UsageError: what is broken."""
    # Which forms there are is told where a task needs another.
    found = [one for one in check_mixer(entry, width=4 * heads, heads=heads) if one.check != "forms"]
    if found:
        raise UsageError(_broken(entry, [str(one) for one in found]))


def breaches(entry: MixerEntry, task: BenchTask, width: int, heads: int) -> None:
    """Shape, future and batch at the size that is trained: a mixer may look ahead in long sequences alone.

    In float64 and evaluation mode, at a few cuts. UsageError: what is broken. Absent: it cannot be run.
    """
    setting = task.setting(width, heads)
    breaches_at(entry, setting, task.length, f" on task {task.name} at width {width}")


def breaches_at(entry: MixerEntry, setting: Setting, length: int, where: str) -> None:
    """`breaches` at a setting and a length; `where` is told with what is broken."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), taking_part(entry):
        torch.manual_seed(0)
        found = [f"{setting.form} {text}" for text in _found(entry, setting, length)]
    if found:
        raise UsageError(_broken(entry, found, where))


def _broken(entry: MixerEntry, findings: list[str], where: str = "") -> str:
    return (
        f"mixer {entry.name} breaks the contract of mixers{where}, its figures would mislead; mend it first:"
        "\n  " + "\n  ".join(findings)
    )


def _found(entry: MixerEntry, setting: Setting, length: int) -> Iterator[str]:
    module = entry.build(setting).double().eval()
    for weight in module.parameters():
        # A path that starts at zero would hide a leak; the same noise in wider recurrences makes chaos.
        spread = DISTURBED * (SMALL / max(SMALL, weight.shape[-1] if weight.dim() else 1)) ** 0.5
        weight.add_(spread * torch.randn(weight.shape, dtype=torch.float64))
    x, other = torch.randn(2, 2, length, setting.width, dtype=torch.float64)
    whole: Tensor = module(x)
    if whole.shape != x.shape:
        yield f"shape: the output of {length} tokens has shape {tuple(whole.shape)}, not {tuple(x.shape)}"
        return
    if not torch.isfinite(whole).all():
        yield f"shape: the output of {length} tokens is not finite"
        return
    for row in range(2):
        if _differ(module(x[row : row + 1]), whole[row : row + 1]):
            yield f"batch: with {length} tokens, row {row} differs from the same row alone"
    for cut in _cuts(length) if setting.causal else ():
        changed = module(torch.cat([x[:, :cut], 3 * other[:, cut:]], 1))[:, :cut]
        if _differ(changed, whole[:, :cut]):
            yield f"future: the output of the first {cut} tokens changes with the {length - cut} after them"
            return
        if _differ(module(x[:, :cut]), whole[:, :cut]):
            yield (
                f"future: the first {cut} tokens alone give another output than before {length - cut} more"
            )
            return


def _cuts(length: int) -> list[int]:
    """Both ends and between, where no round number of tokens ends: chunks that look ahead inside are cut."""
    cuts = {1, length // 5, length // 3, length // 2 + 1, length - 1}
    return sorted(cut for cut in cuts if 0 < cut < length)


def _differ(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return True
    gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))
    return not gap <= TOLERANCE


def own_code(name: str) -> str:
    """Names a mixer and, where it is the user's, its source: another version is trained anew.

    The source is that of the class and its bases: the file of each, and every file of the packages that they
    stand in. Outside of a package what a file imports is not looked at.
    """
    if not is_own(name):
        return name
    module, _, attribute = name.partition(":")
    kind = getattr(import_module(module), attribute)
    if isinstance(kind, MixerEntry):
        kind = kind.make
    while isinstance(kind, partial):
        kind = kind.func
    kinds = kind.__mro__ if isinstance(kind, type) else (kind,)
    modules = {module, *(getattr(one, "__module__", module) for one in kinds)}
    files: set[Path] = set()
    for one in modules:
        if one.partition(".")[0] not in ELSEWHERE:
            files |= _package(one.partition(".")[0])
    files |= {file for one in (sys.modules[module], *kinds) if (file := _file(one)) is not None}
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return name + found.hexdigest()[:12]


def _file(thing: Any) -> Path | None:
    try:
        source = inspect.getsourcefile(thing)
    except TypeError:  # built in
        return None
    return None if source is None or not Path(source).is_file() else Path(source).resolve()


def _package(name: str) -> set[Path]:
    """Every Python file of a package; none if they are too many, or it is a single module."""
    folders = getattr(sys.modules.get(name), "__path__", ())
    files: set[Path] = set()
    for folder in folders:
        for file in Path(folder).rglob("*.py"):
            files.add(file.resolve())
            if len(files) > FILES:
                return set()
    return files
