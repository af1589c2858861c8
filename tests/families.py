"""Trains a small model of any type, and compares the result with transformers.

benchmarks/families.py does this for every type of causal language model, and tests/envs/llm/test_families.py for a few.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from envs.llm.adapter import LLMAdapter
from envs.llm.export import export
from envs.llm.generate import Responses, generate
from envs.llm.quiet import silence_peft
from ppo_unified import load_preset
from ppo_unified.cli.main import main
from ppo_unified.runs.folder import Run
from ppo_unified.training import session
from tests.models import make_tokenizer
from tests.small_configs import small_config

PROMPTS = [[(29 * row + 7 * i) % 250 for i in range(1 + 5 * row % 17)] for row in range(8)]
LENGTH = 12  # maximum number of tokens in a response
ENDS = [257, *range(3, 250, 12)]  # many end tokens, so that sampled responses end at different times
TOLERANCE = 1e-3  # of logits, relative to the largest
DECODING = {"padded": "", "grouped": ", prompts of equal length", "uncached": ", without cache"}
ABOUT = {"run": "a", "kind": "llm", "step": 1, "score": None, "versions": {}}


class Rejected(Exception):
    """The line with which the program rejects a model."""


def save_small_model(name: str, folder: Path, **changes: Any) -> Any:
    """Save a model with random weights and a tokenizer in `folder`, and prompts beside it. Return the model."""
    config = small_config(name, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    if model.can_generate():
        model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    if config.is_encoder_decoder or type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        # transformers has changed the configuration to that of the decoder alone
        config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    prompts = [json.dumps({"prompt": "ab" * length}) for length in range(1, 9)]
    (folder.parent / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    return model


def check_training(model: Path, rank: int) -> str:
    """Train a model for two iterations, compare it with transformers, and return "trained" and how it was decoded.

    Raises Rejected if the program rejects the model correctly, and AssertionError for all other problems.
    """
    run = _train(model, rank, model.parent / f"runs-{rank}")
    adapter, _ = session.load_adapter(Run(run), load_preset(str(run / "config.toml")), "latest")
    assert isinstance(adapter, LLMAdapter)
    network = adapter.policy.network
    with torch.no_grad():
        unending = generate(network, PROMPTS, LENGTH, [])
        ends = [257, *(unending.response(row)[2 * row] for row in range(5))]
        responses = generate(network, PROMPTS, LENGTH, ends)
        sizes = (responses.lengths - responses.prompt_lengths).tolist()
        assert len(set(sizes)) > 1, f"all responses have {sizes[0]} tokens"
        note = _compare_responses(adapter, responses, ends)
        _compare_export(adapter, responses.tokens[:1, : responses.lengths[0]], model.parent / f"export-{rank}")
    return "trained" + DECODING[network.decoding] + note


def _train(model: Path, rank: int, runs: Path) -> Path:
    """Train with the command line, and return the run's folder."""
    options = {
        "llm.model": model,
        "llm.prompts": model.parent / "prompts.jsonl",
        "llm.reward": "regex:[a-p]",
        "llm.max-new-tokens": LENGTH,
        "llm.rollout-batch": 8,
        "llm.lora-rank": rank,
        "ppo.epochs": 1,
        "ppo.minibatches": 2,
        "optim.lr": 1e-3,
        "eval.episodes": 2,
        "total-iterations": 2,
        "device": "cpu",
        "threads": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "llm", "--runs", str(runs), "--name", "a", *words])
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("preparing ")]
    if code == 2:
        assert len(lines) == 1, f"the message has {len(lines)} lines: {lines}"
        assert not list(runs.glob("*")), "the rejected run left a folder"
        raise Rejected(lines[0])
    assert code == 0, f"exit code {code}: {lines[-1:]}"
    return runs / "a"


def _compare_responses(adapter: LLMAdapter, responses: Responses, ends: list[int]) -> str:
    """Compare greedy responses and their log-probs with the whole model, one row at a time without padding.

    Return a note if the model's own `generate` fails.
    """
    network, compared, mask, note = adapter.policy.network, adapter.compare(responses), responses.mask(), ""
    network.use_lora("policy")
    for row, length in enumerate(responses.lengths.tolist()):
        tokens, start = responses.tokens[row, :length], int(responses.prompt_lengths[row])
        logits = network.model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
        chosen = tokens[1:, None]
        gap = float((logits.max(-1).values - logits.gather(1, chosen)[:, 0])[start - 1 :].max())
        assert gap <= TOLERANCE * max(1.0, float(logits.abs().max())), f"a greedy token is {gap:.2g} below the maximum"
        expected = logits.log_softmax(-1).gather(1, chosen)[start - 1 :, 0]
        error = float((compared.logprobs[row][mask[row]] - expected).abs().max())
        assert error < TOLERANCE, f"log-probs differ by {error:.2g}"
        try:
            found = network.model.generate(
                tokens[None, :start],
                attention_mask=torch.ones(1, start, dtype=torch.long),
                max_new_tokens=LENGTH,
                do_sample=False,
                use_cache=network.decoding != "uncached",
                eos_token_id=ends,
                pad_token_id=258,
            )
        except Exception as error_of_model:  # a bug of the model in transformers
            note = f"; `generate` of transformers fails ({type(error_of_model).__name__})"
        else:
            assert found[0].tolist() == tokens.tolist(), "a greedy response differs from `generate`"
    return note


def _compare_export(adapter: LLMAdapter, tokens: torch.Tensor, folder: Path) -> None:
    """Check that training changed the model, and that an export contains the changed model."""
    export(adapter, folder, ABOUT)
    with silence_peft():
        reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    other, network = adapter.reference, adapter.policy.network
    network.use_lora("policy")
    ours, theirs = (model(input_ids=tokens, use_cache=False).logits for model in (network.model, reloaded))
    other.network.use_lora(other.lora)
    before = other.network.model(input_ids=tokens, use_cache=False).logits
    error = float((theirs - ours).abs().max())
    assert error <= TOLERANCE * max(1.0, float(ours.abs().max())), f"the exported model differs by {error:.2g}"
    assert not torch.equal(before, ours), "training did not change the logits"
