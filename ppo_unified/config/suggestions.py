"""Suggest an existing option for an unknown one, which may be a name from another PPO library or a misspelling."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ppo_unified.errors import closest_match

OTHER_NAMES = {  # option name in Stable-Baselines3, CleanRL or TRL -> option name in this project
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "adam_eps": "optim.eps",
    "anneal_lr": "optim.anneal",
    "total_timesteps": "total_steps",
    "timesteps": "total_steps",
    "max_steps": "total_steps",
    "num_envs": "gym.num_envs",
    "n_envs": "gym.num_envs",
    "env": "gym.env_id",
    "num_steps": "gym.num_steps",
    "n_steps": "gym.num_steps",
    "net_arch": "policy.hidden",
    "hidden_sizes": "policy.hidden",
    "n_epochs": "ppo.epochs",
    "num_epochs": "ppo.epochs",
    "update_epochs": "ppo.epochs",
    "num_ppo_epochs": "ppo.epochs",
    "batch_size": "ppo.minibatches",
    "minibatch_size": "ppo.minibatches",
    "num_minibatches": "ppo.minibatches",
    "num_mini_batches": "ppo.minibatches",
    "discount": "ppo.gamma",
    "gae_lambda": "ppo.lam",
    "clip_range": "ppo.clip",
    "clip_coef": "ppo.clip",
    "clip_eps": "ppo.clip",
    "cliprange": "ppo.clip",
    "clip_range_vf": "ppo.value_clip",
    "cliprange_value": "ppo.value_clip",
    "ent_coef": "ppo.entropy_coef",
    "entropy_coeff": "ppo.entropy_coef",
    "vf_coef": "ppo.value_coef",
    "normalize_advantage": "ppo.normalize_advantages",
    "norm_adv": "ppo.normalize_advantages",
    "beta": "llm.kl_coef",
    "response_length": "llm.max_new_tokens",
}
_COUNT = "ppo.minibatches is the number of minibatches per epoch, not their size"
NOTES = {"batch_size": _COUNT, "minibatch_size": _COUNT}


class Suggestion(NamedTuple):
    """An existing option, with a note if its meaning differs from that of the unknown option."""

    option: str
    note: str = ""


def suggest(unknown: str, options: Collection[str]) -> Suggestion | None:
    """Return the option that `unknown`, such as 'lr' or 'ppo.clip_range', most likely means, or None.

    If `unknown` is the name of an option in another PPO library, return the corresponding option. Otherwise return the
    option with the most similar name. Options in the same section take precedence over options in other sections.
    """
    section, _, key = unknown.rpartition(".")
    if (option := OTHER_NAMES.get(key, "")) in options:
        return Suggestion(option, NOTES.get(key, ""))
    inside = [option for option in options if option.rpartition(".")[0] == section]
    for group in (inside, options):
        by_key = {option.rpartition(".")[2]: option for option in group}
        if match := closest_match(key, by_key):
            return Suggestion(by_key[match])
    return None
