"""Estimates the memory, disk space and time of a run before its first iteration.

`measure_costs` runs the real networks on a few rows of the run's largest length. `memory_parts` and `time_parts`
compute from these costs what an iteration with any options needs. Memory grows linearly with the number of columns and
with the number of logits that exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from envs.llm.adapter import LLMAdapter
from envs.llm.evaluation import SHOWN
from envs.llm.generate import ROOM
from envs.llm.memory import measure_growth, measure_memory, release_freed_memory
from envs.llm.options import LLMConfig
from envs.llm.policy import chunk_size
from envs.llm.probe import Probe, spread, time_call
from envs.llm.rewards.reward_model import BATCH_COLUMNS
from envs.llm.savings import SMALLEST_COLUMNS, suggest
from envs.llm.sizes import Sizes, trained_bytes, weight_bytes
from ppo_unified.config.devices import available_bytes, process_bytes
from ppo_unified.config.estimate import Estimate
from ppo_unified.config.values import Auto
from ppo_unified.engine.batch import pack_rows

SHARE = 0.7  # of the available memory that ppo.microbatch_columns = "auto" may use
FRAGMENTATION = 0.2  # memory for gaps between tensors, relative to the tensors; an update may leave larger gaps
LARGEST = {"cpu": 8192, "cuda": 65536}  # the largest number of columns that "auto" can choose
TIMED_S, TIMED_COLUMNS = 0.2, 256  # a pass is timed with at least this many columns, and more until it takes so long


@dataclass(frozen=True)
class Memory:
    """Bytes that a pass needs: fixed + per_column * columns + per_step * steps, where steps have logits together."""

    fixed: float
    per_column: float
    per_step: float

    def at(self, columns: float, steps: int) -> dict[str, float]:
        return {"activations": self.fixed + self.per_column * columns, "logits": self.per_step * steps}


@dataclass(frozen=True)
class Costs:
    """The measured memory in bytes."""

    program: float  # this process without weights
    update: Memory  # a forward and a backward pass
    growth: float  # by which an update without logits enlarges the process, including gaps, per column
    compare: Memory
    score: float  # of the reward models, per column
    prompt: Memory  # the first step of decoding
    sample: float  # to choose a token, per row
    state: float  # the part of a row's cache that does not grow with its length
    cache: float  # the part that grows, per column
    states: float  # the hidden states between all layers, which gradient checkpointing keeps, per column
    layers: int  # number of layers that gradient checkpointing can recompute, or 0

    def change(self, measured: LLMConfig, wanted: LLMConfig) -> Costs:
        """Return the costs with the options `wanted`, given that `self` was measured with the options `measured`.

        With gradient checkpointing, the process grows as much as without it: glibc cannot join the memory of the
        activations that a layer frees, because objects of the autograd graph that still exist lie between them.
        """
        ratio = _passes(wanted) / _passes(measured)
        column = self.update.per_column * ratio
        if wanted.llm.gradient_checkpointing and not measured.llm.gradient_checkpointing and self.layers:
            column = column / self.layers + self.states * _passes(wanted)
        return replace(self, update=replace(self.update, per_column=column), growth=self.growth * ratio)


def _passes(config: LLMConfig) -> int:
    """Return how many networks, or sets of LoRA weights, process each row in an update."""
    return 2 if config.llm.baseline == "critic" and config.llm.critic == "independent" else 1


@dataclass(frozen=True)
class Seconds:
    """The measured times in seconds."""

    update: float  # per column
    compare: float  # per column
    score: float  # per column, of the reward models
    prompt: float  # per column of different prompts
    token: float  # one token in all rows of an iteration
    step: float  # an optimizer step


@dataclass(frozen=True)
class Batch:
    """The rows that an iteration or an evaluation processes, if all responses have their full length."""

    prompts: int  # number of different prompts
    prompt: int  # columns of the longest prompt
    new: int  # tokens per response
    lengths: list[int]  # columns of each row, in descending order
    limit: int  # the maximum number of columns of a pass

    @classmethod
    def plan(cls, config: LLMConfig, prompts: Sequence[int], rows: int, copies: int = 1) -> Batch:
        """Return the batch with `rows` responses, `copies` to each prompt.

        `prompts` contains the lengths of all prompts in tokens.
        """
        chosen, new = spread(sorted(prompts, reverse=True), rows // copies), config.llm.max_new_tokens
        lengths = [length + new - 1 for length in chosen for _ in range(copies)]
        return cls(min(len(chosen), len(prompts)), chosen[0], new, lengths, config.ppo.microbatch_columns)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The columns of the longest row: a prompt and a full response, without its last token."""
        return self.prompt + self.new - 1

    @property
    def scored(self) -> int:
        """The largest number of columns that a reward model reads together."""
        return min(self.rows * self.longest, max(self.longest, BATCH_COLUMNS))

    def padded(self, rows: int) -> float:
        """Return the expected number of columns, including padding, of all passes over minibatches of `rows` rows."""
        packed = pack(spread(self.lengths, rows), self.limit)
        return sum(count * longest for count, longest in packed) * self.rows / rows

    def largest(self, rows: int, chunk: int) -> tuple[int, int]:
        """Return the largest possible number of columns, and of steps with logits, of a pass with at most `rows` rows.

        Minibatches are random, so the longest rows can be in the same pass. `chunk` is the largest number of steps
        whose logits are in memory at a time.
        """
        columns = min(rows * self.longest, max(self.longest, self.limit))
        return columns, min(min(rows, max(1, self.limit // self.lengths[-1])) * self.new, chunk)


def pack(lengths: Sequence[int], columns: int) -> list[tuple[int, int]]:
    """Return the number of rows and their largest length, for each micro-batch of rows with these lengths."""
    return [(len(rows), longest) for rows, longest in pack_rows(torch.tensor(lengths), columns)]


@dataclass(frozen=True)
class Batches:
    """The rows of a run that are in memory together."""

    training: Batch
    evaluation: Batch
    minibatch: int  # rows of a minibatch
    is_single: bool  # True if every minibatch has only one micro-batch
    texts: list[tuple[int, int]]  # the rows and columns of each part of the pretraining loss; [] without this loss

    @classmethod
    def plan(
        cls, config: LLMConfig, prompts: Sequence[int], held_out: Sequence[int], texts: Sequence[int] = ()
    ) -> Batches:
        """Divide an iteration's rows. The arguments are lengths in tokens: of prompts, and of pretraining texts."""
        llm, ppo = config.llm, config.ppo
        training = Batch.plan(config, prompts, llm.rollout_batch, llm.group_size)
        minibatch = -(-training.rows // min(ppo.minibatches, training.rows))
        # Dividing saves the most columns if all rows but one have the shortest prompt and a response of one token. Such
        # a row has as many columns as its prompt, because the last token has none.
        uneven = [training.longest] + [min(prompts)] * (minibatch - 1)
        return cls(
            training=training,
            evaluation=Batch.plan(config, held_out, min(llm.rollout_batch, max(config.eval.episodes, SHOWN))),
            minibatch=minibatch,
            is_single=not texts and len(pack(uneven, ppo.microbatch_columns)) == 1,
            texts=pack(spread(sorted(texts, reverse=True), llm.ptx_batch), ppo.microbatch_columns) if texts else [],
        )


def memory_parts(
    config: LLMConfig, batches: Batches, sizes: Sizes, costs: Costs, chunk: int, on_gpu: bool = False
) -> dict[str, float]:
    """Return the bytes of each part at the peak of an iteration or an evaluation.

    `chunk` is the number of steps whose logits are in memory at a time. With `on_gpu`, only the GPU's memory counts.
    """
    trained = trained_bytes(config, sizes)
    held = {"program": costs.program, "weights": weight_bytes(config, sizes, on_gpu), "Adam": 2 * trained}
    phases = [phase for batch in (batches.training, batches.evaluation) for phase in _sampling(batch, costs, chunk)]
    for rows, columns in batches.texts:  # every column has logits, and only the policy reads the texts
        phases.append(costs.update.at(rows * columns / _passes(config), min(rows * columns, chunk)))
    columns, steps = batches.training.largest(batches.minibatch, chunk)
    update = costs.update.at(columns, steps)
    update["allocator"] = max(0.0, costs.growth * columns - update["activations"])
    phases += [] if batches.is_single else [update]
    phases = [{"gradients": trained} | phase for phase in phases]  # they exist until the next update
    # the backward pass of the first micro-batch creates the gradients, and frees the activations at the same time
    phases += [update] if batches.is_single else []
    phases = [phase | {"allocator": _gaps(held["Adam"], phase)} for phase in phases]
    return held | max(phases, key=lambda phase: sum(phase.values()))


def _gaps(adam: float, phase: dict[str, float]) -> float:
    """Return the memory for gaps between tensors: the usual share of them. For activations, it is what was measured if
    this is more."""
    activations, measured = phase.get("activations", 0.0), phase.get("allocator", 0.0)
    others = adam + sum(phase.values()) - activations - measured
    return max(measured, FRAGMENTATION * activations) + FRAGMENTATION * others


def _sampling(batch: Batch, costs: Costs, chunk: int) -> list[dict[str, float]]:
    """Return the bytes of each part while responses are generated, scored and compared with the reference."""
    cache = batch.rows * (costs.state + costs.cache * (batch.prompt + batch.new + ROOM))
    return [
        costs.prompt.at(batch.prompts * batch.prompt, 0),
        {"KV cache": cache, "logits": costs.sample * batch.rows},
        {"activations": costs.score * batch.scored},
        costs.compare.at(*batch.largest(batch.rows, chunk)),
    ]


def measure_costs(probe: Probe, sizes: Sizes) -> Costs:
    """Measure the memory that a run with the adapter's own options needs."""
    config, device, network = probe.adapter.config, probe.device, probe.network
    prompt, extra = len(probe.prompts[0]), min(ROOM, probe.new)  # a longer row may not fit the model's context
    first, second = (measure_memory(partial(probe.prompt, rows), device) for rows in (1, 2))
    column = max(0.0, measure_memory(partial(probe.prompt, 1, extra), device).kept - first.kept) / extra
    layers = sum(isinstance(module, GradientCheckpointingLayer) for module in network.modules())
    rows = -(-TIMED_COLUMNS // probe.columns)  # with fewer columns, the measured growth would be less exact
    return Costs(
        program=find_program_bytes(config, device, sizes),
        update=_measure_pass(probe.update, _per_step(probe.update_logits, device), probe),
        growth=measure_growth(partial(probe.update, rows, 1), device) / (rows * probe.columns),
        compare=_measure_pass(probe.compare, _per_step(probe.compare_logits, device), probe),
        score=measure_memory(partial(probe.score, 2), device).peak / (2 * probe.columns),
        prompt=Memory(max(0, 2 * first.peak - second.peak), (second.peak - first.peak) / prompt, 0.0),
        sample=_per_step(probe.sample_logits, device),
        state=max(0.0, first.kept - column * prompt),
        cache=column,
        states=4.0 * layers * probe.width,
        layers=layers,
    )


def find_program_bytes(config: LLMConfig, device: torch.device, sizes: Sizes) -> float:
    """Return the memory of this process without weights and without freed memory."""
    if device.type == "cuda":
        return 0.0
    release_freed_memory()
    return max(0.0, process_bytes(device) - weight_bytes(config, sizes))


def _measure_pass(run: Callable[[int, int], object], per_step: float, probe: Probe) -> Memory:
    """Measure a pass with one row and with two rows. `per_step` is the memory of the logits of a step.

    Each row has only one step, so that the activations need more memory than the logits. Both are then at their peak
    when the gradients of the head's weights are computed.
    """
    one, two = (measure_memory(partial(run, rows, 1), probe.device).peak for rows in (1, 2))
    per_row = max(0.0, two - one - per_step)
    return Memory(max(0.0, one - per_row - per_step), per_row / probe.columns, per_step)


def _per_step(run: Callable[[int], object], device: torch.device) -> float:
    """Return the memory of the logits of one step, and of everything that is computed from them."""
    few, more = (measure_memory(partial(run, steps), device).peak for steps in (2, 6))
    return (more - few) / 4


def measure_seconds(probe: Probe, config: LLMConfig, batches: Batches) -> Seconds:
    """Measure the time that a run with the options `config` needs."""
    training, longest = batches.training, probe.columns
    most = max(1, config.ppo.microbatch_columns // longest)
    scored = min(max(1, BATCH_COLUMNS // longest), training.rows) if probe.reward_models else 0
    token = probe.token_s(training.rows)  # first, because the first call of the decoder is slower
    return Seconds(
        update=_column_seconds(probe.update, min(most, batches.minibatch), longest, probe.device),
        compare=_column_seconds(probe.compare, min(most, training.rows), longest, probe.device),
        score=_column_seconds(probe.score, scored, longest, probe.device),
        prompt=_column_seconds(probe.first_step, training.prompts, training.prompt, probe.device),
        token=token,
        step=probe.optimizer_s(),
    )


def _column_seconds(run: Callable[[int], object], most: int, columns: int, device: torch.device) -> float:
    """Return the seconds per column of rows with this many columns, or 0 if there are no rows.

    Increase the number of rows up to `most` until they take TIMED_S.
    """
    rows = min(most, -(-TIMED_COLUMNS // columns))  # with fewer columns, each of them would take longer
    if not rows:
        return 0.0
    while (seconds := time_call(partial(run, rows), device)) < TIMED_S and rows < most:
        rows = min(most, 4 * rows)
    return seconds / (rows * columns)


def time_parts(config: LLMConfig, batches: Batches, seconds: Seconds) -> dict[str, float]:
    """Return the seconds of each phase of an iteration in which all responses have their full length."""
    ppo, training = config.ppo, batches.training
    steps = ppo.epochs * min(ppo.minibatches, training.rows)
    texts = sum(rows * columns for rows, columns in batches.texts) / _passes(config)
    return {
        "generate": seconds.prompt * training.prompts * training.prompt + seconds.token * training.new,
        "score": seconds.score * training.rows * training.longest,
        "compare": seconds.compare * training.padded(training.rows),
        "update": seconds.update * (training.padded(batches.minibatch) * ppo.epochs + texts * steps)
        + seconds.step * steps,
    }


def estimate(adapter: LLMAdapter) -> Estimate:
    """Measure what a run needs. If ppo.microbatch_columns is 'auto', choose its value and set it in the adapter."""
    config, device, sizes, probe = adapter.config, adapter.device, adapter.sizes, Probe(adapter)
    available, chunk, on_gpu = available_bytes(device), chunk_size(probe.network), device.type == "cuda"
    texts = [len(row) - 1 for row in adapter.ptx.rows] if adapter.ptx else []
    lengths = [len(ids) for ids in adapter.prompts.tokens], [len(ids) for ids in adapter.held_out.tokens], texts
    with probe.restore_state():
        costs, seconds = measure_costs(probe, sizes), dict[str, float]()

        def find_parts(changed: LLMConfig) -> dict[str, float]:
            batches = Batches.plan(changed, *lengths)
            return memory_parts(changed, batches, sizes, costs.change(adapter.config, changed), chunk, on_gpu)

        def fits(changed: LLMConfig, share: float = 1.0) -> bool:
            return sum(find_parts(changed).values()) <= share * available

        chosen = _choose_columns(config, device, partial(fits, share=SHARE))
        config = adapter.config = config.replace(chosen)
        batches = Batches.plan(config, *lengths)
        if fits(config):
            seconds = time_parts(config, batches, measure_seconds(probe, config, batches))
            # the passes have loaded further code
            costs = replace(costs, program=find_program_bytes(config, device, sizes))
    return Estimate(
        memory=find_parts(config),
        available=available,
        checkpoint=3 * trained_bytes(config, sizes),
        seconds=seconds,
        evaluation_s=_evaluation_s(config, seconds, len(adapter.held_out.texts)) if seconds else None,
        steps=batches.training.rows * batches.training.new,
        options=chosen,
        remark="all responses have their full length",
        advice="" if fits(config) else suggest(config, fits),
    )


def _choose_columns(config: LLMConfig, device: torch.device, fits: Callable[[LLMConfig], bool]) -> dict[str, int]:
    """Return the value of ppo.microbatch_columns if it is 'auto': the largest power of two with which the run fits."""
    if not isinstance(config.ppo.microbatch_columns, Auto):
        return {}
    option, columns = "ppo.microbatch_columns", LARGEST[device.type]
    while columns > SMALLEST_COLUMNS and not fits(config.replace({option: columns})):
        columns //= 2
    return {option: columns}


def _evaluation_s(config: LLMConfig, seconds: dict[str, float], prompts: int) -> float:
    """Return the duration of an evaluation: greedy and sampled responses, and examples of the policy and reference."""
    episodes, rows = config.eval.episodes, config.llm.rollout_batch
    greedy, examples = min(episodes, prompts), min(SHOWN, prompts)
    responses, compared = greedy + episodes + 2 * examples, episodes + examples
    return ((seconds["generate"] + seconds["score"]) * responses + seconds["compare"] * compared) / rows
