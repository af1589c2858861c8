"""Reads folders that contain only LoRA weights of a causal language model, and merges the weights into their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from envs.llm.quiet import silence_peft
from envs.llm.rewards.lora_reward_model import CONFIG, WEIGHTS, find_base
from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_json
from ppo_unified.text import clean

FULL_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # files of a model without LoRA, and their indices
LORA_FILES = "adapter_*"
MERGING = "'Models with LoRA weights' in docs/llm.md"
PREFIX = "base_model.model."  # of the names of weights in a LoRA file


class LoRAModel(NamedTuple):
    """A folder with the LoRA weights of a causal language model, and the base model that it needs."""

    path: Path
    base: str  # the folder or hub id of the base model


def read_lora_model(source: str, where: str) -> LoRAModel | None:
    """Return the LoRA weights in the folder `source`, or None if it contains none, or those of a reward model.

    Raises UsageError if the folder also contains full weights, or if its LoRA weights cannot be merged into a causal
    language model. Error messages start with `where`.
    """
    folder = Path(source)
    try:
        options: Any = read_json(folder / CONFIG)
        task, kind, base = (options.get(name) for name in ("task_type", "peft_type", "base_model_name_or_path"))
    except OSError:
        return None
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{clean(folder / CONFIG)}: cannot read the LoRA configuration ({error!r})") from None
    if task == "SEQ_CLS":
        return None
    check_lora_files(folder, where, is_supported=True)
    if task not in ("CAUSAL_LM", None) or kind != "LORA":
        found = f"{kind} weights" if kind != "LORA" else f"LoRA weights of task_type {task!r}"
        raise UsageError(
            f"{where}: expected LoRA weights of a causal language model, got {clean(found)} ({CONFIG}); use a full "
            "model"
        )
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{where}: {CONFIG} names no base model; set base_model_name_or_path to its folder or hub id, or merge the "
            f"weights (see {MERGING})"
        )
    return LoRAModel(folder, find_base(folder, base))


def check_lora_files(folder: Path, where: str, is_supported: bool) -> None:
    """Raise UsageError if transformers or peft would load weights that the user does not expect.

    A folder with full weights and LoRA weights is ambiguous: transformers would load both, and peft would load the
    LoRA weights and a different base. `is_supported` is True if LoRA weights alone can be used here.
    """
    if not (folder / CONFIG).exists():
        return
    full = [path.name for pattern in FULL_WEIGHTS for path in folder.glob(pattern)]
    if full:
        raise UsageError(
            f"{where}: expected full weights or LoRA weights, got both ({min(full)} and {CONFIG}); move the files "
            f"{LORA_FILES} to another folder or merge them into the full weights (see {MERGING})"
        )
    if not is_supported:
        raise UsageError(
            f"{where}: expected full weights, got only LoRA weights ({CONFIG}); merge them into their base model "
            f"(see {MERGING}), or export a run with --merged"
        )


def check_lora_weights(lora: LoRAModel, config: Any, where: str) -> None:
    """Compare the names and shapes of the LoRA weights with the base model's configuration, without loading weights.

    Raises UsageError if the weights cannot be read or do not fit.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    path = lora.path / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # a missing or damaged file
        raise UsageError(f"{clean(path)}: cannot read LoRA weights ({error})".splitlines()[0]) from None
    with silence_peft(), torch.device("meta"):  # creates no weights
        try:
            base = AutoModelForCausalLM.from_config(config)
            known = {PREFIX + name: tuple(x.shape) for name, x in base.state_dict().items()}
            model: Any = get_peft_model(base, LoraConfig.from_pretrained(str(lora.path)), low_cpu_mem_usage=True)
            needed = get_peft_model_state_dict(model, save_embedding_layers=False)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UsageError(_explain_misfit(lora, where, " ".join(str(error).split())[:200])) from None
    shapes = {name: tuple(x.shape) for name, x in needed.items()}
    for name in sorted(shapes | found):
        expected = shapes.get(name) or known.get(name)
        if found.get(name) != expected:
            expects, has = (list(x) if x else "no such weights" for x in (expected, found.get(name)))
            raise UsageError(_explain_misfit(lora, where, f"{name}: the base needs {expects}, the file has {has}"))


def merge_lora_model(lora: LoRAModel, base: Any, where: str) -> Any:
    """Merge the LoRA weights into the base model, whose weights are changed. Raises UsageError if they do not fit."""
    from peft import PeftModel

    try:
        with silence_peft():
            return PeftModel.from_pretrained(base, str(lora.path), torch_device="cpu").merge_and_unload()
    except (ValueError, RuntimeError, KeyError) as error:
        raise UsageError(_explain_misfit(lora, where, " ".join(str(error).split())[:200])) from None


def describe_merge(source: str, where: str) -> str | None:
    """Return a note that names the base model, or None if `source` contains no LoRA weights of a language model."""
    lora = read_lora_model(source, where)
    return f"{where}: merged its LoRA weights into the base model {clean(lora.base)}" if lora else None


def _explain_misfit(lora: LoRAModel, where: str, why: str) -> str:
    return (
        f"{where}: the LoRA weights do not fit their base model {clean(lora.base)} ({clean(why)}); use the base model "
        f"that they were trained on (base_model_name_or_path in {CONFIG})"
    )
