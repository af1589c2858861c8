"""Create the small run folders that later versions must still read: python tests/data/make_runs.py

The folder is named after the version, tests/data/VERSION. Commit it with the release and never change it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--ppo.minibatches", "2", "--checkpoint.keep", "1", "--eval.episodes", "3", "--threads", "1"]
GYM = ["CartPole-v1", "--name", "gym", "--total-steps", "96", "--eval.every-steps", "32", "--policy.hidden", "4"]
GYM += ["--gym.num-envs", "2", "--gym.num-steps", "16"]
LLM = ["llm", "--name", "llm", "--total-iterations", "2", "--eval.every-steps", "20", "--llm.model", "model"]
LLM += ["--llm.prompts", "prompts.jsonl", "--llm.reward", "length:4", "--llm.max-new-tokens", "6"]
LLM += ["--llm.rollout-batch", "4", "--llm.lora-rank", "1"]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from ppo_unified import __version__
    from tests.models import save_model

    folder = ROOT / "tests" / "data" / __version__
    folder.mkdir()
    save_model(folder / "model", "llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    prompts = [json.dumps({"prompt": word}) for word in ("one", "two", "three", "four")]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    for arguments in (GYM, LLM):
        train = [sys.executable, "-m", "ppo_unified", "train", *arguments, *SHORT]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(train, cwd=folder, check=True, env=environment)
    scores = {}
    for name in ("gym", "llm"):
        evaluate = [sys.executable, "-m", "ppo_unified", "eval", name, "--episodes", "3", "--json"]
        done = subprocess.run(evaluate, cwd=folder, check=True, env=environment, capture_output=True, text=True)
        scores[name] = json.loads(done.stdout)["score"]
    (folder / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
