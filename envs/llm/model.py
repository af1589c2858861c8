"""Loads Hugging Face models and wraps them in `Network`.

A `Network` runs its trunk and its head in separate calls and never applies dropout. It can contain several sets of LoRA
weights, each with its own name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from envs.llm.data import shorten
from envs.llm.hub import is_hub_reachable
from envs.llm.lora_model import MERGING, check_lora_files, check_lora_weights, merge_lora_model, read_lora_model
from envs.llm.named_models import resolve
from envs.llm.options import LLM
from envs.llm.quiet import silence_peft, silence_transformers
from envs.llm.rewards.lora_reward_model import CONFIG as LORA_CONFIG
from envs.llm.rewards.lora_reward_model import LoRAFolder, read_lora_folder, trunk_fingerprint
from envs.llm.structure import config_context_length, find_unloadable_layer, replace_output, trunk_of, unsuitable_layers
from ppo_unified.errors import UsageError

POLICY, CRITIC = "policy", "critic"  # names of the trained LoRA weights
CAUSAL_LM = "causal language model"


class Network(nn.Module):
    """A causal language model whose trunk and head can be called separately, or a trunk without a head.

    The `lora` argument of a method is the name of the LoRA weights to use, or None to disable LoRA. A model without
    LoRA ignores this argument.
    """

    def __init__(self, model: Any, bf16: bool = False) -> None:
        """Wrap a transformers model. If `bf16` is True, matrix products use bfloat16 for weights of any dtype."""
        super().__init__()
        self.model = model.eval()
        self.bf16 = bf16
        self._trunk_output: type[Any] | None = None  # type of what the trunk returns, once it has run
        self.decoding = "padded"  # name of the decoder, which `check_policy` selects
        self.uses_top_k = False  # True if it selects experts or attention keys with top-k; `check_policy` finds out
        self.row_dimensions: dict[str, int] | None = None  # of the tensors in the model's cache; see generate.py
        self._peft_model: Any = None  # peft's wrapper around `model`, if it has LoRA
        self._active: str | None = POLICY
        self._lora_layers: list[Any] = []
        self._trained: list[nn.Parameter] = []  # LoRA weights of policy and critic
        self._frozen: list[nn.Parameter] = []  # LoRA weights of reward models

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def width(self) -> int:
        """The size of a hidden state. It is measured, because some models project it to a size of their own."""
        return self._run_trunk().shape[-1]

    @property
    def context_length(self) -> int:
        """The maximum number of tokens in a prompt and its response together."""
        return config_context_length(self.model.config)

    @property
    def active_lora(self) -> str | None:
        return self._active

    @property
    def has_lora(self) -> bool:
        return self._peft_model is not None

    def add_lora(self, options: LLM, names: list[str], seed: int) -> None:
        """Freeze the model and add one set of LoRA weights (arXiv:2106.09685) for each name.

        The new weights initially have no effect.
        """
        from peft import LoraConfig, get_peft_model

        targets: Any = options.lora_targets or "all-linear"
        lora = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_alpha, lora_dropout=0.0, target_modules=targets)
        if not options.lora_targets:
            lora.exclude_modules = unsuitable_layers(self.model, lora)
        with torch.random.fork_rng(devices=[]), silence_peft():
            torch.manual_seed(seed)
            try:
                self._set_peft_model(get_peft_model(self.model, copy.deepcopy(lora), adapter_name=names[0]))
                for name in names[1:]:
                    self._peft_model.add_adapter(name, copy.deepcopy(lora))
            except ValueError as error:
                why = (str(error).splitlines() or [""])[0]
                raise UsageError(
                    f"llm.lora_targets = {options.lora_targets}: cannot add LoRA weights ({why})"
                ) from None
        if layer := find_unloadable_layer(self._peft_model, names[0]):
            raise UsageError(
                f"llm.lora_targets = {options.lora_targets}: exported LoRA weights of {layer} could not be loaded; "
                "name other layers, such as q_proj and v_proj, or train all weights with llm.lora_rank = 0"
            )
        self._trained = [p for name, p in self.model.named_parameters() if "lora_" in name]
        self._finish_adding(POLICY)

    def add_frozen_lora(self, name: str, folder: LoRAFolder, option: str) -> nn.Linear:
        """Add a reward model's frozen LoRA weights under `name`, and return its score head.

        Raises UsageError if the LoRA weights cannot be read or do not fit this model.
        """
        from peft import LoraConfig, set_peft_model_state_dict

        if not getattr(self.model, "is_quantized", False):
            folder.check_base(trunk_fingerprint(self.model), self.model.dtype)
        weights, head = folder.weights()
        lora = LoraConfig.from_pretrained(str(folder.path))
        lora.task_type, lora.modules_to_save, lora.inference_mode = None, None, False
        try:
            with silence_peft():
                self._peft_model.add_adapter(name, lora)
                loading: Any = set_peft_model_state_dict(self._peft_model, weights, adapter_name=name)
            misfits = loading.unexpected_keys or [key for key in loading.missing_keys if f".{name}." in key]
        except (ValueError, RuntimeError, KeyError) as error:
            misfits = [" ".join(str(error).split())[:200]]
        if misfits:
            kind = type(self.model).__name__
            raise UsageError(f"{option} = {str(folder.path)!r}: the LoRA weights do not fit {kind} ({misfits[0]})")
        self._frozen += self.lora_parameters(name)
        for parameter in self._frozen:
            parameter.data = parameter.data.to(self.device)
        self._finish_adding(self._active)
        layer = nn.Linear(head["weight"].shape[1], 1, bias="bias" in head)
        layer.load_state_dict(head)
        return layer.to(self.device).requires_grad_(False)

    def _set_peft_model(self, peft_model: Any) -> None:
        object.__setattr__(self, "_peft_model", peft_model)  # not registered: `model` has its modules

    @property
    def peft_model(self) -> Any:
        """The peft model that wraps `model`, or None if there is no LoRA."""
        return self._peft_model

    def lora_parameters(self, name: str) -> list[nn.Parameter]:
        return [p for key, p in self.model.named_parameters() if f".{name}." in key and "lora_" in key]

    @torch.no_grad()
    def fingerprint(self) -> float:
        """Return a number that identifies the model: the sum of the absolute values of all frozen non-LoRA weights."""
        named = self.model.named_parameters()
        frozen = [p for name, p in named if not p.requires_grad and "lora_" not in name]  # not those of reward models
        sums = [p.abs().sum(dtype=torch.float64) for p in frozen]
        return float(torch.stack([x.to(self.device) for x in sums]).sum())

    def use_lora(self, lora: str | None) -> None:
        """Activate the LoRA weights with the name `lora`, or disable LoRA if `lora` is None."""
        if self._peft_model is not None and lora != self._active:
            self._activate(lora)

    def _activate(self, lora: str | None) -> None:
        for layer in self._lora_layers:  # peft's own method is much slower and changes requires_grad
            layer._disable_adapters = lora is None
            if lora is not None:
                layer._active_adapter = [lora]
        self._active = lora

    def _finish_adding(self, active: str | None) -> None:
        """Find the layers with LoRA weights, activate the weights `active`, and let only trained ones require grad."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.eval()
        self._lora_layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        self._activate(active)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """Make each layer recompute its activations in the backward pass, to save memory.

        If gradients are disabled, layers run normally, so sampling can use the KV cache. The equivalent switch in
        transformers is not used, because it requires train mode, which would enable dropout. Call this method last:
        a copy of the model that is made later would share the wrapped layers.
        """
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            kind = type(self.model).__name__
            raise UsageError(f"llm.gradient_checkpointing: not supported for {kind}; set it to false")
        for layer in layers:
            layer.__dict__["forward"] = partial(self._recompute, layer.forward)

    def _recompute(self, forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        contexts = self._recompute_contexts
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    def _recompute_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return context managers that make the forward pass and its recomputation use the same LoRA weights."""
        return nullcontext(), self._with_lora(self._active)

    @contextmanager
    def _with_lora(self, lora: str | None) -> Iterator[None]:
        """Activate `lora` and leave it active: the next layer of a backward pass usually needs the same weights."""
        self.use_lora(lora)
        yield

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def trunk(self, tokens: Tensor, lora: str | None = POLICY) -> Tensor:
        """Return the hidden states [R, L, H] after the last norm. `tokens` [R, L] is padded on the right.

        No attention mask is needed, because a causal model never attends to later tokens, such as this padding.
        """
        self.use_lora(lora)
        with self.precision():
            output = trunk_of(self.model)(input_ids=tokens.to(self.device), use_cache=False)
        self._trunk_output = type(output)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.no_grad()
    def _run_trunk(self) -> Tensor:
        """Return the hidden state [1, 1, H] of a single token."""
        return self.trunk(torch.zeros(1, 1, dtype=torch.long), self._active)

    def logits(self, hidden: Tensor, lora: str | None = POLICY) -> Tensor:
        """Return float32 logits [n, V] for the hidden states [n, H].

        This calls the full model, but replaces its trunk with a stub that returns `hidden`. Scaling and soft caps after
        the head are therefore included.
        """
        if self._trunk_output is None:
            self._run_trunk()
        assert self._trunk_output is not None
        self.use_lora(lora)
        output = self._trunk_output(last_hidden_state=hidden[None])  # the type has further fields in some families
        with replace_output(self._trunks(), output), self.precision():
            logits: Tensor = self.model(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()

    def _trunks(self) -> list[nn.Module]:
        """Return the modules that compute the hidden states: the trunk and, for OPT, the decoder inside it."""
        trunk, decoder = trunk_of(self.model), self.model.get_decoder()
        inner = [decoder] if any(module is decoder for module in trunk.modules()) else []
        return list({id(m): m for m in (trunk, *inner)}.values())


def load_tokenizer(name: str, option: str = "llm.model") -> Any:
    """Load the tokenizer of a model. Raises UsageError if the tokenizer cannot be loaded.

    A folder with the LoRA weights of a language model may contain a tokenizer of its own. Otherwise, load its base's.
    """
    where = f"{option} = {name!r}"
    lora = read_lora_model(resolve(name), where)
    if lora is not None and not any(lora.path.glob("tokenizer*")):
        return load_tokenizer(lora.base, f"{where}, base model")
    return _load(partial(AutoTokenizer.from_pretrained, padding_side="left"), name, option, "tokenizer")


def load_config(name: str, option: str = "llm.model", merges_lora: bool = False) -> Any:
    """Load a model's configuration.

    For a LoRA reward model, load the configuration of its base model and set the number of labels to 1. If
    `merges_lora` is True, the folder may contain LoRA weights of a language model, and the configuration of their base
    is loaded. Raises UsageError if the configuration cannot be loaded, or if the LoRA weights are not supported or do
    not fit their base.
    """
    where = f"{option} = {name!r}"
    lora = read_lora_model(resolve(name), where) if merges_lora else None
    if lora is not None:
        config = load_config(lora.base, f"{where}, base model")
        check_lora_weights(lora, config, where)
        return config
    folder = read_lora_folder(resolve(name))
    check_lora_files(Path(resolve(name)), where, is_supported=folder is not None)
    if folder is None:
        return _load(AutoConfig.from_pretrained, name, option, "configuration")
    config = load_config(folder.base, f"{option} = {name!r}, base model")
    config.num_labels, config.architectures = 1, ["AdapterForSequenceClassification"]
    return config


def location(name: str) -> str:
    """Return the absolute path of a model folder, or return a hub id unchanged."""
    path = Path(resolve(name))
    return str(path.resolve()) if path.is_dir() else name


def load_causal_lm(name: str, options: LLM, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a causal language model in `dtype`, or in 4 bits if `llm.quantize` is '4bit'.

    LoRA weights are merged into their base in float32. Raises UsageError if the model cannot be loaded.
    """
    if options.quantize == "4bit":
        from transformers import BitsAndBytesConfig

        more: dict[str, Any] = {
            "device_map": {"": device},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, options.dtype),
            ),
        }
        load = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype, **more)
        return _load_complete(load, name, "llm.model", CAUSAL_LM)
    return _load_language_model(name, "llm.model", dtype).to(device)


