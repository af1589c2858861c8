"""Writes samples of a stored iteration as one HTML page that needs no other file, no network and no server.

Texts from models and files are safe in three ways: they are in a JSON document without the characters that HTML treats
specially, the page's script inserts them as text, and the page's content security policy allows only this script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

from ppo_unified.errors import UsageError
from ppo_unified.inspection.html_document import make_document
from ppo_unified.runs.folder import write_atomically
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import clean

MARKER = '<meta name="generator" content="ppo-unified inspect">'  # only files that contain it are replaced

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{marker}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def make_page(stored: StoredIteration, name: str, numbers: Sequence[int] | None = None) -> str:
    """Return the page. `name` is the run's name. `numbers` are the samples to include; by default, a selection."""
    folder = Path(__file__).parent
    style, script, body = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    sources = f"script-src {_hash(script)}; style-src {_hash(style)}"
    return PAGE.format(
        marker=MARKER,
        policy=f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'",
        title=html.escape(f"{clean(name)}, iteration {stored.iteration}"),
        style=style,
        body=body.strip(),
        data=escape_json(json.dumps(make_document(stored, name, numbers), separators=(",", ":"), allow_nan=False)),
        script=script,
    )


def escape_json(text: str) -> str:
    """Escape a JSON text for a script element, so that no part of it can end the element or open another one."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_page(path: Path, page: str) -> None:
    """Write a page to a file. Raises UsageError if this fails, or if another kind of file exists at the path."""
    try:
        if path.exists() and not _is_page(path):
            raise UsageError(f"--html {path}: the file exists and is not a page of `inspect`; choose another file name")
        write_atomically(path, page)
    except OSError as error:
        raise UsageError(f"--html {path}: cannot write the page ({error.strerror}); choose another path") from None


def _is_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return MARKER.encode() in file.read(1000)
