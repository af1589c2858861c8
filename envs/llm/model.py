"""Loading Hugging Face models, and the one form in which the adapter uses them: trunk and head called apart, LoRA by
name, dropout always off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from envs.llm.data import shorten
from envs.llm.options import LLM, TINY
from envs.llm.quiet import silence_peft, silence_transformers
from envs.llm.rewards.lora_reward_model import LoRAFolder, read_lora_folder, trunk_fingerprint
from ppo_unified.errors import UsageError

POLICY, CRITIC = "policy", "critic"  # names of the LoRA weights that are trained
HEAD_TOLERANCE = 1e-4  # between the head called apart and the whole model, relative to the largest logit


class Network(nn.Module):
    """A causal language model, or a trunk without a head, whose parts are called apart.

    `lora` names the LoRA to run with, None switches LoRA off; a model without any ignores it.
    """

    def __init__(self, model: Any, bf16: bool = False) -> None:
        """`model`: a transformers model. With `bf16` matrix products run in bfloat16 whatever the weights' type."""
        super().__init__()
        self.model = model.eval()
        self.bf16 = bf16
        self._peft_model: Any = None  # peft's view of `model`, where it has LoRA
        self._active: str | None = POLICY
        self._trained: list[nn.Parameter] = []  # of LoRA
        self._frozen: list[nn.Parameter] = []  # of LoRA, too: a reward model's

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        config = self.model.config.get_text_config()
        return int(config.hidden_size)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and response may have together."""
        return config_context_length(self.model.config)

    @property
    def has_lora(self) -> bool:
        return self._peft_model is not None

    def add_lora(self, options: LLM, names: list[str], seed: int) -> None:
        """Freeze the model and add LoRA (arXiv:2106.09685) under each of `names`, at first without any effect."""
        from peft import LoraConfig, get_peft_model

        targets: Any = options.lora_targets or "all-linear"
        lora = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_alpha, lora_dropout=0.0, target_modules=targets)
        with torch.random.fork_rng(devices=[]), silence_peft():
            torch.manual_seed(seed)
            try:
                self._set_peft_model(get_peft_model(self.model, copy.deepcopy(lora), adapter_name=names[0]))
                for name in names[1:]:
                    self._peft_model.add_adapter(name, copy.deepcopy(lora))
            except ValueError as error:
                raise UsageError(f"llm.lora_targets = {options.lora_targets}: {error}".splitlines()[0]) from None
        self.eval()
        self._trained = [p for name, p in self.model.named_parameters() if "lora_" in name]
        self._restore_requires_grad()

    def add_frozen_lora(self, name: str, folder: LoRAFolder, option: str) -> nn.Linear:
        """Add a reward model's LoRA beside those that are trained, under `name`; its head. Raises UsageError."""
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
            raise UsageError(f"{option} = {str(folder.path)!r}: does not fit on a {kind} ({misfits[0]})")
        self._frozen += self.lora_parameters(name)
        for parameter in self._frozen:
            parameter.data = parameter.data.to(self.device)
        self.eval()
        active, self._active = self._active, name
        self.use_lora(active)
        layer = nn.Linear(head["weight"].shape[1], 1, bias="bias" in head)
        layer.load_state_dict(head)
        return layer.to(self.device).requires_grad_(False)

    def _restore_requires_grad(self) -> None:
        """peft freezes what it switches off and thaws what it switches on; here the same ones are always trained."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def _set_peft_model(self, peft_model: Any) -> None:
        object.__setattr__(self, "_peft_model", peft_model)  # not a submodule: its modules are those of `model`

    @property
    def peft_model(self) -> Any:
        """peft's model around `model`; None without LoRA."""
        return self._peft_model

    def lora_parameters(self, name: str) -> list[nn.Parameter]:
        return [p for key, p in self.model.named_parameters() if f".{name}." in key and "lora_" in key]

    @torch.no_grad()
    def fingerprint(self) -> float:
        """One number of all frozen weights; another model's differs."""
        named = self.model.named_parameters()
        frozen = [p for name, p in named if not p.requires_grad and "lora_" not in name]  # a reward's LoRA is no base
        sums = [p.abs().sum(dtype=torch.float64) for p in frozen]
        return float(torch.stack([x.to(self.device) for x in sums]).sum())

    def use_lora(self, lora: str | None) -> None:
        """Switch to the LoRA of that name."""
        if self._peft_model is None or lora == self._active:
            return
        if lora is None:
            self._peft_model.base_model.disable_adapter_layers()
        else:
            self._peft_model.base_model.enable_adapter_layers()
            self._peft_model.base_model.set_adapter(lora)
        self._restore_requires_grad()
        self._active = lora

    def checkpoint_activations(self) -> None:
        """Recompute layers backward, under grad alone, so that the KV cache stays on while sampling.

        To be called last: a copy of the model would share what is put around its layers here. transformers' own switch
        asks for train mode, which would turn dropout on.
        """
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            kind = type(self.model).__name__
            raise UsageError(f"llm.gradient_checkpointing: {kind} has no layers that can be recomputed; switch it off")
        for layer in layers:
            layer.__dict__["forward"] = partial(self._recompute, layer.forward)

    def _recompute(self, forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        contexts = self._recompute_contexts
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    def _recompute_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """(around the forward pass, around its repetition backward, when another LoRA may be active by then)."""
        return nullcontext(), self._with_lora(self._active)

    @contextmanager
    def _with_lora(self, lora: str | None) -> Iterator[None]:
        before = self._active
        self.use_lora(lora)
        try:
            yield
        finally:
            self.use_lora(before)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def trunk(self, tokens: Tensor, lora: str | None = POLICY) -> Tensor:
        """Hidden states [R, L, H] (after the last norm) of rows [R, L] that are padded on the right, if at all.

        No mask is needed: a causal model's column never sees what stands to its right.
        """
        self.use_lora(lora)
        with self.precision():
            hidden: Tensor = self.model.base_model(input_ids=tokens.to(self.device), use_cache=False).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor, lora: str | None = POLICY) -> Tensor:
        """Logits [n, V] in float32 of hidden states [n, H], through everything that the model does after its trunk
        (scaling, soft caps): the model runs with a trunk that returns `hidden`."""
        self.use_lora(lora)
        output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])
        with _replace_output(self._trunks(), output), self.precision():
            logits: Tensor = self.model(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()

    def _trunks(self) -> list[nn.Module]:
        """What the model may ask for hidden states: its base, or, as OPT does, the decoder inside that."""
        return list({id(m): m for m in (self.model.base_model, self.model.get_decoder())}.values())

    @torch.no_grad()
    def check_head(self, name: str) -> None:
        """Raises UsageError where trunk and head called apart are not the model."""
        tokens = torch.arange(4, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        with self.precision():
            whole = self.model(input_ids=tokens, use_cache=False).logits[0].float()
        apart = self.logits(self.trunk(tokens)[0])
        error, scale = float((whole - apart).abs().max()), float(whole.abs().max())
        if error > HEAD_TOLERANCE * max(1.0, scale):
            raise UsageError(
                f"llm.model = {name!r}: {type(self.model).__name__} computes its logits from more than the last hidden "
                f"state (difference {error:.3g}); such models can't be trained here"
            )


def config_context_length(config: Any) -> int:
    """Tokens that a model of this configuration reads at most."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)


@contextmanager
def _replace_output(modules: list[nn.Module], output: Any) -> Iterator[None]:
    """Let `modules` return `output` whatever they are called with."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def resolve(name: str) -> str:
    """The folder or hub id that a model's name means; 'tiny' is made at first use."""
    if name == TINY:
        from envs.llm.tiny import tiny_model

        return str(tiny_model())
    return name


def load_tokenizer(name: str, option: str = "llm.model") -> Any:
    """Raises UsageError in one line where there is none."""
    return _load(partial(AutoTokenizer.from_pretrained, padding_side="left"), name, option, "tokenizer")


def load_config(name: str, option: str = "llm.model") -> Any:
    """A model's configuration; the LoRA of a reward model has that of its base, with one label. Raises UsageError."""
    folder = read_lora_folder(resolve(name))
    if folder is None:
        return _load(AutoConfig.from_pretrained, name, option, "configuration")
    config = load_config(folder.base, f"the base of {option} = {name!r}")
    config.num_labels, config.architectures = 1, ["AdapterForSequenceClassification"]
    return config


def location(name: str) -> str:
    """A hub id as it is, a folder so that it is found from everywhere on this machine."""
    path = Path(resolve(name))
    return str(path.resolve()) if path.is_dir() else name


def load_causal_lm(name: str, options: LLM, device: torch.device, dtype: torch.dtype) -> Any:
    """The model's weights in `dtype` on `device`, in 4 bits where asked for. Raises UsageError."""
    more: dict[str, Any] = {}
    if options.quantize == "4bit":
        from transformers import BitsAndBytesConfig

        more = {
            "device_map": {"": device},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, options.dtype),
            ),
        }
    model = _load_whole(partial(AutoModelForCausalLM.from_pretrained, dtype=dtype, **more), name, "llm.model")
    return model if more else model.to(device)


