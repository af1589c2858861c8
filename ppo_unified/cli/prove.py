"""`prove`: verify that both adapters pass the same numbers to the engine for the same token MDP."""

from __future__ import annotations

import argparse
import sys

from ppo_unified.cli.common import add_json
from ppo_unified.config.registry import load
from ppo_unified.runs.folder import to_json
from ppo_unified.text import GREEN, RED, can_color, format_number, format_table, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compare the numbers from both adapters, quantity by quantity. Return 1 if any of them differ."""
    proof = load("envs.prove:prove")()
    tolerance = load("envs.prove:TOLERANCE")
    differing = [check.quantity for check in proof.checks if not check.ok]
    if options.json:
        checks = [check._asdict() for check in proof.checks]
        print(to_json({"ok": not differing, "tolerance": tolerance, "checks": checks, "cases": proof.cases}))
        return 1 if differing else 0
    rows = [
        {
            "quantity": check.quantity,
            "largest": format_number(check.largest),
            "difference": f"{check.difference:.1e}",
            "": "ok" if check.ok else "DIFFERS",
        }
        for check in proof.checks
    ]
    for line in format_table(rows, can_color(sys.stdout), {"": {"ok": GREEN, "DIFFERS": RED}}):
        print_out(line)
    if proof.cases:
        print_out("\nCases covered: " + ", ".join(f"{count} {case}" for case, count in proof.cases.items()))
    if differing:
        print_out(f"\nThe adapters DIFFER by more than {tolerance:g} in: {', '.join(differing)}")
        return 1
    print_out(f"\nBoth adapters give the engine the same numbers (tolerance {tolerance:g})")
    return 0
