"""Compute the figures of the page on released code.

python -m attlas.catalog.released [--out results] [SYSTEM ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from attlas._common.errors import UsageError
from attlas.catalog.released._measure import COMMAND, measure_entry, measure_released
from attlas.catalog.released._registry import all_released, released_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every entry into a file, or those of the named systems to look at: these are only printed."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Compute the figures of the page on released code, with 3 seeds."
    )
    parser.add_argument("systems", nargs="*", help="print the figures of these systems and write nothing")
    parser.add_argument("--out", default="results", help="folder of released.json (default: results)")
    options = parser.parse_args(arguments)
    try:
        for system in options.systems:
            for entry in released_of(system):
                print(f"{entry.system}: {entry.point}. {measure_entry(entry)['measured']}")
        if not options.systems:
            result = measure_released(all_released(), options.out, step=_say)
            print(
                f"{len(result['entries'])} entries in {result['seconds']:.0f} s; make results writes the page"
            )
    except UsageError as error:
        print(f"attlas: {error}", file=sys.stderr)
        return 2
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