def load_trunk(name: str, option: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, nn.Linear | None]:
    """A model without its language-model head, and a reward model's head where there is one. Raises UsageError."""
    config = load_config(name, option)
    scores = any("SequenceClassification" in kind for kind in getattr(config, "architectures", None) or [])
    if scores:
        model = load_reward_model(name, option, dtype).to(device)
        head = next(
            (m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear) and m.out_features == 1), None
        )
        return model.base_model, head
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype)
    return _load_whole(load, name, option).to(device).base_model, None


def load_reward_model(name: str, option: str, dtype: torch.dtype) -> Any:
    """A reward model, LoRA added to its base's weights. Raises UsageError, for one that lacks weights too: what is
    drawn at random would score as happily."""
    folder = read_lora_folder(resolve(name))
    if folder is not None:
        return _merge(folder, option, dtype)
    load = partial(AutoModelForSequenceClassification.from_pretrained, dtype=dtype, output_loading_info=True)
    model, loading = _load(load, name, option, "scoring model")
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{option} = {name!r} is not a scoring model: it lacks {', '.join(missing[:3])}, which would be random"
        )
    return model


def _merge(folder: LoRAFolder, option: str, dtype: torch.dtype) -> Any:
    from peft import PeftModel

    where = f"the base of {option} = {str(folder.path)!r}"
    folder.weights()  # refused where it has no head, which peft would draw at random
    load = partial(AutoModelForSequenceClassification.from_pretrained, num_labels=1, dtype=dtype)
    base = _load(load, folder.base, where, "scoring model")
    folder.check_base(trunk_fingerprint(base), dtype)
    try:
        with silence_peft():
            return PeftModel.from_pretrained(base, str(folder.path), torch_device="cpu").merge_and_unload()
    except (ValueError, RuntimeError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{option} = {str(folder.path)!r}: does not fit on {folder.base} ({why})") from None


def _load_whole(load: Callable[..., Any], name: str, option: str) -> Any:
    """A causal language model. Raises UsageError where the folder lacks weights, which would start at random."""
    model, found = _load(partial(load, output_loading_info=True), name, option, "causal language model")
    if found["missing_keys"]:
        lacking = ", ".join(sorted(found["missing_keys"])[:3])
        raise UsageError(f"{option} = {name!r}: is no whole causal language model, its file lacks {lacking}")
    return model


def _load(load: Callable[..., Any], name: str, option: str, what: str) -> Any:
    path = resolve(name)
    if Path(path).exists() and not Path(path).is_dir():
        raise UsageError(f"{option} = {name!r}: is a file; the folder of a Hugging Face model or a hub id was expected")
    here = Path(path).is_dir()
    try:
        with silence_transformers():
            options = {} if here or _is_hub_reachable() else {"local_files_only": True}
            return load(path, trust_remote_code=False, **options)  # left out, transformers would ask on the terminal
    except Exception as error:  # damaged files raise whatever their readers raise
        why = shorten(f"{type(error).__name__}: {error}", 200)
        if here:
            raise UsageError(f"{option} = {name!r}: no {what} can be loaded from there ({why})") from None
        raise UsageError(
            f"{option} = {name!r}: there is no such folder, and neither the hub nor its cache here gave a {what} of "
            f"that name; check the spelling and the network, or name a local folder ({why})"
        ) from None


@cache
def _is_hub_reachable() -> bool:
    """Asked once: transformers itself asks again and again, for half a minute and more, before it gives up."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # whatever the network has to say
        return False
    return True
