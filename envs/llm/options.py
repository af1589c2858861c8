"""The options of the language-model adapter. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from envs.llm.rewards.names import reward_names
from ppo_unified.config.schema import PPO, Checkpoint, Optim, RunConfig, Section
from ppo_unified.config.values import Auto, AutoFloat, AutoInt, OrAuto, Verbatim
from ppo_unified.errors import UsageError

TINY = "tiny"  # the built-in model
FETCHED = ("smollm2",)  # models that `ppo-unified fetch` downloads
TASKS = ("arithmetic", "sentiment", "openings")  # built-in prompts and rewards
REASONING = "reasoning-gym"  # name of the reward, and of the source of prompts


class RewardChoice(NamedTuple):
    """One of a run's rewards."""

    source: str  # a function, a built-in reward or a reward model, as in llm.reward
    weight: float
    name: str  # the last part of its metrics, such as reward/NAME


class LLM(Section):
    """The options in the [llm] section."""

    model: str = Field(
        "",
        description="folder or hub id of a causal language model, 'tiny' (built-in, no download), or 'smollm2' (after "
        "ppo-unified fetch smollm2)",
    )
    prompts: str = Field(
        "",
        description="file of prompts (.jsonl, .json, .csv, .parquet or .txt), a folder or hub data set "
        "(ORG/NAME[/CONFIG][:SPLIT]), reasoning-gym:TASK[,KEY=VALUE...], or a built-in task (arithmetic, sentiment or "
        "openings); required unless llm.model is 'tiny', for which sentiment is the default",
    )
    eval_prompts: str = Field(
        "",
        description="source of held-out prompts, specified like llm.prompts; if not set, every 10th prompt is held "
        "out, provided that there are at least 100",
    )
    prompt_key: str = Field(
        "",
        description="key of the prompt in each record; if not set, the first of prompt, query, question and messages "
        "that is present",
    )
    chat_template: bool = Field(
        False, description="apply the model's chat template to plain-text prompts; lists of messages always use it"
    )
    reward: Annotated[list[str], Verbatim()] = Field(
        [],
        description="one or more rewards, each a module:function, a reward model (folder or hub id), exact, numeric, "
        "math, regex:PATTERN, length:N (in characters), reasoning-gym, vader, arithmetic, sentiment or sentiment-gold; "
        "required unless llm.prompts is a task of reasoning-gym, which has its own reward, or llm.model is 'tiny', for "
        "which sentiment is the default",
    )
    reward_weights: list[float] = Field(
        [],
        description="one weight for each reward in llm.reward, whose weighted sum is the score; a reward with weight "
        "0 is only logged; if not set, all weights are 1",
    )
    long_prompts: Literal["refuse", "skip", "cut"] = Field(
        "refuse",
        description="what to do with a prompt that is too long for the model's context: refuse to start the run, skip "
        "the prompt, or cut off its start",
    )
    max_new_tokens: int = Field(64, ge=1, description="maximum number of tokens in a response")
    min_new_tokens: int = Field(
        0, ge=0, description="number of tokens at the start of a response that cannot be end tokens"
    )
    stop: list[str] = Field(
        [], description="strings that end a response; the reward function gets the text before the first of them"
    )
    drop_truncated: bool = Field(
        False,
        description="exclude from the loss all responses that reach llm.max_new_tokens without an end token or stop "
        "string",
    )
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; log-probs are computed at the same temperature"
    )
    rollout_batch: Annotated[int, OrAuto(AutoInt(64))] = Field(
        AutoInt(64),
        ge=1,
        description="number of responses per iteration; auto = 64, but 32 for a model with at least 50 million weights "
        "on a CPU",
    )
    group_size: int = Field(1, ge=1, description="number of responses to each prompt")
    critic: Literal["independent", "shared"] = Field(
        "independent",
        description="a separate model as critic (independent), or a value head on the policy's hidden states (shared)",
    )
    critic_init: str = Field(
        "policy",
        description="model whose weights initialize an independent critic: policy, reward (the reward model), or a "
        "folder or hub id",
    )
    baseline: Literal["critic", "rloo", "grpo"] = Field(
        "critic",
        description="baseline for the advantages: critic = V, rloo = mean score of the other responses to the prompt, "
        "grpo = mean score of all responses to the prompt",
    )
    reference: Literal["auto", "copy", "lora-off"] = Field(
        "auto",
        description="reference model: a frozen copy, or the policy with LoRA turned off; "
        "auto = lora-off if LoRA is used, otherwise copy",
    )
    reference_dtype: Literal["same", "float32", "bfloat16"] = Field(
        "same", description="precision of the reference copy's weights; same = llm.dtype"
    )
    reference_device: Literal["same", "cpu"] = Field(
        "same", description="device of the reference copy; same = the policy's device"
    )
    kl: Literal["k1", "abs", "k2", "k3", "full"] = Field(
        "k1", description="KL estimator used in the reward; k1, k2, k3 and full are always logged"
    )
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL penalty at every token; 0 = off")
    kl_target: float = Field(
        0.0, ge=0, description="adapt llm.kl_coef to keep the KL per response near this value; 0 = do not adapt it"
    )
    kl_horizon: int = Field(
        10_000,
        ge=1,
        description="time scale for adapting llm.kl_coef, in responses; larger = slower",
    )
    score_clip: float = Field(0.0, ge=0, description="clip scores to [-score_clip, score_clip]; 0 = do not clip")
    score_normalize: Literal["none", "reference", "running"] = Field(
        "none",
        description="normalize scores with the mean and standard deviation of the reference model's scores (reference) "
        "or of all scores so far (running)",
    )
    whiten_rewards: bool = Field(
        False, description="scale the rewards of each rollout to variance 1 without changing their mean"
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="amount subtracted from the score of a response without an end token or stop string"
    )
    lora_rank: Annotated[int, OrAuto(AutoInt(0))] = Field(
        AutoInt(0),
        ge=0,
        description="rank of the trained LoRA weights; 0 = train all weights; auto = 16 for a model with at least 50 "
        "million weights, otherwise 0",
    )
    lora_alpha: int = Field(16, gt=0, description="multiply the output of the LoRA weights by lora_alpha / lora_rank")
    lora_targets: list[str] = Field(
        [], description="names of the layers that get LoRA weights; if not set, all linear layers that LoRA can train"
    )
    quantize: Literal["none", "4bit"] = Field(
        "none", description="quantization of the frozen base model; 4bit requires a GPU"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of matrix products and frozen weights; trained weights stay float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which takes longer but needs less memory"
    )
    ptx_data: str = Field(
        "",
        description="texts for InstructGPT's pretraining loss: a .txt file with one text per line, or another file or "
        "data set with the key text",
    )
    ptx_coef: float = Field(0.0, ge=0, description="weight of InstructGPT's pretraining loss; 0 = off")
    ptx_batch: int = Field(8, ge=1, description="number of pretraining texts per optimizer step")

    @property
    def prompts_name(self) -> str:
        """The source of the prompts. The default for the tiny model is `sentiment`."""
        return self.prompts or ("sentiment" if self.model == TINY else "")

    @property
    def rewards(self) -> list[RewardChoice]:
        """The rewards with their weights and names.

        A task of reasoning-gym has its own reward as default; otherwise, the default for the tiny model is `sentiment`.
        """
        if not self.reward and self.prompts.startswith(f"{REASONING}:"):
            sources = [REASONING]
        else:
            sources = self.reward or (["sentiment"] if self.model == TINY else [])
        weights = self.reward_weights or [1.0] * len(sources)
        return [RewardChoice(*x) for x in zip(sources, weights, reward_names(sources), strict=True)]

    @field_validator("reward", mode="before")
    @classmethod
    def _accept_one_reward(cls, value: object) -> object:
        return [value] if value and isinstance(value, str) else value or []

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        count, weights = len(self.reward) or 1, self.reward_weights
        if weights and len(weights) != count:
            raise ValueError(
                f"llm.reward_weights: expected {count} number{'s' * (count != 1)}, one for each reward in llm.reward = "
                f"{self.reward}, got {weights}; set both options"
            )
        if weights and not any(weights):
            raise ValueError(f"llm.reward_weights = {weights}: at least one weight must not be 0")
        return self


