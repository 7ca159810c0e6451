"""Computes the figures of the entries with several seeds, and writes them down."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attlas._common.files import check_folder, check_schema, read_json, to_json, write_json
from attlas._common.machine import PACKAGE, machine, source_digest, versions
from attlas.catalog.claim import ENOUGH_SEEDS, UNMEASURED, Step, spread
from attlas.catalog.registry import find
from attlas.catalog.released._entry import Released, check_values, filled

__all__ = ["COMMAND", "FILE", "SCHEMA", "VERSION", "measure_entry", "measure_released"]

SCHEMA, VERSION = "attlas.released", 1
FILE = "released.json"
COMMAND = "python -m attlas.catalog.released"


def measure_entry(entry: Released, seeds: int = ENOUGH_SEEDS) -> dict[str, Any]:
    """The entry's texts, `measured` (its sentence), `summary`, `runs` and `seconds`, as JSON values."""
    begun = time.monotonic()
    runs = [check_values(entry, seed, entry.figures(seed)) for seed in range(seeds)]
    card = find(entry.system)
    return {
        **entry.texts(),
        "title": card.title,
        "source": card.source,
        "measured": filled(entry, runs),
        "summary": spread(runs),
        "runs": runs,
        "seconds": time.monotonic() - begun,
    }


def measure_released(
    entries: Sequence[Released],
    folder: str | Path = "results",
    *,
    seeds: int = ENOUGH_SEEDS,
    step: Step = lambda text: None,
) -> dict[str, Any]:
    """Measure `entries` and write `folder/released.json` (schema "attlas.released"); returns what was
    written.

    Every finished entry is kept beside the result until all are there: an interrupted run goes on with the
    next one. What was kept under another version of the code is not used.
    """
    target = check_folder(folder)
    kept = target / f"released-{_digest(seeds)}.partial"
    found = []
    for number, entry in enumerate(entries, 1):
        path = kept / f"{entry.name}.json"
        say = f"{number} of {len(entries)}, {entry.system}: "
        if path.exists():
            value = check_schema(read_json(path), SCHEMA + ".part", VERSION, source=str(path))["entry"]
            step(say + "measured before, kept")
        else:
            step(say + entry.point)
            value = measure_entry(entry, seeds)
            write_json(path, {"schema": SCHEMA + ".part", "version": VERSION, "entry": value})
        found.append(value)
    result = {
        "schema": SCHEMA,
        "version": VERSION,
        "title": "What the released code really computes",
        "command": COMMAND,
        "seeds": seeds,
        "entries": found,
        "versions": versions(),
        "machine": machine(),
        "seconds": sum(value["seconds"] for value in found),
    }
    write_json(target / FILE, result)
    shutil.rmtree(kept, ignore_errors=True)
    return result


def _digest(seeds: int) -> str:
    code = source_digest(*(room.name for room in PACKAGE.iterdir() if room.name not in UNMEASURED))
    text = to_json({"seeds": seeds, "versions": versions(), "code": code})
    return hashlib.sha256(text.encode()).hexdigest()[:8]
