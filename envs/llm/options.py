"""The language-model adapter's options. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ppo_unified.config.schema import PPO, Checkpoint, Optim, RunConfig, Section
from ppo_unified.errors import UsageError

TINY = "tiny"  # the model that the project makes itself
TASKS = ("arithmetic", "sentiment")  # built-in prompts and rewards


class LLM(Section):
    """Which model, prompts and reward; how responses are sampled; critic, reference and what they cost."""

    model: str = Field(
        "", description="folder or hub id of a causal language model, or 'tiny' (made here, no download)"
    )
    prompts: str = Field(
        "", description="file of prompts (.jsonl, .json, .txt), or a built-in task: arithmetic, sentiment"
    )
    eval_prompts: str = Field(
        "", description="file of held-out prompts; without one every tenth prompt is held out where there are 100"
    )
    prompt_key: str = Field("", description="the prompt's key in the file; '' = prompt, query, question or messages")
    chat_template: bool = Field(False, description="wrap plain prompts as a user's message (messages always are)")
    reward: str = Field(
        "",
        description="module:function, a folder or hub id of a scoring model, exact, numeric, regex:PATTERN, "
        "length:CHARACTERS, or a built-in task",
    )
    proxy_of: str = Field("", description="the true reward that `reward` stands for: only logged, as reward/gold")
    max_new_tokens: int = Field(64, ge=1, description="tokens after which a response is cut off")
    temperature: float = Field(1.0, gt=0, description="divides the logits, while sampling and in every log-prob")
    rollout_batch: int = Field(64, ge=1, description="responses per iteration")
    group_size: int = Field(1, ge=1, description="responses to each prompt")
    critic: Literal["independent", "shared"] = Field(
        "independent", description="a model of its own, or a value head on the policy's last hidden state"
    )
    critic_init: str = Field(
        "policy", description="what an independent critic starts from: policy, reward, or a folder or hub id"
    )
    baseline: Literal["critic", "rloo", "grpo"] = Field(
        "critic", description="what a response is compared with: the critic, or the other responses to its prompt"
    )
    reference: Literal["auto", "copy", "lora-off"] = Field(
        "auto", description="the frozen model that KL is measured to; auto = lora-off with LoRA, else a copy"
    )
    reference_dtype: Literal["same", "float32", "bfloat16"] = Field(
        "same", description="precision of the copy's weights; same = as frozen weights are under llm.dtype"
    )
    reference_device: Literal["same", "cpu"] = Field("same", description="where the copy is kept and run")
    kl: Literal["k1", "abs", "k2", "k3", "full"] = Field(
        "k1", description="estimate of KL to the reference in the reward; k1, k2, k3 and full are logged"
    )
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL penalty at every token; 0 = off")
    kl_target: float = Field(0.0, ge=0, description="KL per response that kl_coef adapts to; 0 = fixed")
    kl_horizon: int = Field(10_000, ge=1, description="responses over which kl_coef adapts")
    score_clip: float = Field(0.0, ge=0, description="clip scores to +- this; 0 = off")
    score_normalize: Literal["none", "reference", "running"] = Field(
        "none", description="zero mean, unit deviation over the reference's responses, or over all seen so far"
    )
    whiten_rewards: bool = Field(False, description="unit variance of the rewards of a rollout, mean kept")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken off the score of a response that was cut off")
    lora_rank: int = Field(0, ge=0, description="train low-rank adapters of this rank; 0 = all weights")
    lora_alpha: int = Field(16, gt=0, description="scale of the adapters, divided by the rank")
    lora_targets: list[str] = Field([], description="names of the layers that get adapters; [] = all linear ones")
    quantize: Literal["none", "4bit"] = Field("none", description="store the frozen base in 4 bits (needs a GPU)")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of matrix products and frozen weights; trained weights stay float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations backward: less memory, more time")
    ptx_data: str = Field("", description="file of texts for InstructGPT's pretraining term")
    ptx_coef: float = Field(0.0, ge=0, description="weight of the pretraining term; 0 = off")
    ptx_batch: int = Field(8, ge=1, description="texts per optimizer step in the pretraining term")

    @property
    def prompts_name(self) -> str:
        """Where prompts come from: the tiny model has some of its own."""
        return self.prompts or ("sentiment" if self.model == TINY else "")

    @property
    def reward_name(self) -> str:
        """What scores responses: the tiny model has a reward model of its own."""
        return self.reward or ("sentiment" if self.model == TINY else "")


def _description(section: type[Section], option: str) -> str | None:
    return section.model_fields[option].description


class TokenPPO(PPO):
    """PPO's options with the values that are usual for language models (arXiv:1909.08593, arXiv:2203.02155)."""

    epochs: int = Field(4, ge=1, description=_description(PPO, "epochs"))
    microbatch_columns: int = Field(8192, ge=1, description=_description(PPO, "microbatch_columns"))
    gamma: float = Field(1.0, ge=0, le=1, description=_description(PPO, "gamma"))
    normalize_advantages: Literal["batch", "minibatch", "none"] = Field(
        "batch", description=_description(PPO, "normalize_advantages")
    )
    value_clip: float = Field(0.2, ge=0, description=_description(PPO, "value_clip"))
    value_coef: float = Field(0.1, ge=0, description=_description(PPO, "value_coef"))


class TokenOptim(Optim):
    """Adam's options with a learning rate that suits pretrained models."""

    lr: float = Field(1e-5, gt=0, le=1, description=_description(Optim, "lr"))
    max_grad_norm: float = Field(1.0, ge=0, description=_description(Optim, "max_grad_norm"))


class TokenCheckpoint(Checkpoint):
    """What is kept to resume from; a checkpoint of a large model with its Adam states takes a while to write."""

    every_s: float = Field(300.0, gt=0, description=_description(Checkpoint, "every_s"))