def _description(section: type[Section], option: str) -> str | None:
    return section.model_fields[option].description


class TokenPPO(PPO):
    """PPO's options, with defaults that are common for language models (arXiv:1909.08593, arXiv:2203.02155)."""

    epochs: int = Field(4, ge=1, description=_description(PPO, "epochs"))
    microbatch_columns: Annotated[int, OrAuto(AutoInt(8192))] = Field(
        AutoInt(8192),
        ge=1,
        description=f"{_description(PPO, 'microbatch_columns')}; auto = the largest power of two from 256 to "
        "8192 (on a GPU: 65536) with which the run needs at most 70 % of the available memory",
    )
    gamma: float = Field(1.0, ge=0, le=1, description=_description(PPO, "gamma"))
    normalize_advantages: Literal["batch", "minibatch", "none"] = Field(
        "batch", description=_description(PPO, "normalize_advantages")
    )
    value_clip: float = Field(0.2, ge=0, description=_description(PPO, "value_clip"))
    value_coef: float = Field(0.1, ge=0, description=_description(PPO, "value_coef"))


class TokenOptim(Optim):
    """Adam's options, with defaults for pretrained models."""

    lr: Annotated[float, OrAuto(AutoFloat(1e-5))] = Field(
        AutoFloat(1e-5),
        gt=0,
        le=1,
        description=f"{_description(Optim, 'lr')}; auto = chosen from the number of weights, higher for LoRA",
    )
    max_grad_norm: float = Field(1.0, ge=0, description=_description(Optim, "max_grad_norm"))


