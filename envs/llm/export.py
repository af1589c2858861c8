"""A language model as a Hugging Face folder: what it takes to run it, and nothing of this project."""

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
from envs.llm.inputs import critic_source
from envs.llm.model import CRITIC, POLICY, Network, load_causal_lm, load_trunk, location
from envs.llm.options import LLM
from envs.llm.policy import Critic, LoRACritic
from envs.llm.prompts import encode
from envs.llm.quiet import silence_peft, silence_transformers
from envs.llm.rewards.lora_reward_model import read_lora_folder
from ppo_unified.errors import UsageError

README = "README.md"
CRITIC_FOLDER, CRITIC_JSON, HEAD = "critic", "critic.json", "value_head.safetensors"
CRITIC_FORMAT = "ppo-unified critic 1"
LONGEST_EXAMPLE = 200  # characters of the prompt in the README


def export(adapter: LLMAdapter, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write model (or its LoRA), tokenizer, generation settings, critic and README.md into `folder`; what
    a program that loads them must know, for policy.json. Weights keep the precision that they were trained in."""
    return _export(adapter, folder, about, merged=False)


def export_merged(adapter: LLMAdapter, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """`export` with LoRA added to the base's weights, read anew and written in float32: in bfloat16 a
    small update would be rounded away. Raises UsageError where there is nothing to merge, or nothing to merge into."""
    llm = adapter.config.llm
    if not llm.lora_rank:
        raise UsageError("--merged: the run trained all weights (llm.lora_rank = 0), there is no adapter; drop it")
    if llm.quantize != "none":
        raise UsageError(
            f"--merged: the adapter was trained on a base in {llm.quantize} and does not fit its full weights exactly; "
            "export without --merged"
        )
    return _export(adapter, folder, about, merged=True)


def _export(adapter: LLMAdapter, folder: Path, about: dict[str, Any], merged: bool) -> dict[str, Any]:
    network, llm = adapter.policy.network, adapter.config.llm
    try:
        with silence_transformers():
            if llm.lora_rank and not merged:
                _write_lora(network, POLICY, llm.model, folder)
            elif llm.lora_rank:
                _merge(adapter, POLICY, network, llm.model).save_pretrained(folder)
            else:
                network.model.save_pretrained(folder)
            critic = _write_critic(adapter, folder / CRITIC_FOLDER, merged)
    except SafetensorError as error:  # a full disk, say
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
        "end_tokens": adapter.end_tokens,
        "critic": critic,
        "usage": USAGE,
        "versions": about["versions"] | {name: version(name) for name in ("transformers", "peft")},
    }
    _write_readme(adapter, folder, about, facts)
    return facts


def _generation_config(adapter: LLMAdapter) -> GenerationConfig:
    """Sampling as in training: the whole distribution, whatever the base's own settings cut off."""
    llm, tokenizer, ends = adapter.config.llm, adapter.tokenizer, adapter.end_tokens
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    return GenerationConfig(
        do_sample=True,
        temperature=llm.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=llm.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=fill,
    )


# LoRA


def _write_lora(network: Network, name: str, base: str, folder: Path) -> None:
    """LoRA of a network as peft writes it, so that it names the base it belongs to."""
    folder.mkdir(exist_ok=True)
    configs = network.peft_model.peft_config
    config = copy.deepcopy(configs[name])
    config.fan_in_fan_out = any(c.fan_in_fan_out for c in configs.values())  # peft corrects the first LoRA's alone
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
    """A base model read anew, with LoRA added to its weights; a trunk where `network` is one."""
    llm = adapter.config.llm
    cpu, frozen = torch.device("cpu"), getattr(torch, llm.dtype)  # rounded as it was in training
    if network.model.can_generate():
        base = load_causal_lm(source, llm, cpu, frozen).float()
    else:
        base = load_trunk(source, "llm.critic_init", cpu, frozen)[0].float()
    with TemporaryDirectory() as aside, silence_peft():
        _write_lora(network, name, source, Path(aside))
        return PeftModel.from_pretrained(base, aside, torch_device="cpu").merge_and_unload()


# the critic


def _write_critic(adapter: LLMAdapter, folder: Path, merged: bool) -> dict[str, Any] | None:
    """The critic's own weights and critic.json, which says how they are read; None without a critic."""
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
    """Write what gives the critic its hidden states, if it isn't the policy; the Python expression that loads it."""
    if isinstance(critic, LoRACritic):
        network, name, source = critic.network[0], CRITIC, llm.model
    elif critic.trunk is not None:
        network, name, source = critic.trunk, POLICY, "" if llm.critic_init == "policy" else critic_source(llm)
    else:
        return "model.base_model"
    if not network.has_lora:
        network.model.save_pretrained(folder)
    elif merged or read_lora_folder(source):  # LoRA can't be the base of LoRA
        _merge(adapter, name, network, source).base_model.save_pretrained(folder)
    else:
        _write_lora(network, name, source, folder)
        if network.model.can_generate():
            return f'AutoModelForCausalLM.from_pretrained("{CRITIC_FOLDER}").base_model'
    return f'AutoModel.from_pretrained("{CRITIC_FOLDER}")'


# what people read


def _is_chat(adapter: LLMAdapter) -> bool:
    return adapter.config.llm.chat_template or isinstance(adapter.prompts.data.prompts[0], list)


def _write_readme(adapter: LLMAdapter, folder: Path, about: dict[str, Any], facts: dict[str, Any]) -> None:
    llm = adapter.config.llm
    weights = {
        "all": f"The model with all its weights, trained from `{llm.model}`.",
        "merged": f"`{llm.model}` with the adapter of rank {llm.lora_rank} added to its weights, in float32.",
        "adapter": f"A low-rank adapter (rank {llm.lora_rank}) and not the model: transformers loads its base, "
        f"`{location(llm.model)}`, from where adapter_config.json says; peft must be installed.",
    }
    precision = [f"matrix products in {llm.dtype}"] if llm.dtype != "float32" else []
    precision += [f"the base in {llm.quantize}"] if llm.quantize != "none" else []
    trained = f" Trained with {' and '.join(precision)}: run so, it gives the very same logits." if precision else ""
    page = PAGE.format(
        **about | {"score": "not evaluated" if about["score"] is None else f"{about['score']:.6g}"},
        weights=weights[facts["weights"]] + trained,
        temperature=f"{llm.temperature:g}",
        max_new_tokens=llm.max_new_tokens,
        code=SCRIPT.format(encode=_encode_lines(adapter)),
    )
    if facts["critic"]:
        page += CRITIC_PAGE.format(
            trunk=facts["critic"]["trunk"],
            head=f"{CRITIC_FOLDER}/{HEAD}",
            more="AutoModel" if facts["critic"]["trunk"].startswith("AutoModel.") else "AutoModelForCausalLM",
        )
    (folder / README).write_text(page, encoding="utf-8")


def _encode_lines(adapter: LLMAdapter) -> str:
    """Code that makes `tokens` of a prompt as training made them; a short held-out prompt serves as example."""
    known = [prompt for prompt in adapter.held_out.data.prompts if isinstance(prompt, str) and "```" not in prompt]
    prompt = min(known, key=len, default="Hello!")[:LONGEST_EXAMPLE]
    if _is_chat(adapter):
        message = {"role": "user", "content": prompt}
        return (
            f"messages = [{message!r}]\n"
            "tokens = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
            'ids, attention = tokens["input_ids"], tokens["attention_mask"]\n'
        )
    ends = len(encode(adapter.tokenizer, prompt)) < len(adapter.tokenizer(prompt)["input_ids"])
    cut = "[:, :-1]" if ends else ""  # this tokenizer closes every text with an end token
    return (
        f'tokens = tokenizer({prompt!r}, return_tensors="pt")\n'
        f'ids, attention = tokens["input_ids"]{cut}, tokens["attention_mask"]{cut}\n'
    )


USAGE = "model = AutoModelForCausalLM.from_pretrained(folder); tokenizer = AutoTokenizer.from_pretrained(folder)"

VALUES = "value[t] = weight . last_hidden_state[t] + bias: what the critic expects before token t + 1 is chosen"

SCRIPT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

model = AutoModelForCausalLM.from_pretrained(".")
model.generation_config = GenerationConfig.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
{encode}response = model.generate(ids, attention_mask=attention)[0, ids.shape[1] :]
print(tokenizer.decode(response, skip_special_tokens=True))
"""

PAGE = """\
# A language model trained by PPO

From the run `{run}`, checkpoint of step {step}; score {score}.

{weights}

Responses are sampled as in training: from the whole distribution at temperature {temperature}, up to {max_new_tokens}
tokens; `do_sample=False` gives the likeliest token every time. `policy.json` says the same to programs. In this folder:

```python
{code}```
"""

CRITIC_PAGE = """
## The critic

What training had besides the policy; `critic/critic.json` says the same to programs. `values[:, t]` is what the critic
expects before token t + 1 is chosen, in the units of the reward with its KL penalty. Behind the code above:

```python
from safetensors.torch import load_file
from transformers import {more}

head = load_file("{head}")
trunk = {trunk}
hidden = trunk(input_ids=ids, attention_mask=attention).last_hidden_state
values = (hidden.float() @ head["weight"].T + head["bias"])[..., 0]
```
"""
