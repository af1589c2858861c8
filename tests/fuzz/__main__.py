"""Many inputs for every parser, or for some, and a report that keeps what earlier runs found of the others."""

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

_HEAD = """| input | tried | refused | slowest | memory | seed | date |
|:--|--:|--:|--:|--:|--:|:--|"""
_REPORT = """# Fuzzing: inputs that nobody would write

`make fuzz`: random inputs, and real files and command lines with a few things changed, through every reader of what
others wrote. *Refused* are those that ended in a one-line error; the others were read as documented. None ended in a
traceback. Limits that fail the run: a second of processor time for one input, 200 MB of memory above what the process
took before it. Each reader has a process of its own, in which some usual inputs come first: what it imports is not
counted, nor is the garbage collector's work on what the fuzzer keeps. A small share runs in every test run
(`tests/test_fuzz.py`).

{table}
{missing}
The last reader ran with {versions}.
"""


def main() -> int:
    names = list(parsers())
    words = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=fuzz.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--inputs", type=int, default=20_000, help="of each parser")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="these parsers alone")
    words.add_argument("--out", type=Path, help="put what was found into this report; other lines in it stay")
    options = words.parse_args()
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
        if options.out:  # after each, so that one that takes long takes nothing with it
            options.out.write_text(report(rows, names), encoding="utf-8")
    return int(failed)


def _row(name: str, found: Outcome, seed: int) -> str:
    slowest, memory = f"{1000 * found.slowest_s:.0f} ms", f"+{math.ceil(found.grown_mb)} MB"
    return f"| {name} | {found.inputs:,} | {found.refused:,} | {slowest} | {memory} | {seed} | {date.today()} |"


def rows_of(text: str) -> dict[str, str]:
    """The lines of a report's table by the names of their parsers."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {line.split("|")[1].strip(): line for line in lines}


def report(rows: Mapping[str, str], names: list[str]) -> str:
    """A report of some lines, in the order of the parsers; those that have none are named."""
    table = "\n".join([_HEAD, *(rows[name] for name in names if name in rows)])
    without = ", ".join(name for name in names if name not in rows)
    missing = f"\nNo run of these has ended well yet: {without}.\n" if without else ""
    return _REPORT.format(table=table, missing=missing, versions=_versions())


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("hypothesis", "numpy", "torch"))
    return f"{packages}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