def _load_language_model(name: str, option: str, dtype: torch.dtype) -> Any:
    """Load a causal language model and merge its LoRA weights, if it has any, into their base."""
    where = f"{option} = {name!r}"
    lora = read_lora_model(resolve(name), where)
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype if lora is None else torch.float32)
    if lora is None:
        return _load_complete(load, name, option, CAUSAL_LM)
    base = _load_complete(load, lora.base, f"{where}, base model", CAUSAL_LM)
    return merge_lora_model(lora, base, where).to(dtype)


def load_trunk(name: str, option: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, nn.Linear | None]:
    """Load a model and return (trunk, score head). The score head is None if the model is not a reward model.

    Raises UsageError if the model cannot be loaded.
    """
    config = load_config(name, option, merges_lora=True)
    is_reward_model = any("SequenceClassification" in kind for kind in getattr(config, "architectures", None) or [])
    if is_reward_model:
        model = load_reward_model(name, option, dtype).to(device)
        head = next(
            (m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear) and m.out_features == 1), None
        )
        return model.base_model, head
    return trunk_of(_load_language_model(name, option, dtype).to(device)), None


def load_reward_model(name: str, option: str, dtype: torch.dtype) -> Any:
    """Load a reward model. If the reward model consists of LoRA weights, merge them into their base.

    Raises UsageError if weights are missing, because transformers would initialize them randomly.
    """
    folder = read_lora_folder(resolve(name))
    if folder is not None:
        return _merge(folder, option, dtype)
    load = partial(AutoModelForSequenceClassification.from_pretrained, dtype=dtype)
    return _load_complete(load, name, option, "reward model")


