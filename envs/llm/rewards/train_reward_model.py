"""Trains a reward model for `llm.reward` from preference pairs, using TRL's RewardTrainer.

This module requires the `trl` extra. TRL implements the Bradley-Terry loss and the training loop. This module prepares
the data, selects the padding token and saves the model so that `llm.reward` computes the same scores as TRL during
training. A prompt and its response form one text, which is scored at its last token.
"""

from __future__ import annotations

import copy
import gc
import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback
from transformers.pytorch_utils import Conv1D
from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]  # trl exports them lazily
from trl.trainer.reward_trainer import DataCollatorForPreference

from envs.llm.data import Pair
from envs.llm.families import check_reward_structure, check_scores
from envs.llm.model import check_unexpected_weights, load_config, load_tokenizer, location
from envs.llm.named_models import resolve
from envs.llm.options import TINY
from envs.llm.quiet import silence_peft, silence_transformers
from envs.llm.rewards.functions import Reward, load_reward
from envs.llm.rewards.lora_reward_model import FINGERPRINT, WEIGHTS, read_lora_folder, trunk_fingerprint
from envs.llm.rewards.reward_model import encode, find_head, max_tokens, score_rows
from envs.llm.rewards.scoring import score
from ppo_unified.errors import UsageError

LORA_ALPHA = 16  # same as the default of llm.lora_alpha
LONGEST = 1024  # default of --max-length in tokens, unless the model reads fewer
FEWEST_HELD_OUT = 5  # the accuracy on fewer pairs is meaningless


@dataclass(frozen=True)
class Settings:
    """The options of `ppo-unified reward-model`. If `lr` or `max_length` is 0, its default depends on the model."""

    model: str  # a folder, a hub id, or 'tiny'
    epochs: int = 1
    lr: float = 0.0
    batch: int = 8  # pairs per optimizer step
    max_length: int = 0  # in tokens; longer pairs are skipped
    lora_rank: int = 0
    lora_only: bool = False  # save only the LoRA weights and the score head
    eval_share: float = 0.1
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """The result of training. Accuracy, margin and scores are computed with the saved model."""

    accuracy: float  # fraction of pairs whose chosen response has a higher score than the rejected one
    margin: float  # mean score of the chosen responses minus mean score of the rejected ones
    score_mean: float  # over the chosen and rejected responses
    score_std: float
    scored: int  # number of pairs that accuracy, margin and scores are computed on
    held_out: bool  # True if these pairs were held out from training
    trained: int  # number of training pairs
    left_out: int  # number of pairs longer than max_length
    max_length: int
    lr: float
    steps: int  # number of optimizer steps
    device: str


@dataclass(frozen=True)
class Progress:
    """The loss (in nats) and the accuracy on one optimizer step's batch, computed before the update."""

    step: int
    steps: int
    loss: float
    accuracy: float


def train(pairs: Sequence[Pair], settings: Settings, folder: Path, report: Callable[[Progress], None]) -> Outcome:
    """Train a reward model on `pairs`, save it with its tokenizer in `folder`, and evaluate the saved model.

    Raises UsageError if the settings or the model cannot be used.
    """
    device = _device(settings.device)
    with silence_transformers():
        tokenizer = load_tokenizer(settings.model, "--model")
        limit, steps, kept, held = _train_and_save(pairs, tokenizer, settings, device, folder, report)
        gc.collect()  # free the trained model before loading the saved one
        scored = [pair for index, pair in enumerate(kept) if index in held or not held]
        accuracy, margin, mean, std = _evaluate(load_reward(str(folder), device), scored)
    return Outcome(
        accuracy=accuracy,
        margin=margin,
        score_mean=mean,
        score_std=std,
        scored=len(scored),
        held_out=bool(held),
        trained=len(kept) - len(held),
        left_out=len(pairs) - len(kept),
        max_length=limit,
        lr=_learning_rate(settings),
        steps=steps,
        device=device.type,
    )


class _Training(NamedTuple):
    limit: int  # maximum number of tokens in a pair
    steps: int
    kept: list[Pair]  # pairs within the limit
    held: set[int]  # indices in `kept` of the held-out pairs


