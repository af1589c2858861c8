"""Trains and caches the two built-in models: `tiny` and the reward model of the `sentiment` task.

Both are very small Llama models whose tokens are bytes. They are saved in the format of `transformers` and loaded like
any other model. The models are trained on first use instead of being downloaded, so that you can see and change their
training data.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as ByteTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from envs.llm import tasks
from envs.llm.cache import find_or_make
from envs.llm.quiet import silence_transformers

CONTEXT = 1024
BOS, EOS, PAD = 256, 257, 258  # the ids 0 to 255 are the bytes
_IGNORED = -100  # the target that cross_entropy ignores


@dataclass(frozen=True)
class Recipe:
    """The settings that, together with the texts in tasks.py, determine the weights of `tiny`."""

    version: int = 2  # increase it if a code change alters the weights for the same settings
    seed: int = 0
    width: int = 64
    layers: int = 2
    heads: int = 8
    inner: int = 192
    clean_steps: int = 400  # steps on correct sums, to teach the network addition
    noisy_steps: int = 220  # subsequent steps on answers sampled from `tasks.supervised_answers`
    sums: int = 128  # sums per batch
    remarks: int = 32  # remarks per batch, in every second step, because they are longer and easier to learn
    matrix_lr: float = 0.02
    lr: float = 3e-3


@dataclass(frozen=True)
class RewardModelRecipe:
    """The settings that, together with `tiny` and the pairs in tasks.py, determine the reward model's weights."""

    version: int = 1
    seed: int = 0
    pairs: int = 4000
    steps: int = 200
    batch: int = 32  # pairs per step
    matrix_lr: float = 0.01
    lr: float = 1e-3


def tiny_model(recipe: Recipe | None = None) -> Path:
    """Return the folder of the tiny causal language model and its tokenizer. Train the model if it is not cached.

    Raises UsageError if the cache folder cannot be written.
    """
    recipe = recipe or Recipe()
    return find_or_make("tiny", _describe(recipe), lambda folder: _make_tiny(recipe, folder))


def sentiment_reward_model(recipe: RewardModelRecipe | None = None, tiny: Recipe | None = None) -> Path:
    """Return the folder of the reward model and its tokenizer. If it is not cached, train it on
    `tasks.sentiment_pairs`.

    The reward model approximates `sentiment_gold`, but it is accurate only for texts that resemble its training pairs.
    Raises UsageError if the cache folder cannot be written.
    """
    recipe, base = recipe or RewardModelRecipe(), tiny or Recipe()
    start = tiny_model(base)  # called first, so that no process holds two locks
    return find_or_make(
        "sentiment-reward-model", _describe(recipe, base), lambda folder: _make_reward_model(recipe, start, folder)
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer whose tokens are the 256 bytes and three special tokens.

    The id of a byte is its value. Decoding is lossless.
    """
    # ByteLevel represents printable bytes by themselves and all other bytes by characters from U+0100 on
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    backend = ByteTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# building


def _make_tiny(recipe: Recipe, folder: Path) -> None:
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _new_model(recipe, generator)
    sums, remarks = _ArithmeticBatches(), _RemarkBatches(recipe.seed)
    steps = recipe.clean_steps + recipe.noisy_steps

    def losses() -> Iterator[Tensor]:
        for step in range(steps):
            tokens, targets = sums.batch(recipe.sums, step >= recipe.clean_steps, generator)
            loss = _loss(model, tokens, targets)
            yield loss if step % 2 else loss + _loss(model, *remarks.batch(recipe.remarks, generator))

    _fit(model, losses(), steps, recipe.matrix_lr, recipe.lr, "training the tiny model")
    _save(model, folder)


def _make_reward_model(recipe: RewardModelRecipe, start: Path, folder: Path) -> None:
    generator = torch.Generator().manual_seed(recipe.seed)
    # from_pretrained uses the global generator for the new head, which is set to zero below
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        model = LlamaForSequenceClassification.from_pretrained(start, num_labels=1)
    nn.init.zeros_(model.score.weight)
    pairs = tasks.sentiment_pairs(recipe.pairs, recipe.seed)
    texts = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    chosen, rejected = _pad([text.encode() for text in texts]).chunk(2)

    def losses() -> Iterator[Tensor]:
        for _ in range(recipe.steps):
            picked = torch.randint(len(pairs), (recipe.batch,), generator=generator)
            tokens = torch.cat([chosen[picked], rejected[picked]])
            tokens = tokens[:, : int((tokens != PAD).sum(1).max())]
            better, worse = model(tokens, attention_mask=tokens != PAD).logits.squeeze(-1).chunk(2)
            yield -F.logsigmoid(better - worse).mean()

    _fit(model, losses(), recipe.steps, recipe.matrix_lr, recipe.lr, "training the reward model")
    _save(model, folder)


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Save the model and the tokenizer without the progress bars of `transformers`."""
    with silence_transformers():
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)


def _new_model(recipe: Recipe, generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=PAD + 1,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):  # transformers uses the global generator; all matrices are redrawn
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def _loss(model: LlamaForCausalLM, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy over the targets [R, L] that are not ignored.

    Padding on the right needs no attention mask, because attention is causal.
    """
    hidden = model.model(tokens).last_hidden_state
    used = targets != _IGNORED
    return F.cross_entropy(model.lm_head(hidden[used]), targets[used])


def _pad(texts: Sequence[bytes]) -> Tensor:
    """Return the texts as ids [R, L], padded on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(list(text)) for text in texts], batch_first=True, padding_value=PAD)


