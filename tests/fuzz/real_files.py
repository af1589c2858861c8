"""Real files to mutate, and functions that add valid checksums to mutated parts."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import google_crc32c
import numpy as np
import torch

from ppo_unified.runs.durable import Checksum
from ppo_unified.runs.folder import Run, Status
from ppo_unified.training import checkpoint

META = checkpoint.Meta(12, 3, 1.7e9, 1.5, True, {"torch": "2.9"})
_RUNNING = Status(name="a", preset="cartpole", kind="gym", state="running", step=5, total_steps=10, score=1.5)
_MACHINE = {"started": 1.7e9, "heartbeat": 1.7e9, "elapsed_s": 3.0, "pid": 4242, "host": "here"}
_RESUMED = {"resumes": [{"time": 1.7e9, "step": 3, "from_state": "running"}], "versions": {"torch": "2.9"}}
STATUS: dict[str, Any] = asdict(_RUNNING) | _MACHINE | _RESUMED
PROMPTS = (
    b'{"prompt": "a b", "answer": 3}\n{"prompt": "c", "answer": null}\n',
    b'[{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "system", "content": "x"}]}]',
    "\ufeffplain\nline\u2028two\n".encode(),
    b'{"question": "\\ud800", "x": 1e999}\r\n',
)
PAIRS = (b'[{"prompt": "a", "chosen": "b", "rejected": ""}]', b'{"query": "q", "chosen": "b", "rejected": "c"}\n' * 3)
RESPONSES = (b'{"step": 3, "iteration": 1, "responses": [{"prompt": "a", "response": "b", "score": 1}]}\n' * 2,)


def configs() -> list[bytes]:
    from ppo_unified.config.presets import load_target, preset_files

    whole = [load_target(name).to_toml().encode() for name in ("cartpole", "sentiment")]
    return whole + [path.read_bytes() for path in preset_files().values()]


def recipes() -> list[bytes]:
    from ppo_unified.config.recipes import recipe_files

    return [path.read_bytes() for path in recipe_files().values()]


def event_files() -> list[bytes]:
    from ppo_unified.runs.event_writer import EventWriter

    with tempfile.TemporaryDirectory() as temporary, patch("time.time", lambda: 1.7e9):
        folder = Path(temporary, "run")  # the file contains the name of its folder
        folder.mkdir()
        writer = EventWriter(folder)
        for step in range(20):
            writer.scalars(step, {"eval/score": step / 3, "policy/kl": float("nan")}, {"h": np.arange(5.0)})
        writer.hyperparameters({"b": "x"})  # only one option, because the order of several would vary
        writer.close()
        found = [path.read_bytes() for path in folder.iterdir()]
    golden = Path(__file__).parents[1] / "golden" / "logs"
    return found + [path.read_bytes()[:4096] for path in sorted(golden.rglob("events.out.*"))]


def frame_records(payloads: list[bytes]) -> bytes:
    """Frame payloads as records with valid checksums."""
    from ppo_unified.runs.event_format import CRC, masked_crc

    content = b""
    for payload in payloads:
        length = len(payload).to_bytes(8, "little")
        content += length + CRC.pack(masked_crc(length)) + payload + CRC.pack(masked_crc(payload))
    return content


def read_payloads(content: bytes) -> list[bytes]:
    """Return the payloads of the records of an event file."""
    found, at = [], 0
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        found.append(content[at + 12 : at + 12 + size])
        at += size + 16
    return found


def checkpoint_files() -> dict[str, bytes]:
    """Return the files of a complete checkpoint by name."""
    trainer = {"progress": {"steps": 12}, "generator": torch.arange(9, dtype=torch.uint8), "optimizers": [{"a": [1.5]}]}
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(Run(Path(folder)), {"weight": torch.eye(3)}, trainer, META)
        return {path.name: path.read_bytes() for path in saved.iterdir()}


def seal_checkpoint(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return a checkpoint with a new meta.json that has the correct sizes and checksums of the other files."""
    others = {name: content for name, content in files.items() if name != checkpoint.META}
    sums = {name: Checksum(len(content), google_crc32c.value(content)) for name, content in others.items()}
    return others | {checkpoint.META: checkpoint._encode_meta(META, sums)}


def with_meta(files: dict[str, bytes], text: bytes) -> dict[str, bytes]:
    """Return a checkpoint with `text` as meta.json. If `text` is a JSON object, its own checksum is corrected."""
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        table = json.loads(text)
        table.pop("crc32c")
        text = json.dumps(table | {"crc32c": checkpoint._checksum(table)}).encode()
    return files | {checkpoint.META: text}


def sample_arrays() -> dict[str, Any]:
    """Return the arrays and values of a file of stored samples, by name."""
    mask = np.array([[True, True, False], [True, True, True]])
    floats = np.linspace(-1, 1, 6).reshape(2, 3)
    columns = dict.fromkeys(("reward", "value", "advantage", "ratio", "own"), floats)
    columns |= {"mask": mask, "continues": ~mask, "clipped": mask, "action": mask.astype(np.int64)}
    columns["text"] = np.array([["a", "\x1b[31m", "\n"], ["b", "[red]", "é"]])
    single: dict[str, Any] = {"iteration": 3, "step": 90, "steps": 5}
    single |= {"gamma": 0.9, "lam": 0.8, "clip": 0.2, "clip_high": 0.2}
    single |= {"advantage_kind": "gae", "value_target": "lambda", "metrics": '{"a": 1.5}'}
    new = np.stack([floats, floats]).astype(np.float32)
    more: dict[str, Any] = {f"epochs.{name}": new for name in ("logprob", "value", "entropy")}
    more |= {"epochs.minibatch": mask.astype(np.int32)[None] - np.array([[[1]], [[0]]])}
    more |= {"alternatives.old.actions": np.zeros((2, 3, 2), np.int32)}
    more |= {"alternatives.old.logprobs": new.transpose(1, 2, 0), "observations.obs": floats, "raw.actions": floats}
    more |= {"strings.note": '["", "\\u001b[31m"]', "note": mask.astype(np.int32)}
    more |= {"json.options": '{"kind": "toy", "ppo": {"clip": 0.2}}', "json.state": '{"row_len": 3, "kl_coef": null}'}
    more |= {"json.record": '[{"row": 0}]', "json.vocabulary": '{"0": "\\u001b[31m"}'}
    return {**columns, **single, **more}


def pack_arrays(arrays: dict[str, Any]) -> bytes:
    """Pack arrays, including pickled ones, into an archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.asarray(value), allow_pickle=True)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), inner.getvalue())
    return file.getvalue()
