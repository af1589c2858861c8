"""Tests of `export`, `play`, `eval` and `inspect` with language models.

They use runs of two iterations with small, randomly initialized models of several families.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pty
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from envs.llm.adapter import LLMAdapter
from envs.llm.explain import explain, token_texts
from envs.llm.export import export, export_merged
from envs.llm.generate import Responses
from envs.llm.model import CRITIC, POLICY
from envs.llm.options import LLMConfig
from envs.llm.play import LLMChat
from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.cli.play_server import _serve_chat
from ppo_unified.cli.policy import LoadedPolicy
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import PromptRequest, Ready, decode, encode
from ppo_unified.text import decode_bytes
from ppo_unified.training import session
from tests import fork_server
from tests.models import VOCABULARY, save_model

ROOT = Path(__file__).parents[3]
ABOUT = {"run": "a", "kind": "llm", "step": 1, "score": None, "versions": {}}
TEXTS = ["12+34=", "two\nlines, é and 语言", " <eos> inside", ""]

USUAL = ("llama", "gpt2")  # the other entries of FAMILIES are exhaustive
# name -> (family, tied embeddings, has a pad token, vocabulary size, dtype), in varied combinations
FAMILIES: dict[str, tuple[str, bool, bool, int, str]] = {
    "llama": ("llama", False, True, VOCABULARY, "float32"),
    "llama-tied": ("llama", True, False, 700, "bfloat16"),
    "gpt2": ("gpt2", True, True, 700, "float32"),
    "gpt2-untied": ("gpt2", False, False, VOCABULARY, "bfloat16"),
    "qwen2": ("qwen2", False, True, 700, "bfloat16"),
    "qwen2-tied": ("qwen2", True, False, VOCABULARY, "float32"),
    "gemma2": ("gemma2", True, True, VOCABULARY, "bfloat16"),
    "gemma2-untied": ("gemma2", False, False, 700, "float32"),
}
GROUPED: dict[str, Any] = {
    "llm": {"baseline": "rloo", "group_size": 2},
    "ppo": {"lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none"},
}
# name -> (family, options): every kind of critic, with and without LoRA
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "independent": ("llama", {}),
    "shared": ("gpt2", {"llm": {"critic": "shared"}}),
    "free": ("llama", GROUPED),
    "lora": ("llama", {"llm": {"lora_rank": 4}}),
    "lora-gpt2": ("gpt2", {"llm": {"lora_rank": 4}}),
    "lora-shared": ("llama", {"llm": {"lora_rank": 4, "critic": "shared", "gradient_checkpointing": True}}),
    "lora-own": ("llama", {"llm": {"lora_rank": 4, "critic_init": "CRITIC"}}),
    "lora-bf16": ("llama", {"llm": {"lora_rank": 4, "dtype": "bfloat16"}}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and prompts."""
    folder = tmp_path_factory.mktemp("llm")
    for family in ("llama", "gpt2"):
        save_model(folder / family, family)
    save_model(folder / "critic", "llama", seed=1)
    numbers = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(12)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, numbers)), encoding="utf-8")
    return folder


def train_once(folder: Path, name: str) -> Path:
    """Return the folder of a run of this kind, and train the run on the first call."""
    path = folder / "runs" / name
    if not path.exists():
        family, options = KINDS[name]
        train(config(folder, folder / family, **options), folder / "runs", name)
    return path


def config(folder: Path, model: Path, llm: dict[str, Any] | None = None, **options: Any) -> LLMConfig:
    """Return the options of a run of two iterations that changes the weights measurably."""
    base = {"model": str(model), "prompts": str(folder / "prompts.jsonl"), "reward": "regex:[a-p]"}
    sizes = {"max_new_tokens": 8, "rollout_batch": 8, "temperature": 0.7}
    changes = {key: str(folder / "critic") if x == "CRITIC" else x for key, x in (llm or {}).items()}
    small = {"total_steps": 0, "total_iterations": 2, "threads": 1, "eval": {"episodes": 4}, "optim": {"lr": 1e-2}}
    small["ppo"] = {"epochs": 1, "minibatches": 2}
    return LLMConfig.model_validate(small | {"llm": base | sizes | changes} | options)


@contextmanager
def adapter_of(run: Path) -> Iterator[LLMAdapter]:
    """Yield a run's adapter with its best policy."""
    loaded = load_preset(str(run / "config.toml"))
    adapter, _ = session.load_adapter(Run(run), loaded, "best")
    assert isinstance(adapter, LLMAdapter)
    with closing(adapter), torch.no_grad():
        yield adapter


