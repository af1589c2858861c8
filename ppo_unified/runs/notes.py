"""Read and write the notes of runs. To keep startup fast, this module imports little."""

from __future__ import annotations

from io import TextIOWrapper

from ppo_unified.errors import UsageError
from ppo_unified.parsing import open_file
from ppo_unified.runs.folder import Run, write_atomically

LONGEST_NOTE = 1 << 16  # maximum characters; longer notes are truncated when read


def read_note(run: Run) -> str:
    """Return the run's note, or an empty string if it has none."""
    try:
        with TextIOWrapper(open_file(run.note), encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_NOTE).strip()
    except OSError:
        return ""


def read_note_line(run: Run) -> str:
    """Return the first line of the run's note, for display in lists of runs."""
    return next(iter(read_note(run).splitlines()), "")


def write_note(run: Run, text: str) -> None:
    """Write the run's note, or remove it if `text` is empty. Raises UsageError if the note cannot be written."""
    try:
        if text.strip():
            write_atomically(run.note, text.strip() + "\n")
        else:
            run.note.unlink(missing_ok=True)
    except UnicodeEncodeError:
        raise UsageError(f"{run.name}: the note is not valid UTF-8; nothing was written") from None
    except OSError as error:
        raise UsageError(f"{run.note}: cannot write the note ({error.strerror})") from None
