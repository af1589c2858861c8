"""Record which project files run during training: `python -m tests.reading_path FOLDER` writes them as JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tuple(f"{ROOT / name}{os.sep}" for name in ("ppo_unified", "envs", "tui"))
RESPONSE = """
kind = "llm"
total_steps = 0
total_iterations = 1
threads = 1
[llm]
model = "model"
prompts = "prompts.jsonl"
reward = "arithmetic"
max_new_tokens = 4
rollout_batch = 8
[ppo]
epochs = 1
minibatches = 2
[eval]
episodes = 4
"""
COMMANDS = {name: ["train", f"{name}.toml"] for name in ("cartpole", "response")}  # both train one iteration


def record(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the files whose functions run, in order of first call: before the first optimizer step, and in total."""
    from ppo_unified.cli.main import main
    from ppo_unified.engine.optimizers import Adam

    files: dict[str, None] = {}
    before: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PROJECT) and code.co_flags & 1 and code.co_name[0] != "<":
            files[code.co_filename] = None

    step = Adam.step

    def first_step(*arguments: Any) -> None:
        before.extend(files)
        Adam.step = step  # type: ignore[method-assign]
        step(*arguments)

    Adam.step = first_step  # type: ignore[method-assign, assignment]
    threading.setprofile(note)
    sys.setprofile(note)
    code = main(arguments)
    sys.setprofile(None)
    threading.setprofile(None)
    assert code == 0
    return {"before": [relative(path) for path in before], "whole": [relative(path) for path in files]}


def relative(path: str) -> str:
    return Path(path).relative_to(ROOT).as_posix()


def record_all(folder: Path) -> None:
    """Record each command in a process that has imported the libraries but no module of this project."""
    import torch
    import transformers  # noqa: F401

    from ppo_unified import load_preset
    from ppo_unified.config.presets import apply_changes
    from tests.models import save_model

    torch.set_num_threads(1)
    save_model(folder / "model")
    (folder / "response.toml").write_text(RESPONSE, encoding="utf-8")
    short = {"total_steps": 512, "eval": {"every_steps": 512, "episodes": 2}, "ppo": {"epochs": 1}}
    config = apply_changes(load_preset("cartpole"), short, "reading_path")
    (folder / "cartpole.toml").write_text(config.to_toml(), encoding="utf-8")
    lines = [json.dumps({"prompt": f"{number}+1=", "answer": str(number + 1)}) for number in range(32)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    os.chdir(folder)
    for name, arguments in COMMANDS.items():
        child = os.fork()
        if not child:
            (folder / f"{name}.json").write_text(json.dumps(record(arguments)), encoding="utf-8")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name


if __name__ == "__main__":
    record_all(Path(sys.argv[1]))