def command(runs: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*arguments, "--runs", str(runs)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_on(folder: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, *flags: str) -> tuple[int, str, str]:
    """Run a command on the run of a kind."""
    train_once(folder, name)
    return command(folder / "runs", capsys, verb, name, *flags)


def sample_tokens(adapter: LLMAdapter) -> Tensor:
    """Return two rows of tokens: the first ids and the last ids of the vocabulary."""
    size = adapter.policy.network.model.config.vocab_size
    return torch.stack([torch.arange(24), size - 1 - torch.arange(24)])


def policy_logits(adapter: LLMAdapter, tokens: Tensor, name: str | None = POLICY) -> Tensor:
    """Return the logits [R, L, V], computed as in training and sampling."""
    network = adapter.policy.network
    return torch.stack([network.logits(hidden, name) for hidden in network.trunk(tokens, name)])


def policy_values(adapter: LLMAdapter, tokens: Tensor) -> Tensor:
    chosen = torch.ones_like(tokens, dtype=torch.bool)
    assert adapter.policy.critic is not None
    values: Tensor = adapter.policy.critic(tokens, chosen, adapter.policy.network.trunk(tokens)[chosen])
    return values.view(tokens.shape)


def entries(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# families


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.exhaustive) for name in FAMILIES]
)
def test_every_model_family_trains_and_exports(
    folder: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, tied, pad, ids, dtype = FAMILIES[name]
    extra = {} if pad else {"pad_token_id": None}
    base = save_model(tmp_path / "base", family, pad, ids, vocab_size=ids, tie_word_embeddings=tied, **extra)
    result = train(config(folder, base, {"dtype": dtype}), tmp_path / "runs", "a")
    assert (result.state, result.reason) == ("finished", "total_iterations reached")
    code, _, err = command(tmp_path / "runs", capsys, "export", "a", "--to", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    with adapter_of(result.path) as adapter:
        network, tokens = adapter.policy.network, sample_tokens(adapter)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with network.precision():  # matrix products as in training
            written = model(tokens).logits.float()
        torch.testing.assert_close(written, policy_logits(adapter, tokens), rtol=1e-5, atol=1e-5)
        theirs = torch.stack([adapter.reference.network.logits(h) for h in adapter.reference.network.trunk(tokens)])
        assert float((written - theirs).abs().max()) > 0.05  # the exported weights differ from the reference
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
        assert model.get_input_embeddings().weight.shape[0] == ids
        assert (adapter.tokenizer.pad_token is not None) == (
            pad or family == "qwen2"
        )  # qwen2's tokenizer always has a pad token
        assert_same_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "out"), adapter.tokenizer)
        model.float()
        network.bf16 = False
        assert_same_responses(model, adapter)


def assert_same_tokenizer(read: Any, ours: Any) -> None:
    assert read.get_vocab() == ours.get_vocab()
    assert type(read) is type(ours)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "padding_side", "chat_template"):
        assert getattr(read, name) == getattr(ours, name)
    for text in TEXTS:
        ids = read(text)["input_ids"]
        assert ids == ours(text)["input_ids"]
        assert read.decode(ids) == text


def assert_same_responses(model: Any, adapter: LLMAdapter) -> None:
    """Check that greedy `generate` of transformers with the exported settings returns the policy's responses."""
    prompts = adapter.held_out.tokens[:3]
    ours = adapter.respond(prompts, None)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_k=None)
        assert found[0, len(prompt) :].tolist() == ours.response(row)


