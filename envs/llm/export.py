"""Exports a language model as a Hugging Face folder that works without this project."""

from __future__ import annotations

import copy
import errno
import json
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GenerationConfig

from envs.llm.adapter import LLMAdapter
from envs.llm.lora_model import read_lora_model
from envs.llm.model import CRITIC, POLICY, Network, load_causal_lm, load_trunk, location
from envs.llm.named_models import resolve
from envs.llm.options import LLM
from envs.llm.policy import Critic, LoRACritic
from envs.llm.prompts import encode, find_system_message
from envs.llm.quiet import silence_peft, silence_transformers
from envs.llm.rewards.lora_reward_model import read_lora_folder
from envs.llm.sizes import critic_source
from envs.llm.structure import trunk_of
from ppo_unified.errors import UsageError

README = "README.md"
CRITIC_FOLDER, CRITIC_JSON, HEAD = "critic", "critic.json", "value_head.safetensors"
CRITIC_FORMAT = "ppo-unified critic 1"
FENCE = "```"  # ends the code in the README
LONGEST_EXAMPLE = 200  # maximum number of characters of the example prompt in the README


def export(adapter: LLMAdapter, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write the model (or only its LoRA), tokenizer, generation settings, critic and README.md into `folder`.

    If `llm.model` itself consists of LoRA weights, the complete model is written, because LoRA weights cannot be the
    base of other LoRA weights. The weights are saved in the precision used for training. Returns the entries of
    policy.json, which describe how to load the model.
    """
    return _export(adapter, folder, about, merged=False)


def export_merged(adapter: LLMAdapter, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Do the same as `export`, but merge the LoRA weights into the base and save the result in float32.

    In bfloat16, small updates would be lost to rounding. Raises UsageError if the run has no LoRA or its base is
    quantized.
    """
    llm = adapter.config.llm
    if not llm.lora_rank:
        raise UsageError("--merged requires a run with LoRA, but this run trained all weights; remove --merged")
    if llm.quantize != "none":
        raise UsageError(
            f"--merged is not supported with llm.quantize = {llm.quantize!r}, because the LoRA weights do not fit the "
            "unquantized base exactly; remove --merged"
        )
    return _export(adapter, folder, about, merged=True)


def _export(adapter: LLMAdapter, folder: Path, about: dict[str, Any], merged: bool) -> dict[str, Any]:
    network, llm = adapter.policy.network, adapter.config.llm
    merged = merged or (llm.lora_rank > 0 and read_lora_model(resolve(llm.model), "llm.model") is not None)
    try:
        with silence_transformers():
            if llm.lora_rank and not merged:
                _write_lora(network, POLICY, llm.model, folder)
            elif llm.lora_rank:
                _merge(adapter, POLICY, network, llm.model).save_pretrained(folder)
            else:
                network.model.save_pretrained(folder)
            critic = _write_critic(adapter, folder / CRITIC_FOLDER, merged)
    except SafetensorError as error:  # for example, a full disk
        raise OSError(errno.EIO, str(error)) from None
    adapter.tokenizer.save_pretrained(folder)
    _generation_config(adapter).save_pretrained(folder)
    facts = {
        "class": type(network.model).__name__,
        "base": llm.model,
        "weights": "all" if not llm.lora_rank else "merged" if merged else "adapter",
        "dtype": llm.dtype,
        "quantize": llm.quantize,
        "prompts": "chat" if _is_chat(adapter) else "text",
        "temperature": llm.temperature,
        "max_new_tokens": llm.max_new_tokens,
        "min_new_tokens": llm.min_new_tokens,
        "end_tokens": adapter.end_tokens,
        "stop": llm.stop,
        "critic": critic,
        "usage": USAGE,
        "versions": about["versions"] | {name: version(name) for name in ("transformers", "peft")},
    }
    _write_readme(adapter, folder, about, facts)
    return facts


def _generation_config(adapter: LLMAdapter) -> GenerationConfig:
    """Return the generation settings that were used in training, which replace those of the base model."""
    llm, tokenizer, ends = adapter.config.llm, adapter.tokenizer, adapter.end_tokens
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    return GenerationConfig(
        do_sample=True,
        temperature=llm.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=llm.max_new_tokens,
        min_new_tokens=llm.min_new_tokens or None,
        stop_strings=llm.stop or None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=fill,
    )


# LoRA


def _write_lora(network: Network, name: str, base: str, folder: Path) -> None:
    """Save a network's LoRA weights and the location of their base in peft's format."""
    folder.mkdir(exist_ok=True)
    configs = network.peft_model.peft_config
    config = copy.deepcopy(configs[name])
    # peft corrects fan_in_fan_out only in the first LoRA configuration
    config.fan_in_fan_out = any(c.fan_in_fan_out for c in configs.values())
    config.base_model_name_or_path = location(base)
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    if network.model.can_generate():
        config.task_type = "CAUSAL_LM"
    config.save_pretrained(folder)
    weights = get_peft_model_state_dict(network.peft_model, adapter_name=name, save_embedding_layers=False)
    weights = {key: x.detach().cpu().contiguous() for key, x in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _merge(adapter: LLMAdapter, name: str, network: Network, source: str) -> Any:
    """Reload the base model and merge LoRA into it. If `network` has no head, only the base model's trunk is loaded."""
    llm = adapter.config.llm
    cpu, frozen = torch.device("cpu"), getattr(torch, llm.dtype)  # round the base's weights as in training
    if network.model.can_generate():
        base = load_causal_lm(source, llm, cpu, frozen).float()
    else:
        base = load_trunk(source, "llm.critic_init", cpu, frozen)[0].float()
    with TemporaryDirectory() as temporary, silence_peft():
        _write_lora(network, name, source, Path(temporary))
        return PeftModel.from_pretrained(base, temporary, torch_device="cpu").merge_and_unload()


def is_lora_folder(source: str) -> bool:
    """Return True if `source` is a folder that contains only LoRA weights, of a language model or a reward model."""
    return read_lora_folder(source) is not None or read_lora_model(source, source) is not None


# the critic


def _write_critic(adapter: LLMAdapter, folder: Path, merged: bool) -> dict[str, Any] | None:
    """Write the critic's weights and critic.json. Return the content of critic.json, or None if there is no critic."""
    critic, llm = adapter.policy.critic, adapter.config.llm
    if critic is None:
        return None
    folder.mkdir()
    head = {name: x.detach().cpu().contiguous() for name, x in critic.head.state_dict().items()}
    save_file(head, folder / HEAD, metadata={"format": "pt"})
    trunk = _write_trunk(adapter, critic, llm, folder, merged)
    facts = {"format": CRITIC_FORMAT, "trunk": trunk, "head": HEAD, "values": VALUES}
    (folder / CRITIC_JSON).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def _write_trunk(adapter: LLMAdapter, critic: Critic, llm: LLM, folder: Path, merged: bool) -> str:
    """Write the critic's trunk, unless it is the policy's. Return the Python expression that loads the trunk."""
    if isinstance(critic, LoRACritic):
        network, name, source = critic.network[0], CRITIC, llm.model
    elif critic.trunk is not None:
        network, name, source = critic.trunk, POLICY, "" if llm.critic_init == "policy" else critic_source(llm)
    else:
        return _trunk_expression("model", adapter.policy.network.model)
    if not network.has_lora:
        network.model.save_pretrained(folder)
    elif merged or is_lora_folder(source):  # a LoRA folder cannot be the base of other LoRA weights
        trunk_of(_merge(adapter, name, network, source)).save_pretrained(folder)
    else:
        _write_lora(network, name, source, folder)
        if network.model.can_generate():
            return _trunk_expression(f'AutoModelForCausalLM.from_pretrained("{CRITIC_FOLDER}")', network.model)
    return f'AutoModel.from_pretrained("{CRITIC_FOLDER}")'


def _trunk_expression(expression: str, model: Any) -> str:
    """Return a Python expression for the trunk of `model`, which is the value of `expression`."""
    trunk = trunk_of(model)
    if trunk is model.base_model:
        return f"{expression}.base_model"
    return f"{expression}.{next(name for name, module in model.named_modules() if module is trunk)}"


# README.md


def _is_chat(adapter: LLMAdapter) -> bool:
    return adapter.config.llm.chat_template or isinstance(adapter.prompts.data.prompts[0], list)


def _write_readme(adapter: LLMAdapter, folder: Path, about: dict[str, Any], facts: dict[str, Any]) -> None:
    llm = adapter.config.llm
    lora = read_lora_model(resolve(llm.model), "llm.model")
    origin = f"`{llm.model}`" + (f" (LoRA weights merged into `{lora.base}`)" if lora else "")
    weights = {
        "all": f"This folder contains the full model, trained from {origin}.",
        "merged": f"This folder contains {origin} with LoRA weights of rank {llm.lora_rank} merged in float32.",
        "adapter": f"This folder contains only LoRA weights of rank {llm.lora_rank}. transformers loads their base "
        f"model, `{location(llm.model)}`, from the location in adapter_config.json, and peft must be installed.",
    }
    precision = [f"matrix products in {llm.dtype}"] if llm.dtype != "float32" else []
    precision += [f"the base in {llm.quantize}"] if llm.quantize != "none" else []
    settings = " and ".join(precision)
    trained = f" It was trained with {settings}; use the same settings to get the same logits." if precision else ""
    page = PAGE.format(
        **about | {"score": "not evaluated" if about["score"] is None else f"{about['score']:.6g}"},
        weights=weights[facts["weights"]] + trained,
        temperature=f"{llm.temperature:g}",
        max_new_tokens=llm.max_new_tokens,
        stop=_describe_stop(llm),
        system=_find_system(adapter)[1],
        code=SCRIPT.format(encode=_encode_lines(adapter), **_stop_lines(llm)),
    )
    if facts["critic"]:
        page += CRITIC_PAGE.format(
            trunk=facts["critic"]["trunk"],
            head=f"{CRITIC_FOLDER}/{HEAD}",
            more="AutoModel" if facts["critic"]["trunk"].startswith("AutoModel.") else "AutoModelForCausalLM",
        )
    (folder / README).write_text(page, encoding="utf-8")


def _find_system(adapter: LLMAdapter) -> tuple[list[dict[str, str]], str]:
    """Return the system message for the code, in a list that may be empty, and a paragraph about it."""
    system, note = find_system_message(adapter.prompts.data.prompts)
    if any(FENCE in message["content"] for message in system):
        return [], (
            "\n\nAll prompts in training started with the same system message. It contains three backticks, so this "
            "code does not contain it. Add it to your prompts."
        )
    if system:
        return system, (
            "\n\nAll prompts in training started with the system message in this code. Use it for your prompts too."
        )
    note = "\n\nThe prompts in training did not share one system message, so this code contains none." if note else ""
    return [], note


def _describe_stop(llm: LLM) -> str:
    if not llm.stop:
        return ""
    strings = " or ".join(json.dumps(string, ensure_ascii=False) for string in llm.stop)
    return f"A response ends with {strings}; this string is not part of its text. "


def _stop_lines(llm: LLM) -> dict[str, str]:
    """Return the parts of the script that end a response at a stop string and remove this string."""
    if not llm.stop:
        return {"more": "", "cut": ""}
    cut = f"text = min((text.partition(stop)[0] for stop in {llm.stop!r}), key=len)\n"
    return {"more": ", tokenizer=tokenizer", "cut": cut}


def _encode_lines(adapter: LLMAdapter) -> str:
    """Return code that tokenizes a prompt as in training. The example prompt is the shortest held-out prompt."""
    known = [prompt for prompt in adapter.held_out.data.prompts if isinstance(prompt, str) and FENCE not in prompt]
    prompt = min(known, key=len, default="Hello!")[:LONGEST_EXAMPLE]
    if _is_chat(adapter):
        system, _ = _find_system(adapter)
        messages = [*system, {"role": "user", "content": prompt}]
        lines = "".join(f"    {message!r},\n" for message in messages)
        return (
            f"messages = [\n{lines}]\n"
            "tokens = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
            'ids, attention = tokens["input_ids"], tokens["attention_mask"]\n'
        )
    ends = len(encode(adapter.tokenizer, prompt)) < len(adapter.tokenizer(prompt)["input_ids"])
    cut = "[:, :-1]" if ends else ""  # this tokenizer appends an end token to every text
    return (
        f'tokens = tokenizer({prompt!r}, return_tensors="pt")\n'
        f'ids, attention = tokens["input_ids"]{cut}, tokens["attention_mask"]{cut}\n'
    )


USAGE = "model = AutoModelForCausalLM.from_pretrained(folder); tokenizer = AutoTokenizer.from_pretrained(folder)"

VALUES = "value[t] = weight . last_hidden_state[t] + bias: the expected return before token t + 1 is chosen"

SCRIPT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

model = AutoModelForCausalLM.from_pretrained(".")
model.generation_config = GenerationConfig.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
{encode}response = model.generate(ids, attention_mask=attention{more})[0, ids.shape[1] :]
text = tokenizer.decode(response, skip_special_tokens=True)
{cut}print(text)
"""

PAGE = """\
# A language model trained with PPO

This model comes from step {step} of the run `{run}` (greedy score: {score}).

{weights}

With the included generation settings, tokens are sampled as in training: from the full distribution at temperature
{temperature}, up to {max_new_tokens} tokens. {stop}Use `do_sample=False` for greedy decoding. Programs can read these
settings from `policy.json`. Run this code in this folder:

```python
{code}```{system}
"""

CRITIC_PAGE = """
## The critic

The critic estimates the expected return, in units of the reward including the KL penalty. `values[:, t]` is its
estimate before token t + 1 is chosen. `critic/critic.json` contains the same information for programs. Run this code
after the code above:

```python
from safetensors.torch import load_file
from transformers import {more}

head = load_file("{head}")
trunk = {trunk}
hidden = trunk(input_ids=ids, attention_mask=attention).last_hidden_state
values = (hidden.float() @ head["weight"].T + head["bias"])[..., 0]
```
"""