class TokenCheckpoint(Checkpoint):
    """Checkpoint options, with a longer default interval because saving a large model takes longer."""

    every_s: float = Field(300.0, gt=0, description=_description(Checkpoint, "every_s"))


class LLMConfig(RunConfig):
    """The options of a run that trains a language model."""

    kind: Literal["llm"] = Field("llm", description="name of the adapter")
    threads: Annotated[int, OrAuto(AutoInt(0))] = Field(
        AutoInt(0),
        ge=0,
        le=256,
        description="number of CPU threads for PyTorch; auto or 0 = chosen from the number of weights: 1 for up to 16 "
        "million, at most 16",
    )
    llm: LLM = LLM()
    ppo: TokenPPO = TokenPPO()
    optim: TokenOptim = TokenOptim()
    checkpoint: TokenCheckpoint = TokenCheckpoint()

    unsupported: ClassVar[dict[str, str]] = {
        "llm.proxy_of": "add the reward to llm.reward and give it the weight 0 in llm.reward_weights, for example "
        "--llm.reward REWARD TRUE_REWARD --llm.reward-weights 1 0"
    } | {
        f"llm.{name}": f"{name} changes the distribution that responses are sampled from, but log-probs, ratio and KL "
        "are computed from the original one, so training would be biased; use llm.temperature instead"
        for name in ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    }

    @classmethod
    def convert_stored(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace llm.proxy_of, which older versions had, by a second reward with weight 0."""
        llm = table.get("llm")
        if not isinstance(llm, Mapping) or not isinstance(llm.get("proxy_of"), str):
            return table
        kept = {key: value for key, value in llm.items() if key != "proxy_of"}
        if true := llm["proxy_of"]:
            kept |= {"reward": [llm.get("reward") or "sentiment", true], "reward_weights": [1.0, 0.0]}
        return {**table, "llm": kept}

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        yield from super().ignored_options()
        llm = self.llm
        critic_free = llm.baseline != "critic"
        for name in ("llm.critic", "llm.critic_init", "ppo.critic_warmup", "ppo.value_target"):
            yield name, critic_free, f"llm.baseline = {llm.baseline!r}"
        yield "ppo.value_clip", critic_free and self.ppo.value_clip > 0, f"llm.baseline = {llm.baseline!r}"
        yield "llm.kl_target", not llm.kl_coef, "llm.kl_coef = 0"
        yield "llm.missing_eos_penalty", llm.drop_truncated, "llm.drop_truncated = true"
        named = llm.prompts_name in TASKS or llm.prompts_name.startswith(f"{REASONING}:")
        yield "llm.prompt_key", named, f"llm.prompts = {llm.prompts_name!r}"
        yield "llm.critic_init", llm.critic == "shared", "llm.critic = 'shared'"
        yield "llm.kl_horizon", not llm.kl_target, "llm.kl_target = 0"
        for name in ("llm.lora_alpha", "llm.lora_targets", "llm.quantize"):
            yield name, llm.lora_rank == 0, "llm.lora_rank = 0"
        for name in ("llm.reference_dtype", "llm.reference_device"):
            yield name, self.reference == "lora-off", "llm.reference = 'lora-off'"
        yield "llm.ptx_data", not llm.ptx_coef, "llm.ptx_coef = 0"
        yield "llm.ptx_coef", not llm.ptx_data and llm.model not in ("", TINY), "llm.ptx_data is not set"
        yield "llm.ptx_batch", not llm.ptx_coef, "llm.ptx_coef = 0"

    def network_options(self) -> dict[str, Any]:
        llm = self.llm
        options: dict[str, Any] = {"llm.lora_rank": llm.lora_rank, "llm.baseline": llm.baseline == "critic"}
        if llm.lora_rank:
            options |= {"llm.lora_alpha": llm.lora_alpha, "llm.lora_targets": sorted(llm.lora_targets)}
        return options | ({"llm.critic": llm.critic} if llm.baseline == "critic" else {})

    @property
    def reference(self) -> Literal["copy", "lora-off"]:
        """The kind of reference model. If the option is 'auto', this is the kind that 'auto' selects."""
        if self.llm.reference != "auto":
            return self.llm.reference
        return "lora-off" if self.llm.lora_rank else "copy"

    @property
    def watched_scores(self) -> Sequence[str]:
        return [f"reward/{reward.name}" for reward in self.llm.rewards if not reward.weight]

    @property
    def ratio_tolerance(self) -> float:
        """The allowed first-ratio error, larger for bfloat16 because its rounding depends on the batch shape."""
        return 1e-2 if self.llm.dtype == "float32" else 0.2

    @property
    def sampler_tolerances(self) -> tuple[float, float]:
        """The allowed largest and mean sampler error. A temperature below 1 magnifies the rounding of logits.

        In bfloat16, rounding alone causes errors of 0.26 and 0.044 for SmolLM2-135M with LoRA.
        """
        largest, mean = (1e-4, 1e-5) if self.llm.dtype == "float32" else (1.0, 0.1)
        return largest / min(1.0, self.llm.temperature), mean / min(1.0, self.llm.temperature)

    @model_validator(mode="after")
    def _check_llm_options(self) -> Self:
        llm = self.llm
        if llm.reference == "lora-off" and llm.lora_rank == 0:
            raise ValueError("llm.reference = 'lora-off' requires LoRA; set llm.lora_rank above 0 or use 'copy'")
        if llm.quantize != "none" and self.reference == "copy" and not isinstance(llm.lora_rank, Auto):
            raise ValueError("llm.quantize = '4bit' requires llm.reference = 'lora-off', got 'copy'")
        if llm.critic == "shared" and llm.baseline == "critic" and not self.optim.joint:
            raise ValueError(
                "llm.critic = 'shared' requires optim.joint = true, because two optimizers cannot share a trunk"
            )
        if not isinstance(llm.rollout_batch, Auto):
            self._check_batch()
        if llm.min_new_tokens > llm.max_new_tokens:
            raise ValueError(
                f"llm.min_new_tokens = {llm.min_new_tokens} is greater than llm.max_new_tokens = {llm.max_new_tokens}"
            )
        if "" in llm.stop:
            raise ValueError("llm.stop: expected strings that are not empty, got ''")
        if llm.baseline != "critic":
            self._check_critic_free()
        return self

    def _check_batch(self) -> None:
        llm = self.llm
        if llm.rollout_batch % llm.group_size:
            raise ValueError(
                f"llm.rollout_batch = {llm.rollout_batch} is not a multiple of llm.group_size = {llm.group_size}"
            )
        if self.ppo.minibatches > llm.rollout_batch:
            raise ValueError(
                f"ppo.minibatches = {self.ppo.minibatches} is greater than llm.rollout_batch = {llm.rollout_batch}"
            )

    def _check_critic_free(self) -> None:
        """Raises ValueError for options that cannot be combined with a baseline that is the same at every token."""
        llm, ppo = self.llm, self.ppo
        wanted = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none", "advantage": "gae"}
        wrong = [f"ppo.{name} = {value!r}" for name, value in wanted.items() if getattr(ppo, name) != value]
        wrong += ["optim.joint = true"] if not self.optim.joint else []
        wrong += ["llm.whiten_rewards = false"] if llm.whiten_rewards else []
        wrong += ["llm.group_size >= 2"] if llm.group_size < 2 else []
        if wrong:
            fix = "set them" if self.recipe == llm.baseline else f"set them, or use --recipe {llm.baseline}"
            raise ValueError(f"llm.baseline = {llm.baseline!r} requires {', '.join(wrong)}; {fix}")


def from_target(word: str) -> dict[str, Any] | None:
    """Return {} for the target 'llm', which has no preset options, or None for any other target."""
    return {} if word == "llm" else None


def check_required(config: LLMConfig) -> None:
    """Raises UsageError if the model, the prompts or the reward is missing."""
    llm = config.llm
    if not llm.model:
        raise UsageError("llm.model is required: use a folder, a hub id or 'tiny', e.g. --llm.model tiny")
    if not llm.prompts_name:
        raise UsageError(
            "llm.prompts is required: use a .jsonl, .json, .csv, .parquet or .txt file, a data set or "
            "reasoning-gym:TASK, e.g. --llm.prompts FILE"
        )
    if not llm.rewards:
        raise UsageError(
            "llm.reward is required: use module:function, a reward model, exact, numeric, math, regex:PATTERN or "
            "length:N, e.g. --llm.reward length:100"
        )
