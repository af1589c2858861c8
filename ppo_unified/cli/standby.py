"""Import the modules that training needs, wait until another process writes a command to stdin, and execute it.

The terminal UI starts this program when the user is likely to start a run. See `background.Standby`.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

from ppo_unified.cli.common import preload
from ppo_unified.cli.main import main
from ppo_unified.config.registry import find_adapter
from ppo_unified.runs.background import decode_arguments

# Only the Gymnasium adapter is imported, because its runs start fast and would wait for the imports of other adapters.
MODULES = ("ppo_unified.cli.train", "ppo_unified.training.session", find_adapter("gym").build.partition(":")[0])
# a standby process that receives no command ends after this time, because it uses 300 MB of memory
STANDBY_S = 300.0


def wait() -> int:
    """Import the modules, wait for a command and execute it. Return 0 if no complete command arrives in time."""
    for name in MODULES:
        with suppress(Exception):  # the command repeats the import and reports the error
            preload(name)
    ready, _, _ = select.select([sys.stdin], [], [], STANDBY_S)
    arguments = decode_arguments(sys.stdin.buffer.read()) if ready else []
    with open(os.devnull, "rb") as empty:
        os.dup2(empty.fileno(), 0)  # from now on, sending a command fails
    if not arguments:
        return 0
    os.ftruncate(2, 0)  # warnings of the imports do not belong to the errors of the command
    os.lseek(2, 0, os.SEEK_SET)
    sys.argv[1:] = arguments
    return main()


if __name__ == "__main__":
    sys.exit(wait())
