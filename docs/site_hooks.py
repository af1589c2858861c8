"""Hooks of mkdocs: add the pages outside docs/ to the site, and point every relative link to its place there.

README.md becomes the start page; the other Markdown files and the linked source files keep their paths.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"`[^`\n]+`")  # in tables, GitHub needs \| in code; Python-Markdown needs no backslash and prints it
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add README, the other Markdown files and each source file that a page links to."""
    pages = {posixpath.relpath(path, ROOT) for folder in (".", "benchmarks") for path in (ROOT / folder).glob("*.md")}
    for path in sorted(pages):
        files.append(File.generated(config, _site_path(path), content=_read(path)))
    linked = {target for file in files.documentation_pages() for target in _linked_files(file)}
    for path in sorted(linked - pages):
        language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
        page = File.generated(config, _site_path(path), content=f"# {path}\n\n````{language}\n{_read(path)}\n````\n")
        page.inclusion = page.inclusion.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links from paths in the repository to paths in the site."""
    here = _repository_path(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = _resolve(here, match[2])
        if not (ROOT / target).is_file():
            return match[0]  # the strict build reports it
        return match[1] + posixpath.relpath(_site_path(target), posixpath.dirname(page.file.src_uri) or ".")

    return CODE.sub(lambda match: match[0].replace(r"\|", "|"), LINK.sub(rewrite, markdown))


def _linked_files(file: File) -> set[str]:
    """Files outside docs/ that a page links to."""
    here = _repository_path(file.src_uri)
    targets = {_resolve(here, match[2]) for match in LINK.finditer(file.content_string)}
    return {target for target in targets if _site_path(target) != target[5:] and (ROOT / target).is_file()}


def _resolve(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _site_path(path: str) -> str:
    """The page or file in the site of a path in the repository."""
    if path == "README.md":
        return "index.md"
    if path.endswith(".md") or (path.startswith("docs/") and not path.endswith(".py")):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def _repository_path(site_path: str) -> str:
    """The inverse of `_site_path`."""
    if site_path == "index.md":
        return "README.md"
    if site_path.startswith("source/"):
        return site_path.removeprefix("source/").removesuffix(".md")
    return site_path if (ROOT / site_path).is_file() else f"docs/{site_path}"


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