# the content of an export


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        pytest.param(
            name,
            merged,
            marks=() if name in ("free", "lora-bf16") and not merged else pytest.mark.exhaustive,
        )
        for name in KINDS
        for merged in (False, True)
        if "lora" in name or not merged
    ],
)
def test_exported_example_loads_the_trained_model(
    folder: Path, name: str, merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in the README computes the policy's logits and the critic's values."""
    with adapter_of(train_once(folder, name)) as adapter:
        facts = (export_merged if merged else export)(adapter, tmp_path, ABOUT)
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(0)
        found: dict[str, Any] = {}
        exec(compile(python_blocks(tmp_path / "README.md"), "README.md", "exec"), found)
        adapter.policy.network.bf16 = False
        tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
        if name == "lora-bf16" and not merged:  # the exported base is float32, but training used bfloat16
            tolerance = {"rtol": 0.05, "atol": 0.3}
        if name == "lora-bf16":
            adapter.policy.network.model.float()
        model, tokens = found["model"], sample_tokens(adapter)
        torch.testing.assert_close(model(tokens).logits, policy_logits(adapter, tokens), **tolerance)
        assert float((model(tokens).logits - policy_logits(adapter, tokens, None)).abs().max()) > 0.01 or (
            "lora" not in name
        )
        assert facts["weights"] == ("merged" if merged else "adapter" if "lora" in name else "all")
        if adapter.policy.critic is None:
            assert facts["critic"] is None
            assert not (tmp_path / "critic").exists()
        else:
            ours = policy_values(adapter, found["ids"])
            torch.testing.assert_close(found["values"], ours, **tolerance)
            assert float(ours.abs().max()) > 0
            assert json.loads((tmp_path / "critic" / "critic.json").read_text(encoding="utf-8")) == facts["critic"]


def python_blocks(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


def test_lora_export_loads_without_this_project(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on(folder, capsys, "export", "lora", "--to", str(tmp_path / "out"))[0] == 0
    code = python_blocks(tmp_path / "out" / "README.md")
    code += "\nimport sys\nassert not {'ppo_unified', 'envs'} & set(sys.modules)\nprint(values.shape)"
    ended = fork_server.run(["-c", code], tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("torch.Size([1, 4])\n")


def test_policy_json_describes_the_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    code, printed, err = run_on(folder, capsys, "export", "independent", "--to", str(out))
    description = json.loads((out / "policy.json").read_text(encoding="utf-8"))
    assert (code, err) == (0, "")
    assert printed.splitlines() == [str(out / name) for name in description["files"]]
    assert sorted(entries(out)) == description["files"]
    assert {"critic/model.safetensors", "critic/value_head.safetensors", "tokenizer.json"} <= set(description["files"])
    assert (description["run"], description["kind"], description["temperature"]) == ("independent", "llm", 0.7)
    assert description["score"] == Run(train_once(folder, "independent")).read_status().best_score
    assert description["versions"].keys() >= {"python", "torch", "transformers"}
    settings = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    wanted = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "max_new_tokens": 8}
    assert settings.items() >= (wanted | {"eos_token_id": [257], "pad_token_id": 258}).items()


def test_exported_lora_names_its_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's path is absolute, even if the run's option was relative."""
    monkeypatch.chdir(folder)
    options = {"lora_rank": 4, "critic_init": "critic"}
    export(LLMAdapter(config(folder, Path("llama"), options), torch.device("cpu")), tmp_path, ABOUT)
    for where, base in ((tmp_path, "llama"), (tmp_path / "critic", "critic")):
        settings = json.loads((where / "adapter_config.json").read_text(encoding="utf-8"))
        assert settings["base_model_name_or_path"] == str(folder / base)
        assert not (where / "model.safetensors").exists()


def test_merging_leaves_live_policy_unchanged(folder: Path, tmp_path: Path) -> None:
    with adapter_of(train_once(folder, "lora")) as adapter:
        network, tokens = adapter.policy.network, sample_tokens(adapter)
        before = copy.deepcopy(dict(network.model.state_dict()))
        logits, values = policy_logits(adapter, tokens), policy_values(adapter, tokens)
        network.use_lora(CRITIC)
        export_merged(adapter, tmp_path, ABOUT)
        after = network.model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(x, after[name]) for name, x in before.items())
        assert torch.equal(policy_logits(adapter, tokens), logits)
        assert torch.equal(policy_values(adapter, tokens), values)


def test_merge_is_rejected_if_nothing_can_be_merged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_on(folder, capsys, "export", "shared", "--merged", "--to", str(tmp_path / "a"))
    assert (code, out) == (2, "")
    assert err == "--merged requires a run with LoRA, but this run trained all weights; remove --merged\n"
    assert not os.listdir(tmp_path / "a")
    toy = load_preset("CartPole-v1", total_steps=64, gym={"num_steps": 8}, eval={"episodes": 1})
    train(toy, tmp_path / "runs", "pole")
    code, out, err = command(tmp_path / "runs", capsys, "export", "pole", "--merged", "--to", str(tmp_path / "b"))
    assert (code, out, err) == (2, "", "--merged: policies of kind 'gym' have nothing to merge; omit --merged\n")
    with adapter_of(train_once(folder, "lora")) as adapter:
        llm = adapter.config.llm.model_copy(update={"quantize": "4bit"})
        adapter.config = adapter.config.model_copy(update={"llm": llm})
        with pytest.raises(UsageError, match=r"--merged is not supported with llm.quantize = '4bit', because"):
            export_merged(adapter, tmp_path, ABOUT)


