"""Reads the folders of LoRA reward models, which contain LoRA weights and a score head in peft's format."""

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
FINGERPRINT = "base_fingerprint"  # a key in the metadata of the weights file
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}  # relative tolerance for fingerprints, by the base's dtype


class LoRAFolder(NamedTuple):
    """The folder of a LoRA reward model, and the base model that it needs."""

    path: Path
    base: str  # the folder or hub id of the base model

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (LoRA weights, head weights).

        LoRA weights have the names that peft uses, and head weights have the parameter names of the head layer. Raises
        UsageError if the weights cannot be read or the head is missing.
        """
        path = self.path / WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:  # a missing or damaged file
            raise UsageError(f"{path}: cannot read LoRA weights ({error})".splitlines()[0]) from None
        head = {key.removeprefix(HEAD): x.float() for key, x in weights.items() if key.startswith(HEAD)}
        if "weight" not in head:
            raise UsageError(
                f"{path}: has no score head ({HEAD}weight); train a reward model with: ppo-unified reward-model"
            )
        return {key: x for key, x in weights.items() if not key.startswith(HEAD)}, head

    def check_base(self, fingerprint: float, dtype: torch.dtype) -> None:
        """Raise UsageError if the base model's weights differ from those that the LoRA was trained on.

        Folders written by other programs have no fingerprint and are not checked.
        """
        try:
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                expected = float((file.metadata() or {})[FINGERPRINT])
        except (KeyError, ValueError):
            return
        if not math.isclose(expected, fingerprint, rel_tol=TOLERANCE.get(dtype, 1e-3)):
            raise UsageError(
                f"{self.path}: the base {self.base} has changed since this LoRA was trained (expected fingerprint "
                f"{expected:.8g}, got {fingerprint:.8g}); restore the base or run ppo-unified reward-model again"
            )


def read_lora_folder(source: str) -> LoRAFolder | None:
    """Return the LoRA reward model in the folder `source`, or None if `source` is not such a folder."""
    path = Path(source) / CONFIG
    try:
        options: Any = read_json(path)
        if options["task_type"] != "SEQ_CLS":
            return None
        return LoRAFolder(Path(source), find_base(Path(source), str(options["base_model_name_or_path"])))
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot read the LoRA configuration ({error!r})") from None


def find_base(folder: Path, name: str) -> str:
    """Return the location of a base model that a LoRA folder names: relative to that folder if it exists there, and
    otherwise relative to the current folder, or a hub id."""
    return str(folder / name) if (folder / name).is_dir() else name


@torch.no_grad()
def trunk_fingerprint(model: Any) -> float:
    """Return the sum of the absolute values of a model's weights, excluding its head and LoRA weights.

    This fingerprint shows whether a base model has changed.
    """
    sums = [x.abs().sum(dtype=torch.float64) for name, x in model.base_model.named_parameters() if "lora_" not in name]
    return float(torch.stack([x.cpu() for x in sums]).sum())
