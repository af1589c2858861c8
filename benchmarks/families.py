"""Trains a small model of every type of causal language model in transformers, and writes one table row per type.

    python benchmarks/families.py [NAME ...] [--out benchmarks/families.md]

Each type runs in its own process. Its model has random weights and a configuration from tests/small_configs.py. A run
trains it for two iterations, once with all weights and once with LoRA. Some responses end earlier than others. After
that, greedy responses must equal those that `generate` of transformers gives to each prompt alone, the log-probs used
for training must equal those of the model's own forward pass, and an exported folder must contain the trained model.
The table is written row by row. Types that are already in the table are skipped, unless they are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.families import Rejected, check_training, save_small_model

OUT = Path(__file__).with_suffix(".md")
CPU_LIMIT, TIME_LIMIT, MEMORY_LIMIT = 120, 600, 8 << 30  # CPU seconds, seconds and bytes of each process
HEADER = """\
# Types of language models

`make families` trains a small model of every type of causal language model in transformers {version}, with random
weights, for two iterations, and writes this table. *trained* means that training finished, that greedy responses equal
those that `generate` of transformers gives to each prompt alone, that the log-probs equal those of the model's own
forward pass, and that the exported folder contains the trained model. *prompts of equal length* and *without cache*
state how responses are generated if padding or a cache would change the logits. *rejected* is followed by the reason in
the error message. In this case, the program exits with code 2 and leaves no run folder. *not buildable* is followed by
the exception that transformers raises when it creates a small model of this type.

Command: `make families`; last row on {where}

{counts}

| type | model | kind | all weights | LoRA |
|---|---|---|---|---|
"""


def main() -> int:
    """Return 1 if any type fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a type of model, such as llama; default: all types")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = read_rows(options.out)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if remaining := options.names or [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in rows]:
        test("gpt2")  # imports all modules before the first fork
    for name in remaining:
        started = time.monotonic()
        rows[name] = " | ".join(["", f"`{name}`", *test_in_child(name), ""]).strip()
        options.out.write_text(page(rows), encoding="utf-8")
        print(f"{rows[name]} {time.monotonic() - started:.1f} s", flush=True)
    return int(any("| failed" in row for row in rows.values()))


def read_rows(path: Path) -> dict[str, str]:
    """Return the rows of a table by type."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {match[1]: line for line in lines if (match := re.match(r"\| `(\S+)` \|", line))}


def page(rows: dict[str, str]) -> str:
    counts = [0, 0, 0, 0]
    for row in rows.values():
        words = ("failed", "not buildable", "rejected", "trained")
        counts[next(i for i, word in enumerate(words) if f"| {word}" in row)] += 1
    summary = "{3} types are trained, {2} are rejected, {1} are not buildable, and {0} fail.".format(*counts)
    lines = [rows[name] for name in sorted(rows)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    where = f"{date.today()}; {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
    return HEADER.format(version=version("transformers"), counts=summary, where=where) + "\n".join(lines) + "\n"


def test_in_child(name: str) -> list[str]:
    """Return the row's cells, computed in a child process with limits on time and memory."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
        with suppress(BaseException):
            os.write(writing, json.dumps(test(name)).encode())
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], TIME_LIMIT)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    found = os.read(reading, 1 << 16)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if found:
        cells: list[str] = json.loads(found)
        return cells
    reason = f"failed: no result after {TIME_LIMIT} s" if not ready else f"failed: signal {status & 127}"
    return ["", "", reason, reason]


def test(name: str) -> list[str]:
    """Return the cells of the row of a type: the model's class, its kind, and the results without and with LoRA."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        try:
            model = save_small_model(name, folder)
        except Exception as error:  # any error of the model's code
            return ["", "", *[f"not buildable: {describe(error)}"] * 2]
        return [type(model).__name__, kind_of(model), *(result(folder, rank) for rank in (0, 4))]


def result(folder: Path, rank: int) -> str:
    try:
        return check_training(folder, rank)
    except Rejected as line:
        return "rejected: " + re.sub(r".*is not supported, because |; use another model.*", "", str(line))
    except BaseException as error:  # SystemExit would end the table
        if os.environ.get("VERBOSE"):
            traceback.print_exc()
        return f"failed: {describe(error)}"


def describe(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:150].replace("|", "/")
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


def kind_of(model: Any) -> str:
    """Describe a model by its parts and its cache."""
    config = model.config
    words = ["multimodal"] if config.get_text_config(decoder=True) is not config else []
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # a configuration without layers
        layers = []
    recurrent = [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers]
    attention = [not isinstance(layer, LinearAttentionCacheLayerMixin) or hasattr(layer, "keys") for layer in layers]
    if getattr(model, "_is_stateful", False) and not any(recurrent):
        words.append("recurrent")
    elif any(recurrent):
        words.append("hybrid" if any(attention) else "state space")
    if any(getattr(layer, "is_sliding", False) for layer in layers):
        words.append("sliding window")
    if any("expert" in name for name, _ in model.named_parameters()):
        words.append("experts")
    return ", ".join(words) or "dense"


if __name__ == "__main__":
    sys.exit(main())
