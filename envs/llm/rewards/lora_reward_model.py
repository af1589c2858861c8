"""A reward model that is LoRA and a head: its folder as peft writes it, without the base's weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "base_model.model.score."
FINGERPRINT = "base_fingerprint"  # in the metadata of the weights' file
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}  # of a fingerprint, by what the weights are kept in


class LoRAFolder(NamedTuple):
    """A reward model's LoRA and head on the disk."""

    path: Path
    base: str  # the folder or hub id of the model that it belongs to

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(LoRA, head): LoRA by peft's keys, the head by those of its layer. Raises UsageError."""
        path = self.path / WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                everything = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        except Exception as error:  # a missing, damaged or foreign file
            raise UsageError(f"{path}: cannot be read as a low-rank adapter ({error})".splitlines()[0]) from None
        head = {key.removeprefix(HEAD): x.float() for key, x in everything.items() if key.startswith(HEAD)}
        if "weight" not in head:
            raise UsageError(f"{path}: holds no scoring head ({HEAD}weight); make one with: ppo-unified reward-model")
        return {key: x for key, x in everything.items() if not key.startswith(HEAD)}, head

    def check_base(self, fingerprint: float, dtype: torch.dtype) -> None:
        """Raises UsageError where a base is not the one that the LoRA was trained on; folders made elsewhere do not
        say what theirs was."""
        try:
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                wanted = float((file.metadata() or {})[FINGERPRINT])
        except (KeyError, ValueError):
            return
        if not math.isclose(wanted, fingerprint, rel_tol=TOLERANCE.get(dtype, 1e-3)):
            raise UsageError(
                f"{self.path}: was trained on other weights than {self.base} has now (sums of all: {wanted:.8g} and "
                f"{fingerprint:.8g}); put that model back, or train the adapter again: ppo-unified reward-model"
            )


def read_lora_folder(source: str) -> LoRAFolder | None:
    """The LoRA folder of a reward model; None for anything else, LoRA of another kind of model included."""
    path = Path(source) / CONFIG
    try:
        options: Any = read_json(path)
        if options["task_type"] != "SEQ_CLS":
            return None
        return LoRAFolder(Path(source), str(options["base_model_name_or_path"]))
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as an adapter's configuration ({error!r})") from None


@torch.no_grad()
def trunk_fingerprint(model: Any) -> float:
    """One number of the weights below a model's head, LoRA left out: the same with whatever head."""
    sums = [x.abs().sum(dtype=torch.float64) for name, x in model.base_model.named_parameters() if "lora_" not in name]
    return float(torch.stack([x.cpu() for x in sums]).sum())
