"""The help of the inspector, for readers without a background in reinforcement learning."""

from __future__ import annotations

EXPLANATION = """\
This screen shows one iteration of the run, step by step. ...
"""
LEGEND: list[tuple[str, dict[str, str]]] = []
