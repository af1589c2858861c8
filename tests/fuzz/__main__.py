"""Try many inputs for all or some parsers. The report keeps earlier results of the other parsers."""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests import fuzz
from tests.fuzz.parsers import parsers
from tests.fuzz.trials import Outcome, try_in_child

_HEAD = """| parser | inputs | rejected | slowest | memory | seed | date |
|:--|--:|--:|--:|--:|--:|:--|"""
_REPORT = """# Fuzzing: malformed and unusual inputs

`make fuzz` passes random inputs, and real files and command lines with a few changes, to every parser of external data.
*Rejected* inputs ended with a one-line error; all other inputs were parsed as documented. No input caused a traceback.
The test fails if one input takes a second of processor time, or 200 MB of memory in addition to what the process used
before. Each parser runs in a separate process and gets some typical inputs first, so that its imports are not counted.
The work of the garbage collector on the fuzzer's own objects is not counted either. Every test run includes a small
share of the inputs (`tests/test_fuzz.py`).

{table}
{missing}
The last parser was tested with {versions}.
"""


def main() -> int:
    names = list(parsers())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=fuzz.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs per parser (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help="test only these parsers"
    )
    parser.add_argument("--out", type=Path, help="update this report; results of other parsers are kept")
    options = parser.parse_args()
    rows = rows_of(options.out.read_text(encoding="utf-8")) if options.out and options.out.exists() else {}
    print(_HEAD)
    failed = False
    for name in options.only:
        rows.pop(name, None)
        found = try_in_child(name, options.inputs, options.seed)
        if isinstance(found, Outcome):
            rows[name] = _row(name, found, options.seed)
            print(rows[name], flush=True)
        else:
            failed = True
            print(f"{name}: {found}", file=sys.stderr, flush=True)
        if options.out:  # after each parser, so that an interruption loses no earlier results
            options.out.write_text(report(rows, names), encoding="utf-8")
    return int(failed)


def _row(name: str, found: Outcome, seed: int) -> str:
    slowest, memory = f"{1000 * found.slowest_s:.0f} ms", f"+{math.ceil(found.grown_mb)} MB"
    return f"| {name} | {found.inputs:,} | {found.rejected:,} | {slowest} | {memory} | {seed} | {date.today()} |"


def rows_of(text: str) -> dict[str, str]:
    """Return the table rows of a report by parser name."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {line.split("|")[1].strip(): line for line in lines}


def report(rows: Mapping[str, str], names: list[str]) -> str:
    """Return a report with the rows in the order of `names`. Parsers without a row are listed below the table."""
    table = "\n".join([_HEAD, *(rows[name] for name in names if name in rows)])
    without = ", ".join(name for name in names if name not in rows)
    missing = f"\nThese parsers have no successful run yet: {without}.\n" if without else ""
    return _REPORT.format(table=table, missing=missing, versions=_versions())


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("hypothesis", "numpy", "torch"))
    return f"{packages}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
