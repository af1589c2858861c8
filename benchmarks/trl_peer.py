"""Run iterations of one of TRL's trainers and print RESULT {json}. Used by token_speed.py in another environment.

    python benchmarks/trl_peer.py FOLDER JSON

FOLDER contains the models and prompts of token_speed.py. JSON contains the fields of its `Shape`, `iterations` and
`threads`. The method ppo needs TRL 1.12.0, the last release with PPO; grpo and rloo need TRL 1.16.0.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
import trl
from datasets import Dataset
from token_speed import other_cpu_seconds, resident_mb
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


class Clock:
    """Adds up the seconds of each phase. The start of a phase named `first` starts an iteration."""

    def __init__(self, first: str) -> None:
        self.first, self.starts, self.totals = first, list[float](), list[dict[str, float]]()

    def wrap(self, function: Callable[..., Any], name: Callable[..., str] | str) -> Callable[..., Any]:
        """Return a function that also adds its time to a phase: `name`, or what `name` returns for the arguments."""

        def run(*arguments: Any, **options: Any) -> Any:
            phase, started = name if isinstance(name, str) else name(*arguments), time.perf_counter()
            if phase == self.first and (not self.totals or "update" in self.totals[-1]):
                self.starts.append(started)
                self.totals.append({})
            found, totals = function(*arguments, **options), self.totals[-1]
            totals[phase] = totals.get(phase, 0.0) + time.perf_counter() - started
            return found

        return run


def common_options(micro: int, accumulation: int) -> dict[str, Any]:
    """Return the options that the configurations of all trainers share."""
    return {
        "output_dir": "output",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-5,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def make_tokenizer(folder: Path) -> Any:
    """Return the tokenizer with an end token that the model cannot produce, and with a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.pad_token = "w0"
    return tokenizer


def make_ppo(folder: Path, shape: SimpleNamespace, prompts: list[str], clock: Clock) -> Any:
    """Return TRL's PPO trainer."""
    module: Any = import_module("trl.experimental.ppo.ppo_trainer")  # TRL 1.16 does not have it

    tokenizer = make_tokenizer(folder)
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    policy.generation_config.eos_token_id = None
    load = AutoModelForSequenceClassification.from_pretrained
    reward, critic = load(folder / "reward", num_labels=1), load(folder / "critic", num_labels=1)
    rows = Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]})
    micro = shape.micro if shape.accumulates else shape.rows
    options = module.PPOConfig(
        **common_options(micro, shape.rows // micro),
        num_mini_batches=shape.minibatches,
        num_ppo_epochs=shape.epochs,
        total_episodes=shape.rows * shape.iterations,
        response_length=shape.new,
        local_rollout_forward_batch_size=shape.rows,
        num_sample_generations=0,
        stop_token_id=shape.vocabulary - shape.ends if shape.ends else None,
    )
    if shape.ends:  # TRL knows one end token only
        cut = module.truncate_response

        def cut_at_any(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
            shortened: torch.Tensor = cut(stop, pad, responses.clamp(max=stop))
            return shortened

        module.truncate_response = cut_at_any
    module.batch_generation = clock.wrap(module.batch_generation, "generate")
    module.get_reward = clock.wrap(module.get_reward, lambda model, *_: "score" if model is reward else "values")
    module.forward = clock.wrap(module.forward, lambda model, *_: "values" if model is reference else "update")
    return module.PPOTrainer(
        args=options,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
    )


def make_group_trainer(folder: Path, shape: SimpleNamespace, prompts: list[str], clock: Clock) -> Any:
    """Return TRL's GRPO or RLOO trainer."""
    module: Any = trl
    name = shape.method.upper()
    config, kind = getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    tokenizer, micro = make_tokenizer(folder), shape.rows // shape.minibatches
    options = config(
        **common_options(micro, 1),
        num_generations=shape.group,
        num_iterations=shape.epochs,
        steps_per_generation=shape.minibatches,
        max_completion_length=shape.new,
        beta=0.05,
        max_steps=shape.iterations * shape.epochs * shape.minibatches,
    )
    trainer = kind(
        model=str(folder / "policy"),
        reward_funcs=str(folder / "reward"),
        args=options,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        reward_processing_classes=[tokenizer],
    )
    trainer._generate = clock.wrap(trainer._generate, "generate")
    trainer._calculate_rewards = clock.wrap(trainer._calculate_rewards, "score")
    values = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = clock.wrap(
        values, lambda *_: "update" if torch.is_grad_enabled() else "values"
    )
    return trainer


def main() -> None:
    imported = resident_mb()
    folder, shape = Path(sys.argv[1]), SimpleNamespace(**json.loads(sys.argv[2]))
    torch.set_num_threads(shape.threads)
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    clock, make = Clock("generate"), make_ppo if shape.method == "ppo" else make_group_trainer
    trainer, steps = make(folder, shape, prompts, clock), 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    optimizer = trainer.optimizer or trainer.create_optimizer()
    getattr(optimizer, "optimizer", optimizer).register_step_post_hook(count)
    before = other_cpu_seconds()
    trainer.train()
    ends = [*clock.starts[1:], time.perf_counter()]
    seconds = [end - start for start, end in zip(clock.starts, ends, strict=True)]
    for total, totals in zip(seconds, clock.totals, strict=True):
        totals["update"] = total - sum(totals[name] for name in ("generate", "score", "values"))
    foreign = (other_cpu_seconds() - before) / sum(seconds) / (os.cpu_count() or 1)
    found = {"seconds": seconds, "phases": clock.totals, "steps": steps / shape.iterations, "peak_mb": resident_mb()}
    print("RESULT " + json.dumps(found | {"imports_mb": imported, "foreign": foreign}))


if __name__ == "__main__":
    main()
