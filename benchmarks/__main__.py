"""`python -m benchmarks [prefill ...] [--quick] [--out results]`: measure and write one JSON file each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from attlas._common.files import write_json
from attlas._common.machine import machine, versions
from benchmarks import attend, decode, edges, large_graph, normalisers, peers, prefill, sampling, scan

MEASURED = {
    "attend": attend,
    "prefill": prefill,
    "decode": decode,
    "scan": scan,
    "peers": peers,
    "edges": edges,
    "normalisers": normalisers,
    "sampling": sampling,
    "large_graph": large_graph,
}


def main() -> int:
    """Run the named benchmarks (all by default)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[[], *MEASURED], help="what to measure, everything by default"
    )
    parser.add_argument("--quick", action="store_true", help="short lengths only, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for NAME.json")
    options = parser.parse_args()
    for name in options.names or MEASURED:
        module = MEASURED[name]
        rows = []
        for row in module.rows(quick=options.quick):
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
        command = f"python -m benchmarks {name}" + (" --quick" if options.quick else "")
        result = {"schema": "attlas.bench", "version": 1, "name": name, "title": module.TITLE}
        result |= {"command": command, "columns": module.COLUMNS, "rows": rows, "notes": module.NOTES}
        result |= {"versions": versions(), "machine": machine()}
        write_json(options.out / f"{name}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