def _train_and_save(
    pairs: Sequence[Pair],
    tokenizer: Any,
    settings: Settings,
    device: torch.device,
    folder: Path,
    report: Callable[[Progress], None],
) -> _Training:
    """Train the model and save it with its tokenizer, but do not evaluate it."""
    transformers.set_seed(settings.seed)  # determines the initial score head and LoRA weights
    model = _load(settings, tokenizer)
    limit = _limit(settings, max_tokens(model.config, tokenizer))
    kept, rows = _drop_long_pairs(pairs, tokenizer, limit)
    held = _choose_held_out(kept, settings.eval_share, settings.seed)
    training = [row for index, row in enumerate(rows) if index not in held]
    fill = _padding_id([ids for row in rows for ids in row.values()], tokenizer)
    base = trunk_fingerprint(model) if settings.lora_only else 0.0
    trainer = _trainer(model, training, fill, settings, device, report)
    trainer.train()
    trained: Any = trainer.model
    _check_finite(trained)
    if settings.lora_only:
        _save_lora(trained, location(settings.model), base, folder)
    else:
        (trained.merge_and_unload() if settings.lora_rank else trained).save_pretrained(folder)
    _save_tokenizer(tokenizer, fill, folder)
    return _Training(limit, trainer.state.global_step, kept, held)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch cannot find a GPU; run ppo-unified doctor to find the cause")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _learning_rate(settings: Settings) -> float:
    """Return the learning rate.

    The default depends on what is trained: `tiny`, only LoRA weights, or all weights of another model.
    """
    return settings.lr or (1e-3 if settings.model == TINY else 1e-4 if settings.lora_rank else 1e-5)


def _load(settings: Settings, tokenizer: Any) -> Any:
    """Load the base model with a score head.

    Raises UsageError if any weights except the head's are missing, or if scores would depend on padding.
    """
    name = settings.model
    if folder := read_lora_folder(resolve(name)):
        raise UsageError(f"--model {name}: expected a full model, got a LoRA folder; use its base {folder.base}")
    config = load_config(name, "--model")
    check_reward_structure(config, f"--model {name}")
    is_classifier = any("SequenceClassification" in kind for kind in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise UsageError(f"--model {name}: expected a classifier with 1 label, got one with {config.num_labels} labels")
    largest, size = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if largest >= size:
        found = f"the tokenizer has ids up to {largest:,}, but the model has only {size:,} embeddings"
        raise UsageError(f"--model {name}: {found}; use the model's original tokenizer")
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            resolve(name), num_labels=1, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"--model {name}: cannot load it as a reward model ({why})") from None
    missing = {key.rpartition(".")[0] for key in loading["missing_keys"]}
    heads = {key for key, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1}
    for key in missing & heads:
        _initialize(model.get_submodule(key))
    check_unexpected_weights(model, loading["unexpected_keys"], f"--model {name}")
    if lost := sorted(key for key in missing - heads if key.startswith(f"{model.base_model_prefix}.")):
        raise UsageError(f"--model {name}: weights are missing ({lost[0]}); copy or download the folder again")
    check_scores(model, partial(score_rows, model, find_head(model)), f"--model {name}")
    return model


def _initialize(head: nn.Module) -> None:
    """Initialize a score head with standard deviation 1 / sqrt(width + 1) (arXiv:2009.01325, appendix B)."""
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _limit(settings: Settings, readable: int) -> int:
    """Return the maximum number of tokens in a pair. Raises UsageError if --max-length exceeds the model's limit."""
    if settings.max_length > readable:
        limit = f"{readable}, the context of {settings.model}"
        raise UsageError(f"--max-length: expected at most {limit}, got {settings.max_length}")
    return settings.max_length or min(LONGEST, readable)


def _drop_long_pairs(
    pairs: Sequence[Pair], tokenizer: Any, limit: int
) -> tuple[list[Pair], list[dict[str, list[int]]]]:
    """Drop pairs longer than `limit` tokens. Return the others, and their token ids under the keys that TRL expects."""
    chosen = [encode(tokenizer, pair.prompt + pair.chosen) for pair in pairs]
    rejected = [encode(tokenizer, pair.prompt + pair.rejected) for pair in pairs]
    sizes = [max(map(len, both)) for both in zip(chosen, rejected, strict=True)]
    kept = [index for index, size in enumerate(sizes) if size <= limit]
    if not kept:
        raise UsageError(f"--max-length {limit}: every pair is longer; the shortest one has {min(sizes)} tokens")
    return [pairs[i] for i in kept], [{"chosen_ids": chosen[i], "rejected_ids": rejected[i]} for i in kept]


def _choose_held_out(pairs: Sequence[Pair], share: float, seed: int) -> set[int]:
    """Return the indices of the pairs to hold out, or an empty set if there would be fewer than FEWEST_HELD_OUT.

    If possible, all pairs with the same prompt are held out together, so that the accuracy is measured on new prompts.
    """
    wanted = min(round(share * len(pairs)), len(pairs) - 1)
    if wanted < FEWEST_HELD_OUT:
        return set()
    groups = defaultdict(list)
    for index, pair in enumerate(pairs):
        groups[pair.prompt].append(index)
    for units in (list(groups.values()), [[index] for index in range(len(pairs))]):
        random.Random(seed).shuffle(units)
        held: set[int] = set()
        for unit in units:
            if len(held) + len(unit) <= wanted:
                held.update(unit)
        if len(held) >= FEWEST_HELD_OUT:
            return held
    raise AssertionError("single pairs always reach the wanted number")