def _merge(folder: LoRAFolder, option: str, dtype: torch.dtype) -> Any:
    from peft import PeftModel

    where = f"{option} = {str(folder.path)!r}, base model"
    folder.weights()  # rejects a folder without a head, which peft would initialize randomly
    load = partial(AutoModelForSequenceClassification.from_pretrained, num_labels=1, dtype=dtype)
    base = _load_complete(load, folder.base, where, "reward model", head="score.")
    folder.check_base(trunk_fingerprint(base), dtype)
    try:
        with silence_peft():
            return PeftModel.from_pretrained(base, str(folder.path), torch_device="cpu").merge_and_unload()
    except (ValueError, RuntimeError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        source = f"{option} = {str(folder.path)!r}"
        raise UsageError(f"{source}: the LoRA weights do not fit {folder.base} ({why})") from None


def _load_complete(load: Callable[..., Any], name: str, option: str, what: str, head: str | None = None) -> Any:
    """Load a model. Raises UsageError if its files and its configuration describe different weights.

    transformers would initialize missing weights randomly and ignore additional ones. Weights whose names start with
    `head` may be missing, and additional weights outside the trunk, such as another head, are ignored.
    """
    model, found = _load(partial(load, output_loading_info=True), name, option, what)
    where = f"{option} = {name!r}"
    if getattr(model, "_hf_peft_config_loaded", False):  # a hub model, because local folders are checked earlier
        raise UsageError(f"{where}: expected only full weights, but found {LORA_CONFIG}; merge both (see {MERGING})")
    if missing := sorted(key for key in found["missing_keys"] if head is None or not key.startswith(head)):
        raise UsageError(f"{where}: expected a complete {what}, got one without {', '.join(missing[:3])}")
    check_unexpected_weights(model, found["unexpected_keys"], where)
    return model


def check_unexpected_weights(model: nn.Module, keys: Iterable[str], where: str) -> None:
    """Raise UsageError if the files contain weights of the trunk that config.json does not describe.

    `keys` are the names of all tensors that were not loaded. Constants, such as the causal masks that older versions of
    transformers stored, are ignored: their modules exist and have no weights.
    """
    modules = dict(model.named_modules())
    for key in sorted(key for key in keys if key.startswith(f"{model.base_model_prefix}.")):
        module = modules.get(key.rpartition(".")[0])
        if module is None or next(module.parameters(recurse=False), None) is not None:
            raise UsageError(
                f"{where}: expected the weights that config.json describes, but the files also contain {key}; copy or "
                "download the folder again"
            )


def _load(load: Callable[..., Any], name: str, option: str, what: str) -> Any:
    path = resolve(name)
    if Path(path).exists() and not Path(path).is_dir():
        raise UsageError(f"{option} = {name!r}: expected a Hugging Face model folder or a hub id, got a file")
    is_local = Path(path).is_dir()
    try:
        with silence_transformers():
            options = {} if is_local or is_hub_reachable() else {"local_files_only": True}
            return load(path, trust_remote_code=False, **options)  # by default, transformers asks the user
    except Exception as error:  # damaged files raise many kinds of exceptions
        why = shorten(f"{type(error).__name__}: {error}", 200)
        if is_local:
            raise UsageError(
                f"{option} = {name!r}: cannot load a {what} from this folder ({why}); is a file missing or damaged?"
            ) from None
        raise UsageError(
            f"{option} = {name!r}: no local folder or hub model has this name, or the hub cannot be reached; check the "
            f"name and the network ({why})"
        ) from None
