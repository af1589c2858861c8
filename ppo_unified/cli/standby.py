"""Import what training needs, then execute the command that another process writes to stdin.

The terminal UI starts such a process as soon as a run is likely to follow. See `background.Standby`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from ppo_unified.cli.common import preload
from ppo_unified.cli.main import main
from ppo_unified.config.registry import find_adapter
from ppo_unified.runs.background import decode_arguments

# The adapter is that of the runs that start fast. Others import more, which a run of this adapter would wait for.
MODULES = ("ppo_unified.cli.train", "ppo_unified.training.session", find_adapter("gym").build.partition(":")[0])


def wait() -> int:
    """Import the modules, wait for a command and execute it. If the other process ends first, return 0."""
    for name in MODULES:
        with suppress(Exception):  # the command repeats the import and reports the error
            preload(name)
    arguments = decode_arguments(sys.stdin.buffer.read())
    with open(os.devnull, "rb") as empty:
        os.dup2(empty.fileno(), 0)
    sys.argv[1:] = arguments
    return main() if arguments else 0


if __name__ == "__main__":
    sys.exit(wait())