# the target folder of an export


def test_export_replaces_an_earlier_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All earlier files are removed, since transformers would load a leftover LoRA next to merged weights."""
    monkeypatch.chdir(tmp_path)
    kinds = [["--merged"], [], ["--merged"]]
    written = []
    for number, flags in enumerate(kinds):
        for where in ("out", f"fresh{number}"):
            assert run_on(folder, capsys, "export", "lora", *flags, "--to", where)[0] == 0
        assert entries(tmp_path / "out").keys() == entries(tmp_path / f"fresh{number}").keys()
        assert sorted(os.listdir("out")) == sorted(os.listdir(f"fresh{number}"))
        written.append(set(entries(tmp_path / "out")))
    assert written[0] == written[2] != written[1]


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the run `shared`."""
    train_once(folder, "shared")
    out = tmp_path_factory.mktemp("exported")
    assert main(["export", "shared", "--runs", str(folder / "runs"), "--to", str(out)]) == 0
    return out


@pytest.mark.parametrize("stranger", ["notes.txt", "critic/notes.txt", "critic/empty/", "link", "critic/deep/file"])
def test_export_into_foreign_folder_is_rejected(
    folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stranger: str
) -> None:
    out = shutil.copytree(exported, tmp_path / "out")
    path = out / stranger
    path.parent.mkdir(parents=True, exist_ok=True)
    if stranger.endswith("/"):
        path.mkdir()
    elif stranger == "link":
        path.symlink_to(folder)
    else:
        path.write_text("mine", encoding="utf-8")
    before = entries(out)
    code, printed, err = run_on(folder, capsys, "export", "shared", "--to", str(out))
    assert (code, printed) == (2, "")
    named = stranger.rstrip("/").removesuffix("/file")
    assert f"the folder contains other files ({named}); choose an empty folder or a new one" in err
    assert entries(out) == before
    assert path.exists()


def test_export_keeps_files_added_while_writing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_on(folder, capsys, "export", "shared", "--to", str(tmp_path))[0] == 0

    def export_slowly(*arguments: Any) -> dict[str, Any]:
        (tmp_path / "critic" / "notes.txt").write_text("mine", encoding="utf-8")
        return export(*arguments)

    monkeypatch.setattr("envs.llm.export.export", export_slowly)
    before = entries(tmp_path) | {"critic/notes.txt": b"mine"}
    code, _, err = run_on(folder, capsys, "export", "shared", "--to", str(tmp_path))
    assert (code, entries(tmp_path)) == (2, before)
    assert "the folder contains other files (critic/notes.txt)" in err


def test_export_of_another_run_is_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_on(folder, capsys, "export", "free", "--to", str(tmp_path))[0] == 0
    before = entries(tmp_path)
    assert run_on(folder, capsys, "export", "shared", "--to", str(tmp_path))[0] == 2
    assert entries(tmp_path) == before