class _ArithmeticBatches:
    """Samples batches of sums from the training pairs. The loss covers only the answer and its end token."""

    def __init__(self) -> None:
        pairs = tasks.arithmetic_pairs()[0]
        shown = [tasks.supervised_answers(a, b) for a, b in pairs]
        width = max(len(answers) for answers in shown)
        self.answers = torch.tensor([[*answers, *[0] * (width - len(answers))] for answers in shown])  # [P, K]
        self.chances = torch.tensor([[*answers.values(), *[0.0] * (width - len(answers))] for answers in shown])
        self.totals = torch.tensor([a + b for a, b in pairs])
        questions = [tasks.question(a, b).encode() for a, b in pairs]
        self.questions, self.lengths = _pad(questions), torch.tensor([len(text) for text in questions])
        self.written = _pad([f"{n}".encode() for n in range(int(self.answers.max()) + 1)])
        digits = (self.written != PAD).sum(1, keepdim=True)
        self.written = F.pad(self.written, (0, 1), value=PAD).scatter(1, digits, EOS)  # [numbers, digits + EOS]

    def batch(self, count: int, noisy: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(len(self.totals), (count,), generator=generator)
        if noisy:
            column = torch.multinomial(self.chances[picked], 1, generator=generator)
            answers = self.answers[picked].gather(1, column).squeeze(1)
        else:
            answers = self.totals[picked]
        written = self.written[answers]
        where = self.lengths[picked, None] + torch.arange(written.shape[1])
        tokens = F.pad(self.questions[picked], (0, written.shape[1]), value=PAD).scatter(1, where, written)
        targets = torch.full_like(tokens, _IGNORED).scatter(1, where, written.masked_fill(written == PAD, _IGNORED))
        return tokens[:, :-1], targets[:, 1:]


class _RemarkBatches:
    """Samples batches of complete remarks. The loss covers every character."""

    def __init__(self, seed: int, count: int = 8192) -> None:
        rng, prompts = random.Random(seed), tasks.sentiment_openings()[0]
        texts = sorted((rng.choice(prompts) + tasks.draw_remark(rng) for _ in range(count)), key=len)  # less padding
        self.tokens = _pad([text.encode() for text in texts])
        self.lengths = torch.tensor([len(text) for text in texts])

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first = int(torch.randint(len(self.tokens) - count + 1, (1,), generator=generator))
        longest = int(self.lengths[first + count - 1])
        tokens = self.tokens[first : first + count, :longest]
        ended = F.pad(tokens, (0, 1), value=PAD).scatter(1, self.lengths[first : first + count, None], EOS)
        return tokens, ended[:, 1:].masked_fill(ended[:, 1:] == PAD, _IGNORED)


# training


def _fit(model: nn.Module, losses: Iterator[Tensor], steps: int, matrix_lr: float, lr: float, title: str) -> None:
    """Take one optimizer step per loss, with Muon for the layers' matrices and Adam for all other weights.

    Both learning rates warm up and then decay to 0. Muon makes training fast: in the same time, the model learns to
    answer 99% of held-out sums with Muon, but only 8% with Adam for all weights.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    muon, adam = _Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread does not help, and makes this 10x slower on a busy machine
    try:
        with _progress(title, steps) as show, torch.enable_grad():
            for step in range(steps):
                scale = min(1.0, (step + 1) / 20, (1.0 - step / steps) / 0.6)
                loss = next(losses)
                model.zero_grad(set_to_none=True)
                loss.backward()
                muon.step(matrix_lr * scale)
                for group in adam.param_groups:
                    group["lr"] = lr * scale
                adam.step()
                show(step + 1, loss.item())
    finally:
        torch.set_num_threads(threads)


class _Muon:
    """Momentum SGD with orthogonalized updates (kellerjordan.github.io/posts/muon)."""

    def __init__(self, matrices: Sequence[nn.Parameter], momentum: float = 0.95, decay: float = 0.1) -> None:
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            self.groups.setdefault(matrix.shape, []).append(matrix)
        self.means = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            mean = self.means[shape].mul_(self.momentum).add_(gradient)
            update = _orthogonalize(gradient + self.momentum * mean) * max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, direction in zip(group, update, strict=True):
                matrix.mul_(1.0 - lr * self.decay).sub_(lr * direction)


def _orthogonalize(matrices: Tensor) -> Tensor:
    """Bring all singular values of the matrices [M, rows, columns] close to 1 with five Newton-Schulz iterations."""
    wide: Tensor = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT


@contextlib.contextmanager
def _progress(title: str, steps: int, screen: TextIO | None = None) -> Iterator[Callable[[int, float], None]]:
    """Yield a function that shows progress on stderr, given the number of completed steps and the loss.

    On a terminal, it shows a live bar; otherwise it prints four lines in total.
    """
    screen = screen or sys.stderr
    live = screen.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    started = time.perf_counter()
    print(f"{title} (only once; the result is cached)", file=screen, flush=True)

    def show(done: int, loss: float) -> None:
        if live:
            bar = "#" * (30 * done // steps)
            screen.write(f"\r\x1b[K[{bar:.<30}] {done}/{steps}  loss {loss:.3f}")
            screen.flush()
        elif 4 * done // steps > 4 * (done - 1) // steps:
            print(f"  {done}/{steps}  loss {loss:.3f}", file=screen, flush=True)

    try:
        yield show
    finally:
        if live:
            screen.write("\r\x1b[K")
    print(f"{title}: done in {time.perf_counter() - started:.0f} s", file=screen, flush=True)


def _describe(*recipes: object) -> str:
    """Return the settings and a sample of the training texts, so that a new model is built if either changes."""
    rng = random.Random(0)
    sums = [(a, b, tasks.supervised_answers(a, b)) for a, b in tasks.arithmetic_pairs()[0][:200]]
    sample = [sums, [tasks.draw_remark(rng) for _ in range(200)], tasks.sentiment_pairs(200)]
    return f"{recipes} {sample}"
