"""Estimates the memory, disk space and time of a run before its first iteration.

`measure_costs` runs the real networks on a few rows of the run's largest length. `memory_parts` and `time_parts`
compute from these costs what an iteration with any options needs. Memory grows linearly with the number of rows and
with the number of logits that exist at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from envs.categorical import logprobs_and_entropy
from envs.llm.adapter import LLMAdapter
from envs.llm.evaluation import SHOWN
from envs.llm.generate import ROOM, choose_tokens, make_decoder
from envs.llm.memory import available_bytes, measure_memory, process_bytes
from envs.llm.model import POLICY, Network
from envs.llm.options import LLMConfig
from envs.llm.policy import NOT_CHOSEN, chunk_size, logprobs_and_kl, make_observations
from envs.llm.rewards.reward_model import BATCH_COLUMNS, RewardModel, encode
from envs.llm.savings import suggest
from envs.llm.sizes import Sizes, find_sizes, trained_bytes, weight_bytes
from ppo_unified.config.estimate import Estimate
from ppo_unified.config.values import Auto
from ppo_unified.engine.batch import pack_rows
from ppo_unified.engine.optimizers import Adam, step

SHARE = 0.7  # of the available memory that ppo.microbatch_columns = "auto" may use
FRAGMENTATION = 0.2  # share of tensors that the allocator needs in addition, as measured in benchmarks/estimate.md
SMALLEST, LARGEST = 256, {"cpu": 8192, "cuda": 65536}  # values that "auto" can choose
TIMED_S, TIMED_COLUMNS = 0.05, 256  # a pass is timed with at least this many columns, and more until it takes so long
STEPS = 4  # number of tokens per response that are sampled to measure the time per token
ADAM_WEIGHTS = 1 << 20  # number of weights with which an optimizer step is timed

T = TypeVar("T")


@dataclass(frozen=True)
class Memory:
    """Bytes that a pass needs: fixed + per_row * rows + per_step * steps, where steps have logits at the same time."""

    fixed: float
    per_row: float
    per_step: float

    def at(self, rows: int, steps: int) -> tuple[float, float]:
        """Return the bytes of activations and of logits."""
        return self.fixed + self.per_row * rows, self.per_step * steps


@dataclass(frozen=True)
class Costs:
    """The measured memory in bytes. Rows have the largest length of the run."""

    program: float  # this process without weights
    update: Memory  # a forward and a backward pass
    compare: Memory
    score: float  # of the reward models, per row
    prompt: Memory  # the first step of decoding
    cache: float  # the KV cache of a complete row
    states: float  # the hidden states between all layers of a row, which gradient checkpointing keeps
    layers: int  # number of layers that gradient checkpointing can recompute, or 0

    def change(self, measured: LLMConfig, wanted: LLMConfig) -> Costs:
        """Return the costs with the options `wanted`, given that `self` was measured with the options `measured`."""
        row = self.update.per_row * _passes(wanted) / _passes(measured)
        if wanted.llm.gradient_checkpointing and not measured.llm.gradient_checkpointing and self.layers:
            row = row / self.layers + self.states * _passes(wanted)
        return replace(self, update=replace(self.update, per_row=row))


def _passes(config: LLMConfig) -> int:
    """Return how many networks, or sets of LoRA weights, process each row in an update."""
    return 2 if config.llm.baseline == "critic" and config.llm.critic == "independent" else 1


@dataclass(frozen=True)
class Seconds:
    """The measured times in seconds. Rows have the largest length of the run."""

    update: float  # per row
    compare: float  # per row
    score: float  # per row, of the reward models
    prompt: float  # per row
    token: float  # one token in all rows of an iteration
    step: float  # an optimizer step


@dataclass(frozen=True)
class Batches:
    """The numbers of rows that an iteration processes together, for prompts of the run's lengths."""

    longest: int  # columns of the longest row: a prompt and a full response, without its last token
    rows: int
    new: int  # tokens per response
    update: int  # rows of the largest micro-batch of an update
    is_single: bool  # True if every minibatch has only one micro-batch
    compare: int  # rows of the largest micro-batch of a comparison
    padded: float  # columns of an iteration with padding, in rows of the longest length

    @classmethod
    def plan(cls, config: LLMConfig, prompts: Sequence[int]) -> Batches:
        """Divide an iteration's responses. `prompts` contains the lengths of the training prompts in tokens."""
        llm, ppo = config.llm, config.ppo
        lengths = [
            n + llm.max_new_tokens - 1
            for n in spread(sorted(prompts, reverse=True), llm.rollout_batch // llm.group_size)
        ]
        lengths = [n for n in lengths for _ in range(llm.group_size)]
        longest, columns = lengths[0], ppo.microbatch_columns
        most = max(1, columns // longest)
        minibatch = -(-len(lengths) // min(ppo.minibatches, len(lengths)))
        packed = list(pack_rows(torch.tensor(lengths), columns))
        return cls(
            longest=longest,
            rows=len(lengths),
            new=llm.max_new_tokens,
            update=min(most, minibatch),
            is_single=most >= minibatch and not llm.ptx_coef,
            compare=min(most, len(lengths)),
            padded=sum(len(rows) * width for rows, width in packed) / longest,
        )


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return `count` of the values at evenly distributed positions, starting with the first one."""
    return [values[i * len(values) // count] for i in range(count)]


def memory_parts(
    config: LLMConfig, batches: Batches, sizes: Sizes, costs: Costs, chunk: int, on_gpu: bool = False
) -> dict[str, float]:
    """Return the bytes of each part at the peak of an iteration.

    `chunk` is the number of steps whose logits are in memory at a time. With `on_gpu`, only the GPU's memory counts.
    """
    trained = trained_bytes(config, sizes)
    held = {"program": costs.program, "weights": weight_bytes(config, sizes, on_gpu), "Adam": 2 * trained}
    update = costs.update.at(batches.update, min(batches.update * batches.new, chunk))
    compare = costs.compare.at(batches.compare, min(batches.compare * batches.new, chunk))
    prompt = costs.prompt.at(batches.rows, batches.rows)
    phases = [
        {"activations": prompt[0], "logits": prompt[1]},
        {"KV cache": costs.cache * batches.rows, "logits": prompt[1]},
        {"activations": costs.score * min(batches.rows, max(1, BATCH_COLUMNS // batches.longest))},
        {"activations": compare[0], "logits": compare[1]},
    ]
    phases = [{"gradients": trained} | phase for phase in phases]  # they exist until the next update
    update_parts = {"activations": update[0], "logits": update[1]}
    # the backward pass of the first micro-batch creates the gradients, and frees the activations at the same time
    phases.append(update_parts if batches.is_single else {"gradients": trained} | update_parts)
    largest = max(phases, key=lambda phase: sum(phase.values()))
    return held | largest | {"allocator": FRAGMENTATION * (held["Adam"] + sum(largest.values()))}


class Probe:
    """Runs the networks of an adapter on text of its prompts, without changing its state."""

    def __init__(self, adapter: LLMAdapter) -> None:
        self.adapter, self.device = adapter, adapter.device
        llm, self.policy = adapter.config.llm, adapter.policy
        self.prompts = sorted(map(list, adapter.prompts.tokens), key=len, reverse=True)
        self.longest_prompt, self.text = self.prompts[0], max(adapter.prompts.texts, key=len)
        self.new = llm.max_new_tokens
        self.row = self._fill(self.longest_prompt, len(self.longest_prompt) + self.new)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def _fill(self, prompt: list[int], length: int) -> list[int]:
        """Repeat a prompt up to a length, because a token that follows itself would be unusual for the model."""
        return (prompt * -(-length // len(prompt)))[:length]

    def update(self, rows: int, steps: int | None = None) -> None:
        """Run a forward and a backward pass in which each row has `steps` steps. Free each gradient at once."""
        tokens, chosen = self._rows(rows, steps)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in trained]
        try:
            obs = make_observations(tokens[:, :-1], chosen, self.adapter.config.llm.min_new_tokens)
            new = self.policy.evaluate(obs, torch.where(chosen, tokens[:, 1:], NOT_CHOSEN))
            loss = new.logprobs.sum() + new.values.sum()
            (loss + new.entropy.sum() if self.policy.entropy_gradient else loss).backward()
        finally:
            for hook in hooks:
                hook.remove()

    def compare(self, rows: int, steps: int | None = None) -> None:
        tokens, chosen = self._rows(rows, steps)
        self.policy.compare(tokens[:, :-1], chosen, tokens[:, 1:], self.adapter.reference)

    def update_logits(self, steps: int) -> None:
        """Compute log-probs from hidden states, and their gradients without those of the weights."""
        network, gradient = self.policy.network, self.policy.entropy_gradient
        hidden = torch.zeros(steps, network.width, device=self.device, requires_grad=True)
        actions = torch.zeros(steps, dtype=torch.long, device=self.device)
        logprobs, entropy = logprobs_and_entropy(network.logits(hidden), actions, gradient)
        torch.autograd.grad((logprobs + entropy if gradient else logprobs).sum(), hidden)

    @torch.no_grad()
    def compare_logits(self, steps: int) -> None:
        hidden = torch.zeros(steps, self.policy.network.width, device=self.device)
        actions = torch.zeros(steps, dtype=torch.long, device=self.device)
        reference, lora = self.adapter.reference
        theirs = reference.logits(hidden.to(reference.device), lora).to(self.device)
        logprobs_and_kl(self.policy.network.logits(hidden), theirs, actions)

    def _rows(self, rows: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return tokens [rows, L + 1] and the mask [rows, L] of the last `steps` columns."""
        tokens = torch.tensor([self.row] * rows, device=self.device)
        columns = torch.arange(len(self.row) - 1, device=self.device)
        return tokens, (columns >= len(self.row) - 1 - (steps or self.new)).expand(rows, -1)

    @torch.no_grad()
    def prompt(self, rows: int, extra: int = 0) -> Any:
        """Run the network on the longest prompt with `extra` tokens, sample a token, and return the decoder."""
        self.policy.network.use_lora(POLICY)
        ids = self._fill(self.longest_prompt, len(self.longest_prompt) + extra)
        decoder = make_decoder(self.policy.network, [[*ids[:-1], row] for row in range(rows)])  # reads equal rows once
        choose_tokens(decoder.logits, self.generator)
        return decoder

    @torch.no_grad()
    def tokens_s(self, rows: int) -> tuple[float, float]:
        """Return the seconds for the prompts of `rows` rows, and for one token in each row at half of its length."""
        self.policy.network.use_lora(POLICY)
        half, size = self.new // 2, self.adapter.config.llm.group_size
        chosen = [ids for ids in spread(self.prompts, rows // size) for _ in range(size)]
        started = time.perf_counter()
        decoder = make_decoder(self.policy.network, [self._fill(ids, len(ids) + half) for ids in chosen])
        prompt_s, times = time.perf_counter() - started, list[float]()
        for _ in range(STEPS):
            started = time.perf_counter()
            token, _logprobs = choose_tokens(decoder.logits, self.generator)
            decoder.step(token)
            times.append(time.perf_counter() - started)
        share = sum(map(len, chosen)) / (sum(map(len, chosen)) + half * rows)
        return prompt_s * share, sorted(times)[len(times) // 2]

    def score(self, rows: int) -> None:
        """Run the reward models on `rows` rows. Reward functions may have side effects, so they are not called."""
        for reward in self.adapter.rewards.functions:
            if isinstance(reward, RewardModel):
                text = encode(reward.tokenizer, self.text) or [0]
                reward.score_tokens([self._fill(text, min(len(self.row), reward.longest))] * rows)

    def optimizer_s(self) -> float:
        """Return the seconds of an optimizer step."""
        config, sizes = self.adapter.config, [p.numel() for p in self.policy.parameters() if p.requires_grad]
        count = min(sum(sizes), ADAM_WEIGHTS)
        parameter = nn.Parameter(torch.zeros(count, device=self.device))
        parameter.grad = torch.zeros_like(parameter)
        optimizers = [Adam([parameter], lr=config.optim.lr)]
        step(optimizers, config.optim)
        return timed(lambda: step(optimizers, config.optim), self.device) * sum(sizes) / count


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def measure_costs(probe: Probe, sizes: Sizes) -> Costs:
    """Measure the memory that a run with the adapter's own options needs."""
    config, device, network = probe.adapter.config, probe.device, probe.policy.network
    update = _measure_pass(probe.update, _per_step(probe.update_logits, device), device)
    compare = _measure_pass(probe.compare, _per_step(probe.compare_logits, device), device)
    first, second = (measure_memory(partial(probe.prompt, rows), device) for rows in (1, 2))
    longer = measure_memory(partial(probe.prompt, 1, ROOM), device)
    column = max(0.0, longer.kept - first.kept) / ROOM
    layers = sum(isinstance(module, GradientCheckpointingLayer) for module in network.modules())
    return Costs(
        program=find_program_bytes(config, device, sizes),
        update=update,
        compare=compare,
        score=measure_memory(partial(probe.score, 2), device).peak / 2,
        prompt=Memory(max(0, 2 * first.peak - second.peak), second.peak - first.peak, 0.0),
        cache=first.kept + column * (probe.new + ROOM),
        states=4.0 * layers * network.width * len(probe.row),
        layers=layers,
    )


def find_program_bytes(config: LLMConfig, device: torch.device, sizes: Sizes) -> float:
    """Return the memory of this process without weights. It includes freed memory that the allocator has kept."""
    if device.type == "cuda":
        return 0.0
    return max(0.0, process_bytes(device) - weight_bytes(config, sizes))


def _measure_pass(run: Callable[[int, int], object], per_step: float, device: torch.device) -> Memory:
    """Measure a pass with one row and with two rows. `per_step` is the memory of the logits of a step.

    Each row has only one step, so that the activations need more memory than the logits. Both are then at their peak
    when the gradients of the head's weights are computed.
    """
    one, two = (measure_memory(partial(run, rows, 1), device).peak for rows in (1, 2))
    per_row = max(0.0, two - one - per_step)
    return Memory(max(0.0, one - per_row - per_step), per_row, per_step)


def _per_step(run: Callable[[int], object], device: torch.device) -> float:
    """Return the memory of the logits of one step, and of everything that is computed from them."""
    few, more = (measure_memory(partial(run, steps), device).peak for steps in (2, 6))
    return (more - few) / 4


def measure_seconds(probe: Probe, batches: Batches) -> Seconds:
    prompt, token = probe.tokens_s(batches.rows)
    has_reward_model = any(isinstance(reward, RewardModel) for reward in probe.adapter.rewards.functions)
    return Seconds(
        update=_row_seconds(probe.update, batches.update, probe),
        compare=_row_seconds(probe.compare, batches.compare, probe),
        score=_row_seconds(probe.score, batches.rows, probe) if has_reward_model else 0.0,
        prompt=prompt / batches.rows,
        token=token,
        step=probe.optimizer_s(),
    )


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _row_seconds(run: Callable[[int], object], most: int, probe: Probe) -> float:
    """Return the seconds per row, for at most `most` rows. Increase their number until they take TIMED_S."""
    rows = min(most, -(-TIMED_COLUMNS // len(probe.row)))  # with fewer columns, each of them would take longer
    while (seconds := timed(partial(run, rows), probe.device)) < TIMED_S and rows < most:
        rows = min(most, 4 * rows)
    return seconds / rows


def time_parts(config: LLMConfig, batches: Batches, seconds: Seconds) -> dict[str, float]:
    """Return the seconds of each phase of an iteration in which all responses have their full length."""
    ppo, llm = config.ppo, config.llm
    steps = ppo.epochs * min(ppo.minibatches, batches.rows)
    ptx = steps * llm.ptx_batch * seconds.update if llm.ptx_coef else 0.0
    return {
        "generate": seconds.prompt * batches.rows + seconds.token * batches.new,
        "score": seconds.score * batches.rows,
        "compare": seconds.compare * batches.padded,
        "update": seconds.update * batches.padded * ppo.epochs + seconds.step * steps + ptx,
    }


def estimate(adapter: LLMAdapter) -> Estimate:
    """Measure what a run needs. If ppo.microbatch_columns is 'auto', choose its value and set it in the adapter."""
    config, device, chunk = adapter.config, adapter.device, chunk_size(adapter.policy.network)
    available, sizes, on_gpu = available_bytes(adapter.device), find_sizes(adapter.config), device.type == "cuda"
    with _restore_state(adapter):
        probe = Probe(adapter)
        lengths, costs = list(map(len, probe.prompts)), measure_costs(probe, sizes)

        def find_parts(changed: LLMConfig) -> dict[str, float]:
            batches = Batches.plan(changed, lengths)
            return memory_parts(changed, batches, sizes, costs.change(config, changed), chunk, on_gpu)

        def fits(changed: LLMConfig, share: float = 1.0) -> bool:
            return sum(find_parts(changed).values()) <= share * available

        chosen = _choose_columns(config, device, partial(fits, share=SHARE))
        config = adapter.config = config.replace(chosen)
        batches = Batches.plan(config, lengths)
        if not fits(config):
            advice = suggest(config, fits)
            return Estimate(memory=find_parts(config), available=available, options=chosen, advice=advice)
        seconds = time_parts(config, batches, measure_seconds(probe, batches))
    # after passes with as many rows as in training, the allocator has kept more memory
    program = {"program": find_program_bytes(config, device, sizes)}
    trained = trained_bytes(config, sizes)
    return Estimate(
        memory=find_parts(config) | program,
        available=available,
        checkpoint=3 * trained,
        seconds=seconds,
        evaluation_s=_evaluation_s(config, seconds, len(adapter.held_out.texts)),
        steps=batches.rows * batches.new,
        options=chosen,
        remark="all responses have their full length",
    )


def _choose_columns(config: LLMConfig, device: torch.device, fits: Callable[[LLMConfig], bool]) -> dict[str, int]:
    """Return the value of ppo.microbatch_columns if it is 'auto': the largest power of two with which the run fits."""
    if not isinstance(config.ppo.microbatch_columns, Auto):
        return {}
    option, columns = "ppo.microbatch_columns", LARGEST[device.type]
    while columns > SMALLEST and not fits(config.replace({option: columns})):
        columns //= 2
    return {option: columns}


def _evaluation_s(config: LLMConfig, seconds: dict[str, float], prompts: int) -> float:
    """Return the duration of an evaluation: greedy and sampled responses, and examples of the policy and reference."""
    episodes, rows = config.eval.episodes, config.llm.rollout_batch
    greedy, examples = min(episodes, prompts), min(SHOWN, prompts)
    responses, compared = greedy + episodes + 2 * examples, episodes + examples
    return ((seconds["generate"] + seconds["score"]) * responses + seconds["compare"] * compared) / rows


@contextmanager
def _restore_state(adapter: LLMAdapter) -> Iterator[None]:
    """Restore the active LoRA weights when the context exits. Everything else that a Probe uses is its own."""
    networks = {id(n): n for n in adapter.policy.modules() if isinstance(n, Network)}
    active = [(network, network.active_lora) for network in networks.values()]
    try:
        yield
    finally:
        for network, lora in active:
            network.use_lora(lora)