class LLMConfig(RunConfig):
    """A run on a language model."""

    kind: Literal["llm"] = Field("llm", description="the adapter's name")
    threads: int = Field(
        default_factory=lambda: min(16, os.cpu_count() or 1), ge=1, le=256, description="CPU threads for torch"
    )
    llm: LLM = LLM()
    ppo: TokenPPO = TokenPPO()
    optim: TokenOptim = TokenOptim()
    checkpoint: TokenCheckpoint = TokenCheckpoint()

    refused: ClassVar[dict[str, str]] = {
        f"llm.{name}": f"{name} cuts the distribution that responses come from, while log-probs, ratio and KL are of "
        "the whole one: KL turns negative and training is biased; sample from the whole distribution and steer with "
        "llm.temperature"
        for name in ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    }

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        yield from super().ignored_options()
        llm = self.llm
        critic_free = llm.baseline != "critic"
        for name in ("llm.critic", "llm.critic_init", "ppo.critic_warmup", "ppo.value_target"):
            yield name, critic_free, f"llm.baseline = {llm.baseline!r}"
        yield "ppo.value_clip", critic_free and self.ppo.value_clip > 0, f"llm.baseline = {llm.baseline!r}"
        yield "llm.kl_target", not llm.kl_coef, "llm.kl_coef = 0: a coefficient of 0 adapts to nothing"
        yield "llm.prompt_key", llm.prompts_name in TASKS, f"llm.prompts = {llm.prompts_name!r}"
        yield "llm.critic_init", llm.critic == "shared", "llm.critic = 'shared'"
        yield "llm.kl_horizon", not llm.kl_target, "llm.kl_target = 0"
        for name in ("llm.lora_alpha", "llm.lora_targets", "llm.quantize"):
            yield name, not llm.lora_rank, "llm.lora_rank = 0"
        for name in ("llm.reference_dtype", "llm.reference_device"):
            yield name, self.reference == "lora-off", "llm.reference = 'lora-off'"
        yield "llm.ptx_data", not llm.ptx_coef, "llm.ptx_coef = 0"
        yield "llm.ptx_coef", not llm.ptx_data and llm.model not in ("", TINY), "llm.ptx_data = ''"
        yield "llm.ptx_batch", not llm.ptx_coef, "llm.ptx_coef = 0"

    @property
    def reference(self) -> Literal["copy", "lora-off"]:
        """What `llm.reference = 'auto'` means here."""
        if self.llm.reference != "auto":
            return self.llm.reference
        return "lora-off" if self.llm.lora_rank else "copy"

    @property
    def ratio_tolerance(self) -> float:
        """bf16 products round differently in batches of other shapes; a mistake shows as an error of order 1."""
        return 1e-2 if self.llm.dtype == "float32" else 0.2

    @model_validator(mode="after")
    def _llm_options_go_together(self) -> Self:
        llm = self.llm
        if llm.reference == "lora-off" and not llm.lora_rank:
            raise ValueError("llm.reference = 'lora-off' needs llm.lora_rank above 0: there is no LoRA to switch off")
        if llm.quantize != "none" and self.reference == "copy":
            raise ValueError("llm.quantize = '4bit' needs llm.reference = 'lora-off': a copy is of whole weights")
        if llm.critic == "shared" and llm.baseline == "critic" and not self.optim.joint:
            raise ValueError("llm.critic = 'shared' needs optim.joint = true: two optimizers can't share a trunk")
        if llm.rollout_batch % llm.group_size:
            raise ValueError(
                f"llm.rollout_batch = {llm.rollout_batch} is not a multiple of llm.group_size = {llm.group_size}"
            )
        if self.ppo.minibatches > llm.rollout_batch:
            raise ValueError(
                f"ppo.minibatches = {self.ppo.minibatches} is more than llm.rollout_batch = {llm.rollout_batch}"
            )
        if llm.baseline != "critic":
            self._check_critic_free()
        return self

    def _check_critic_free(self) -> None:
        """A group's baseline is the same at every token, which only undiscounted returns leave meaningful."""
        llm, ppo = self.llm, self.ppo
        wanted = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none", "advantage": "gae"}
        wrong = [f"ppo.{name} = {value!r}" for name, value in wanted.items() if getattr(ppo, name) != value]
        if wrong:
            raise ValueError(f"llm.baseline = {llm.baseline!r} needs {', '.join(wrong)}")
        if llm.group_size < 2:
            raise ValueError(f"llm.baseline = {llm.baseline!r} compares responses to one prompt: llm.group_size >= 2")
        if not self.optim.joint:
            raise ValueError(f"llm.baseline = {llm.baseline!r} has no critic to train: optim.joint must be true")
        if llm.whiten_rewards:
            raise ValueError(
                f"llm.whiten_rewards has no effect with llm.baseline = {llm.baseline!r}; drop one of the two"
            )


def from_target(word: str) -> dict[str, Any] | None:
    """Options for the word 'llm': everything else comes from flags."""
    return {} if word == "llm" else None


def check_required(config: LLMConfig) -> None:
    """Raises UsageError where the model, the prompts or the reward is yet to be named."""
    llm = config.llm
    if not llm.model:
        raise UsageError("llm.model: no model is given; name a folder, a hub id, or 'tiny': --llm.model tiny")
    if not llm.prompts_name:
        raise UsageError("llm.prompts: no prompts are given; name a .jsonl, .json or .txt file: --llm.prompts FILE")
    if not llm.reward_name:
        raise UsageError(
            "llm.reward: nothing scores the responses; name module:function, a scoring model, exact, numeric, "
            "regex:PATTERN or length:CHARACTERS: --llm.reward NAME"
        )