def test_full_disk_leaves_earlier_export_intact(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the file size simulates the full disk."""
    assert run_on(folder, capsys, "export", "independent", "--to", str(tmp_path))[0] == 0
    before, limits = entries(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, out, err = run_on(folder, capsys, "export", "independent", "--to", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    assert err.startswith(f"--to {tmp_path}: cannot write the policy (")
    assert err.count("\n") == 1
    assert entries(tmp_path) == before


# chats


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture(scope="module")
def chat_run(folder: Path) -> Path:
    """The folder of a run that applies a chat template to its prompts."""
    model = save_model(folder / "chatty")
    read = AutoTokenizer.from_pretrained(model)
    read.chat_template = CHAT
    read.save_pretrained(model)
    return train(config(folder, model, {"chat_template": True}), folder / "chats", "chat").path


def test_chat_model_uses_the_same_template_after_export(
    chat_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with adapter_of(chat_run) as adapter:
        export(adapter, tmp_path, ABOUT)
        monkeypatch.chdir(tmp_path)
        found: dict[str, Any] = {}
        exec(compile(python_blocks(tmp_path / "README.md"), "README.md", "exec"), found)
        assert adapter.tokenizer.decode(found["ids"][0]) == "[user]0+0=[a]"
        assert found["ids"][0].tolist() == adapter.held_out.tokens[0]
        ours, theirs = LLMChat(adapter, 0, True), adapter.respond([found["ids"][0].tolist()], None)
        exchange = ours.answer("0+0=")
        assert (exchange.prompt, exchange.policy.text) == ("0+0=", adapter.texts(theirs)[0])


# play


def test_exchange_shows_policy_and_reference_replies(folder: Path) -> None:
    """The texts, lengths, scores and KL equal those of a direct computation over the full vocabulary."""
    with adapter_of(train_once(folder, "independent")) as adapter:
        exchange = LLMChat(adapter, 0, True).answer("1+2=")
        networks = (adapter.policy.network, adapter.reference.network)
        prompt = adapter.tokenizer("1+2=")["input_ids"]
        for network, reply in zip(networks, (exchange.policy, exchange.reference), strict=True):
            ids = torch.tensor([prompt])
            row = network.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
            response = row[0, len(prompt) :].tolist()
            assert reply.text == adapter.tokenizer.decode(response, skip_special_tokens=True)
            assert (reply.tokens, reply.ended) == (len(response), response[-1] == 257)
            assert reply.score == float(re.search("[a-p]", reply.text) is not None)
            if network is networks[0]:
                both = [n.model(row[:, :-1]).logits[0, len(prompt) - 1 :] / 0.7 for n in networks]
        ours, theirs = (x.log_softmax(-1) for x in both)
        assert exchange.kl == pytest.approx(float((ours.exp() * (ours - theirs)).sum()), rel=1e-4)


def test_untrained_policy_replies_like_its_reference(folder: Path) -> None:
    adapter = LLMAdapter(config(folder, folder / "llama"), torch.device("cpu"))
    for greedy in (True, False):
        exchange = LLMChat(adapter, 3, greedy).answer("7+7=")
        assert exchange.policy == exchange.reference
        assert exchange.kl == pytest.approx(0, abs=1e-5)


def test_sampled_replies_follow_the_seed(folder: Path) -> None:
    with adapter_of(train_once(folder, "independent")) as adapter:
        chats = [LLMChat(adapter, seed, False) for seed in (1, 1, 2)]
        exchanges = [[chat.answer("1+2=") for _ in range(2)] for chat in chats]
        examples = [[exchange.prompt for exchange in chat.examples(6)] for chat in chats]
    assert exchanges[0] == exchanges[1] != exchanges[2]
    assert exchanges[0][0].policy.text != exchanges[0][1].policy.text
    assert examples[0] == examples[1] != examples[2]


def test_served_chat_answers_prompts_and_held_out_prompts(folder: Path) -> None:
    requests = [PromptRequest("1+2=", True), PromptRequest(None, False), PromptRequest("9" * 121, True)]
    with adapter_of(train_once(folder, "independent")) as adapter:
        run, expected = Run(train_once(folder, "independent")), LLMChat(adapter, 0, True).answer("1+2=")
        loaded = LoadedPolicy(run, adapter.config, adapter, 7, "best")
        stream = io.BytesIO()
        _serve_chat(loaded, argparse.Namespace(seed=0), map(encode, requests), stream)
    ready, typed, held_out, error = map(decode, stream.getvalue().splitlines())
    assert ready == Ready(True, "best checkpoint, step 7")
    assert (typed.policy, typed.reference) == (expected.policy.text, expected.reference.text)
    assert re.fullmatch(r"greedy, score [01], \d tokens?, (ended|cut off), KL [\d.e-]+", typed.policy_facts)
    assert re.fullmatch(r"(\d+)\+\1=", held_out.prompt)
    assert held_out.reference_facts.startswith("sampled, score ")
    assert "expected a prompt of at most 120 tokens" in error.text


def pipe_stdin(monkeypatch: pytest.MonkeyPatch, text: bytes | None) -> None:
    """Replace stdin by a pipe with `text`, or by None as if it were closed."""
    stream = None if text is None else io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)


def test_play_reads_prompts_from_a_pipe(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_stdin(monkeypatch, b"12+34=\n\n" + b"9" * 121 + b"\n5+5=")
    code, out, err = run_on(folder, capsys, "play", "independent")
    assert code == 0
    assert re.findall(r"^prompt +(.*)$", out, re.MULTILINE) == ["12+34=", "5+5="]
    assert len(re.findall(r"score [01], \d tokens?, (?:ended|cut off), KL [\d.e-]+\n", out)) == 2
    assert len(re.findall(r"^reference ", out, re.MULTILINE)) == 2
    assert err.count("\n") == 1
    assert "prompt 2: expected a prompt of at most 120 tokens (the model's context minus " in err


@pytest.mark.parametrize(("stdin", "flags"), [(None, ["2"]), (b"", ["2"]), (b"unread\n", ["2"]), (b"\n", [])])
def test_play_defaults_to_held_out_prompts(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stdin: bytes | None,
    flags: list[str],
) -> None:
    pipe_stdin(monkeypatch, stdin)
    episodes = ["--episodes", *flags] if flags else []
    code, out, err = run_on(folder, capsys, "play", "independent", *episodes)
    prompts = re.findall(r"^prompt +(.*)$", out, re.MULTILINE)
    assert (code, err, len(prompts)) == (0, "", 2 if flags else 1)
    assert all(re.fullmatch(r"(\d+)\+\1=", prompt) for prompt in prompts)


def test_reward_with_columns_scores_only_known_prompts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new prompt has no columns, so a reward that needs one reports the missing column instead of a score."""
    for name, reward, message in (
        ("needs", "exact", "no score: the reward needs a prompt with `answer`"),
        ("reads", f"{__name__}:exact_match", "no score: llm.reward failed on 2 responses (KeyError: 'answer')"),
    ):
        changed = config(folder, folder / "llama", {"reward": reward})
        train(changed, folder / "needy", name)
        pipe_stdin(monkeypatch, b"1+2=\n")
        code, out, _ = command(folder / "needy", capsys, "play", name)
        assert code == 0
        assert message in out
        assert "score 0" not in out
        pipe_stdin(monkeypatch, b"1+1=\n")
        out = command(folder / "needy", capsys, "play", name)[1]
        assert out.count("score 0, ") == 2
        out = command(folder / "needy", capsys, "play", name, "--episodes", "1")[1]
        assert out.count("score 0, ") == 2
        assert "no score" not in out


def exact_match(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [float(response == answer) for response, answer in zip(responses, columns["answer"], strict=True)]


def test_play_rejects_invalid_input_for_language_models(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, flags, message in (
        (b"1+1=\n", ["--fps", "3"], "--fps has no effect on a language model; omit it\n"),
        (b"1\xff\n", [], "stdin: expected one prompt per line in UTF-8 (invalid start byte)\n"),
        (b"", ["--episodes", "0"], "--episodes: expected an integer >= 1, got 0\n"),
    ):
        pipe_stdin(monkeypatch, text)
        assert run_on(folder, capsys, "play", "shared", *flags) == (2, "", message)
    code, out, err = run_on(folder, capsys, "eval", "shared", "--video")
    assert (code, out, err) == (2, "", "shared: policies of kind 'llm' cannot be drawn\n")


def test_play_reads_prompts_from_a_terminal(folder: Path) -> None:
    train_once(folder, "shared")
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "ppo_unified", "play", "shared", "--runs", str(folder / "runs")]
    process = fork_server.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True)
    os.close(theirs)
    text = read_until(ours, "type a prompt; press Ctrl-D to quit\r\n> ")
    os.write(ours, b"1+1=\n")
    text = read_until(ours, "\r\n\r\n> ", text)
    os.write(ours, b"\x04")
    text = read_until(ours, "\0", text)
    assert process.wait() == 0
    assert len(re.findall("score [01], ", text)) == 2
    assert "prompt " not in text.partition("> ")[2]
    os.close(ours)


def read_until(terminal: int, text: str, already: str = "") -> str:
    """Read until `text` appears or the other end is closed, and return everything read."""
    while text not in already:
        try:
            already += os.read(terminal, 1 << 16).decode(errors="replace")
        except OSError:  # Linux reports a closed other end in this way
            break
    return already


# eval


def test_eval_reports_prompts_not_episodes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_on(folder, capsys, "eval", "shared", "--episodes", "5")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("evaluations use the 12 training prompts")
    assert re.fullmatch(
        r"shared: score \S+ \+- \S+ over 5 responses \(greedy, seed 0, best checkpoint, step \d+\)\n", out
    )
    document = json.loads(run_on(folder, capsys, "eval", "shared", "--episodes", "5", "--json")[1])
    assert document["score"] == document["mean_score"]
    assert "mean_return" not in document


# inspect


@pytest.mark.parametrize("kl", ["k1", "k3", "full"])
def test_token_columns_align_with_their_choice(folder: Path, kl: str) -> None:
    changed = config(folder, folder / "llama", {"kl": kl, "kl_coef": 0.1, "missing_eos_penalty": 0.5})
    adapter = LLMAdapter(changed, torch.device("cpu"))
    with torch.no_grad():
        for p in adapter.policy.network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    answered: list[Responses] = []
    respond = adapter.respond
    adapter.respond = lambda *given: answered.append(respond(*given)) or answered[-1]  # type: ignore[func-returns-value, method-assign]
    rollout = adapter.collect()
    columns = explain(adapter, rollout)
    mask, (responses,) = rollout.mask.numpy(), answered
    assert {x.shape for x in columns.values()} == {mask.shape}
    for row, tokens in enumerate(columns["token"]):
        own = responses.response(row)
        assert tokens[mask[row]].tolist() == own
        assert "".join(columns["text"][row][mask[row]]) == "".join(token_texts(adapter.tokenizer, own)[i] for i in own)
        start = int(np.argmax(mask[row]))
        prompt = adapter.tokenizer.decode(responses.tokens[row, : responses.prompt_lengths[row]])
        assert prompt == "".join(columns["text"][row][:start])  # includes the first token, which no column chose
        assert set(columns["text"][row][start + len(own) :]) <= {""}
    with torch.no_grad():
        logits = adapter.reference.network.model(responses.tokens[:, :-1]).logits / 0.7
    chosen = logits.log_softmax(-1).gather(-1, responses.tokens[:, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(columns["logprob_ref"][mask], chosen.numpy()[mask], rtol=1e-4, atol=1e-4)
    assert (columns["kl_full"][mask] >= 0).all()
    ends = columns["score"].copy()
    ends[np.arange(len(mask)), mask.cumsum(1).argmax(1)] -= np.where(responses.ended, 0.0, 0.5)
    scores = [float(re.search("[a-p]", text) is not None) for text in adapter.texts(responses)]
    np.testing.assert_array_equal(columns["score"].sum(1), scores)
    np.testing.assert_allclose((ends - 0.1 * columns["kl"])[mask], rollout.rewards.numpy()[mask], atol=1e-6)
    for name in ("logprob_ref", "kl", "kl_full", "score"):
        assert not columns[name][~mask].any()


def test_run_stores_token_columns_in_samples(folder: Path) -> None:
    run = Run(train_once(folder, "lora"))
    stored = samples.read(run, samples.iterations(run)[-1])
    steps = stored.sample_steps(stored.samples()[0])
    assert steps[0].keys() >= {"token", "text", "logprob_ref", "kl", "kl_full", "score", "score_used", "advantage"}
    texts = [step["text"] for sample in stored.samples() for step in stored.sample_steps(sample)]
    assert any("\\x" in text for text in texts)  # some tokens are parts of characters
    assert "".join(texts).encode()  # no bytes remain as surrogates
    mask = stored.columns["mask"]
    assert float(stored.columns["kl"][mask].sum() / len(mask)) == pytest.approx(stored.metrics["ref/kl"], rel=1e-4)
    means = stored.columns["score"][mask].sum() / len(mask)
    assert float(means) == pytest.approx(stored.metrics["reward/score"])


def test_partial_character_tokens_contain_their_bytes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    text = "a é\n语<eos>"
    ids = tokenizer(text)["input_ids"]
    parts = [token_texts(tokenizer, ids)[i] for i in ids]
    assert parts == ["a", " ", "\udcc3", "\udca9", "\n", "\udce8", "\udcaf", "\udcad", "<eos>"]
    assert decode_bytes("".join(parts)) == text
    assert [decode_bytes(part) for part in parts[1:4]] == [" ", r"\xc3", r"\xa9"]
    assert token_texts(tokenizer, [-1]) == {-1: ""}


def test_sentencepiece_tokens_keep_their_spaces() -> None:
    names = ["<unk>", "\u2581the", "\u2581", "the", "s", "<0xC3>", "<0xA9>", "\ufffd"]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    found = token_texts(PreTrainedTokenizerFast(tokenizer_object=inner), range(len(names)))
    assert list(found.values()) == ["<unk>", " the", " ", "the", "s", "\udcc3", "\udca9", "\ufffd"]