def _padding_id(rows: Sequence[list[int]], tokenizer: Any) -> int:
    """Return a padding id that is not the last id of any tokenized text.

    Models from transformers read the score at the last id that is not `config.pad_token_id`. If texts ended with the
    padding id, for example because the tokenizer appends EOS, the score would be read one token too early.
    """
    ends = {ids[-1] for ids in rows}
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    fill = next((id for id in [*special, *range(len(tokenizer))] if id is not None and id not in ends), None)
    if fill is None:
        raise UsageError("--model: no token id can be used for padding; add a pad token to the tokenizer")
    return int(fill)


class _Reporter(TrainerCallback):
    """Reports the loss of each step, and raises UsageError if the loss is not finite."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self.report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:  # the final summary has no loss
            return
        if not math.isfinite(logs["loss"]):
            raise UsageError(f"the loss is {logs['loss']} in step {state.global_step}; lower --lr")
        self.report(Progress(state.global_step, state.max_steps, logs["loss"], logs["accuracy"]))


class _Trainer(RewardTrainer):
    """A RewardTrainer without telemetry."""

    def _send_telemetry(self) -> None:
        """Do nothing, so that no usage data is sent."""


def _trainer(
    model: Any,
    rows: list[dict[str, list[int]]],
    fill: int,
    settings: Settings,
    device: torch.device,
    report: Callable[[Progress], None],
) -> RewardTrainer:
    gpu = device.type == "cuda"
    renamed = "activation_checkpointing" in {field.name for field in fields(RewardConfig)}
    checkpointing: dict[str, Any] = {
        "activation_checkpointing" if renamed else "gradient_checkpointing": gpu
        and model.supports_gradient_checkpointing
    }
    with tempfile.TemporaryDirectory() as unused:  # nothing is saved during training, but TRL requires a folder
        arguments = RewardConfig(
            output_dir=unused,
            num_train_epochs=settings.epochs,
            learning_rate=_learning_rate(settings),
            per_device_train_batch_size=settings.batch,
            seed=settings.seed,
            max_length=None,
            bf16=gpu and torch.cuda.is_bf16_supported(),
            use_cpu=not gpu,
            dataloader_pin_memory=gpu,
            report_to="none",
            save_strategy="no",
            eval_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            **checkpointing,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # TRL raises an error if it could use several GPUs
        padded = load_tokenizer(settings.model, "--model")
        padded.pad_token = padded.convert_ids_to_tokens(fill)  # TRL copies the id of this token to the model
        trainer = _Trainer(
            model=_add_lora(model, settings.lora_rank) if settings.lora_rank else model,
            args=arguments,
            data_collator=DataCollatorForPreference(pad_token_id=fill),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=padded,
            callbacks=[_Reporter(report)],
        )
    trainer.remove_callback(PrinterCallback)  # this callback prints to stdout
    return trainer


def _add_lora(model: Any, rank: int) -> Any:
    """Freeze the model's weights and add LoRA weights. All weights of the score head remain trainable."""
    options = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with silence_peft():
        return get_peft_model(model, options)


def _check_finite(model: Any) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise UsageError("training made some weights NaN or infinite; lower --lr")


def _save_lora(model: Any, base: str, fingerprint: float, folder: Path) -> None:
    """Save the LoRA weights and the score head in peft's format, together with the base model's fingerprint."""
    options = copy.deepcopy(model.peft_config["default"])
    options.base_model_name_or_path, options.inference_mode = base, True
    options.target_modules = sorted(options.target_modules)
    options.save_pretrained(folder)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {key: x.detach().float().cpu().contiguous() for key, x in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", FINGERPRINT: repr(fingerprint)})


def _save_tokenizer(tokenizer: Any, fill: int, folder: Path) -> None:
    """Save the tokenizer with the pad token that was used in training."""
    tokenizer.padding_side = "right"
    if fill in tokenizer.all_special_ids:  # never turn an ordinary token into a special one
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(fill)
    tokenizer.save_pretrained(folder)


def _evaluate(reward: Reward, pairs: Sequence[Pair]) -> tuple[float, float, float, float]:
    """Score the responses of `pairs` and return (accuracy, margin, mean score, standard deviation of the scores)."""
    prompts, better, worse = ([pair[part] for pair in pairs] for part in range(3))
    chosen, rejected = (
        torch.tensor(score(reward, "--out", prompts, responses, {}), dtype=torch.float64)
        for responses in (better, worse)
    )
    both = torch.cat([chosen, rejected])
    accuracy = (chosen > rejected).double().mean()
    return float(accuracy), float((chosen - rejected).mean()), float(both.mean()), float(both.std(correction=0))


def describe(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Return the settings and the outcome in one dictionary that can be written as JSON."""
    return asdict(settings) | asdict(outcome)
