"""Verifies that the LLM adapter and the Gymnasium adapter pass the same numbers to the engine for one token MDP.

Each adapter collects a rollout. `LLMAdapter` evaluates complete, padded sequences. `GymAdapter` steps `TokenMDP`. To
compute rewards and log-probs, this side calls the model with one unpadded prefix at a time, without code from envs/llm.
It replays the responses that `LLMAdapter` has sampled, so that both rollouts contain the same steps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.gym.options import Gym, GymConfig
from envs.gym.policy import Actor, GymPolicy
from envs.gym.vector import GymAdapter
from envs.llm.adapter import LLMAdapter
from envs.llm.generate import Responses
from envs.llm.options import LLM, LLMConfig, TokenPPO
from envs.llm.policy import NOT_CHOSEN, TokenPolicy
from envs.llm.quiet import silence_transformers
from envs.token_mdp import Logprobs, decode_obs
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import Batch, minibatches
from ppo_unified.engine.ppo import backward, make_batch, make_learner, ppo_loss
from ppo_unified.engine.rollout import ActorCritic, Evaluation, Observations, Rollout

TOLERANCE = 1e-5  # relative to the largest absolute value in the tensor, or absolute if that is below 1
CPU = torch.device("cpu")
SEED = 4  # with this seed, half of the responses end with an end token
LETTERS = "abcdefgh"  # the vocabulary without the end token
PROMPTS = ("a", "bc", "cab", "dd", "ehfga", "fb", "gcaheb", "hd")  # Steps requires different first letters
LIMIT = 8  # maximum number of tokens per response
ENVIRONMENTS = 2  # each environment uses all prompts, in its own order
OPTIONS = TokenPPO(
    gamma=0.97,
    lam=0.9,
    normalize_advantages="minibatch",
    value_clip=0.1,
    value_coef=0.5,
    entropy_coef=0.01,
    microbatch_columns=40,  # small enough for several micro-batches
)

# Maps a step's prefix and action to its row and column. Keys are unique, because there is one response per prompt and
# no prompt is a prefix of another.
Steps = dict[tuple[int, ...], tuple[int, int]]


class Check(NamedTuple):
    """The result of comparing two tensors: their largest absolute value and their largest absolute difference."""

    quantity: str
    largest: float
    difference: float
    ok: bool


class Proof(NamedTuple):
    """The results of all comparisons, and the number of occurrences of each case that they should cover."""

    checks: list[Check]
    cases: dict[str, int]


def prove(seed: int = SEED, critic: Literal["independent", "shared"] = "independent") -> Proof:
    """Compare the two adapters on one token MDP, and compare the engine's policy gradient with the exact gradient.

    If the adapters collect different steps, the remaining comparisons are skipped.
    """
    with tempfile.TemporaryDirectory(prefix="ppo-unified-prove-") as name, _use_one_quiet_thread():
        proof = compare_adapters(Path(name) / "adapters", seed, critic)
        if proof.checks[0].ok:
            proof.checks.append(compare_with_exact_gradient(Path(name) / "exact", seed, critic))
    return proof


@contextmanager
def _use_one_quiet_thread() -> Iterator[None]:
    """Use one thread, which is faster for small tensors, and disable progress bars."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with silence_transformers():
            yield
    finally:
        torch.set_num_threads(threads)


def compare_adapters(folder: Path, seed: int, critic: Literal["independent", "shared"]) -> Proof:
    """Compare the two adapters on the same responses, from the log-probs to the gradients of all parameters."""
    tokens = token_adapter(folder, LETTERS, PROMPTS, LIMIT, seed, critic)
    rollout = tokens.collect()
    stepped = gym_adapter(tokens, rollout)
    gym_rollout = stepped.collect()
    stepped.close()
    ours, theirs = token_steps(rollout), gym_steps(gym_rollout)
    same_steps = check_none("steps", len(ours), len(ours.keys() ^ theirs.keys()))
    if not same_steps.ok:
        return Proof([same_steps], {})
    own, other = (tuple(torch.tensor([steps[key] for key in ours]).T) for steps in (ours, theirs))
    checks = [same_steps]
    for name in ("logprobs", "values", "rewards", "next_values", "continues"):
        checks.append(compare(name, getattr(rollout, name)[own], getattr(gym_rollout, name)[other]))
    batch = make_batch(rollout, OPTIONS)
    number = gym_rollout.mask.flatten().cumsum(0).view_as(gym_rollout.mask) - 1  # index of each step in the batch
    gym_batch = make_batch(gym_rollout, OPTIONS)[number[other]]
    for name in ("advantages", "returns"):
        checks.append(compare(name, getattr(batch, name)[own], getattr(gym_batch, name)[:, 0]))
    rewards, values = gym_rollout.rewards[other].tolist(), gym_batch.values[:, 0].tolist()
    defined = advantages_by_definition(own[0].tolist(), rewards, values)
    checks.append(compare("advantages by definition", batch.advantages[own], defined))
    add_noise(tokens.policy, 0.01, seed)  # so that some ratios are clipped
    updates = compute_update(tokens.policy, batch), compute_update(PrefixPolicy(tokens.policy), gym_batch)
    checks += compare_updates(*updates)
    cases = count_cases(tokens, batch, gym_rollout)
    return Proof([*checks, check_none("cases", len(cases), list(cases.values()).count(0))], cases)


def compare(quantity: str, ours: Tensor, theirs: Tensor) -> Check:
    """Compare two tensors of equal shape. The check fails if either tensor contains NaN."""
    ours, theirs = ours.double(), theirs.double()
    largest, difference = float(ours.abs().max()), float((ours - theirs).abs().max())
    return Check(quantity, largest, difference, difference <= TOLERANCE * max(1.0, largest))


def check_none(quantity: str, count: int, wrong: int) -> Check:
    """Return a check that passes if none of `count` items is wrong. `wrong` is the number of wrong items."""
    return Check(quantity, float(count), float(wrong), wrong == 0)


# The adapters


def token_adapter(
    folder: Path,
    letters: str,
    prompts: Sequence[str],
    limit: int,
    seed: int,
    critic: Literal["independent", "shared"],
    count: int = 0,
) -> LLMAdapter:
    """Create an LLM adapter whose tokens are letters. Its rollout has `count` responses, or one per prompt if `count`
    is 0. Noise is added to its reference model and critic, so that the KL and the value estimates are not 0."""
    save_model(folder, letters, seed)
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts), encoding="utf-8")
    llm = LLM(
        model=str(folder),
        prompts=str(file),
        reward="envs.prove:reward",
        max_new_tokens=limit,
        rollout_batch=count or len(prompts),
        critic=critic,
        temperature=0.8,
        kl_coef=0.1,
        missing_eos_penalty=0.5,
    )
    adapter = LLMAdapter(LLMConfig(seed=seed, llm=llm, ppo=OPTIONS), CPU, notes=False)
    assert adapter.policy.critic is not None
    add_noise(adapter.reference.network, 0.05, seed + 1)
    add_noise(adapter.policy.critic, 0.1, seed + 2)
    return adapter


def save_model(folder: Path, letters: str, seed: int) -> None:
    """Save a causal language model with random weights. Its vocabulary has one token per letter and an end token."""
    end = len(letters)
    config = LlamaConfig(
        vocab_size=end + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {letter: token for token, letter in enumerate([*letters, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def response_score(prompt: str, response: str) -> float:
    """Return the sum over the response's distinct letters: 0.75 if a letter is also in the prompt, otherwise 0.25."""
    return 0.25 * len(set(response)) + 0.5 * len(set(response) & set(prompt))


def reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return the `response_score` of each response in a batch. The LLM adapter uses this function as its reward."""
    return [response_score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def gym_adapter(tokens: LLMAdapter, rollout: Rollout) -> GymAdapter:
    """Create a Gymnasium adapter for the same MDP and parameters. It replays the responses in the rollout."""
    llm, config = tokens.config.llm, tokens.policy.network.model.config
    end = config.eos_token_id

    def score(prompt: list[int], response: list[int]) -> float:
        texts = ["".join(LETTERS[token] for token in ids if token != end) for ids in (prompt, response)]
        return response_score(*texts) - (0.0 if response[-1] == end else llm.missing_eos_penalty)

    mdp = {
        "prompts": tokens.prompts.tokens,
        "vocabulary": config.vocab_size,
        "end_tokens": [end],
        "max_new_tokens": llm.max_new_tokens,
        "policy": plain_logprobs(tokens.policy.network.model, llm.temperature),
        "reference": plain_logprobs(tokens.reference.network.model, llm.temperature),
        "score": score,
        "kl_coef": llm.kl_coef,
    }
    options = Gym(
        env_id="envs.token_mdp:TokenMDP-v0",
        num_envs=ENVIRONMENTS,
        num_steps=len(tokens.prompts.tokens) * (llm.max_new_tokens + 1),  # one reset column per response
        vectorization="sync",
        env_kwargs=mdp,
    )
    adapter = GymAdapter(GymConfig(seed=tokens.config.seed, gym=options), CPU)
    adapter.policy = cast(GymPolicy, PrefixPolicy(tokens.policy, responses_by_prompt(tokens, rollout)))
    return adapter


def responses_by_prompt(tokens: LLMAdapter, rollout: Rollout) -> dict[tuple[int, ...], list[int]]:
    """Return each prompt's response, up to the end token or the limit. The mask is not used, since it is under test."""
    assert isinstance(rollout.obs, Tensor)
    end, found = tokens.policy.network.model.config.eos_token_id, {}
    for states, last in zip(rollout.obs.tolist(), rollout.actions[:, -1].tolist(), strict=True):
        prompt = next(p for p in tokens.prompts.tokens if states[: len(p)] == p)
        response = [*states, *([] if last == NOT_CHOSEN else [last])][len(prompt) :][: tokens.config.llm.max_new_tokens]
        found[tuple(prompt)] = response[: response.index(end) + 1] if end in response else response
    return found


def next_logprobs(model: nn.Module, prefix: list[int], temperature: float) -> Tensor:
    """Call the model directly and return the log-probs [V] of the token that follows a prefix."""
    logits: Tensor = model(input_ids=torch.tensor([prefix]), use_cache=False).logits[0, -1]
    return (logits / temperature).log_softmax(-1)


def plain_logprobs(model: nn.Module, temperature: float) -> Logprobs:
    return torch.no_grad()(lambda prefix: next_logprobs(model, prefix, temperature).numpy())


class PrefixPolicy(ActorCritic):
    """Replays given responses, and evaluates one observation at a time with the token policy's parameters."""

    scaler, row_len = None, 1  # GymAdapter reads these attributes

    def __init__(self, policy: TokenPolicy, written: Mapping[tuple[int, ...], list[int]] | None = None) -> None:
        """Create the policy. `written` maps each prompt to the response that is replayed."""
        super().__init__()
        self.policy, self.written = policy, written or {}

    def read(self, obs: Tensor) -> Tensor:
        return obs

    def initial_states(self, count: int) -> None:
        """Return None, because this policy has no memory."""

    def make_actor(self, generator: torch.Generator | None, steps: int = 1) -> Actor:
        return self._act

    def _act(self, obs: Tensor, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
        """Return the next token of each response, [N, 1]. In a reset column, it is token 0."""
        return torch.tensor([[self._replay(*decode_obs(row))] for row in obs.tolist()])

    def _replay(self, prompt: list[int], response: list[int]) -> int:
        return dict(enumerate(self.written[tuple(prompt)])).get(len(response), 0)

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Evaluate actions [R, 1, 1] at obs [R, 1, size], and return tensors [R, 1]."""
        assert isinstance(obs, Tensor)
        states = map(decode_obs, obs[:, 0].tolist())
        answers = [self._evaluate([*x, *y], token) for (x, y), token in zip(states, actions.flatten(), strict=True)]
        return Evaluation(*(torch.stack(x)[:, None] for x in zip(*answers, strict=True)))

    def _evaluate(self, prefix: list[int], token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = next_logprobs(self.policy.network.model, prefix, self.policy.temperature)
        critic = self.policy.critic
        assert critic is not None
        trunk = self.policy.network.model.base_model if critic.trunk is None else critic.trunk.model
        hidden = trunk(input_ids=torch.tensor([prefix]), use_cache=False).last_hidden_state[0, -1]
        return logprobs[token], -(logprobs.exp() * logprobs).sum(), critic.head(hidden).squeeze()

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.policy.critic_parameters())


# The comparisons


def token_steps(rollout: Rollout) -> Steps:
    assert isinstance(rollout.obs, Tensor)
    tokens, actions = rollout.obs.tolist(), rollout.actions.tolist()
    return {(*tokens[row][: t + 1], actions[row][t]): (row, t) for row, t in rollout.mask.nonzero().tolist()}


def gym_steps(rollout: Rollout) -> Steps:
    """Map each step to its row and column. If a response was replayed several times, use the first replay, because only
    the last one can be incomplete."""
    assert isinstance(rollout.obs, Tensor)
    steps: Steps = {}
    for t, row in rollout.mask.T.nonzero().tolist():
        prompt, response = decode_obs(rollout.obs[row, t].tolist())
        steps.setdefault((*prompt, *response, int(rollout.actions[row, t])), (row, t))
    return steps


def advantages_by_definition(episodes: list[int], rewards: list[float], values: list[float]) -> Tensor:
    """Compute GAE advantages from their definition, a double sum over the steps of each response.

    `episodes` contains the index of each step's response. The state after the last step of a response has value 0.
    """
    advantages = []
    for start, episode in enumerate(episodes):
        end = start + episodes[start:].count(episode)
        following = [*values[start + 1 : end], 0.0]
        deltas = [
            r + OPTIONS.gamma * after - v
            for r, v, after in zip(rewards[start:end], values[start:end], following, strict=True)
        ]
        advantages.append(sum((OPTIONS.gamma * OPTIONS.lam) ** k * delta for k, delta in enumerate(deltas)))
    return torch.tensor(advantages)


def add_noise(module: nn.Module, size: float, seed: int) -> None:
    """Add Gaussian noise with standard deviation `size` to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


class Update(NamedTuple):
    """The mean loss terms and the gradients of a minibatch that contains all steps."""

    terms: dict[str, float]
    gradients: dict[str, Tensor]


def compute_update(policy: ActorCritic, batch: Batch) -> Update:
    """Compute the loss terms and the gradients with the engine's functions `minibatches` and `backward`."""
    policy.zero_grad()
    (minibatch,) = minibatches(batch, 1, True, torch.Generator().manual_seed(0))
    learner = make_learner(policy, OPTIONS, Optim(), total_iterations=1)
    sums = backward(learner, minibatch, critic_only=False).sums
    mean = {name: float(sums[name] / sums["weight"]) for name in ("policy", "value", "entropy", "kl", "clip_fraction")}
    mean["total"] = mean["policy"] + OPTIONS.value_coef * mean["value"] - OPTIONS.entropy_coef * mean["entropy"]
    gradients = collect_gradients(policy)
    policy.zero_grad()
    return Update(mean, gradients)


def collect_gradients(policy: ActorCritic) -> dict[str, Tensor]:
    """Return the flattened gradients of the critic's own parameters and, separately, of all other parameters."""
    own = {id(p) for p in policy.critic_parameters()}
    sides: dict[str, list[Tensor]] = {"policy": [], "critic": []}
    for p in policy.parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        sides["critic" if id(p) in own else "policy"].append(gradient.flatten())
    return {side: torch.cat(gradients) for side, gradients in sides.items()}


def compare_updates(ours: Update, theirs: Update) -> list[Check]:
    checks = [compare(f"loss: {name}", *map(torch.tensor, (x, theirs.terms[name]))) for name, x in ours.terms.items()]
    return checks + [compare(f"gradient: {side}", x, theirs.gradients[side]) for side, x in ours.gradients.items()]


@torch.no_grad()
def count_cases(tokens: LLMAdapter, batch: Batch, gym_rollout: Rollout) -> dict[str, int]:
    """Count the occurrences of each case that the comparisons should cover. A case with none is not tested."""
    new, mask = tokens.policy.evaluate(batch.obs, batch.actions), batch.mask
    outside = ((new.logprobs - batch.logprobs).exp() - 1).abs()[mask] > OPTIONS.clip
    ended = (batch.actions == tokens.policy.network.model.config.eos_token_id).any(1)
    return {
        "responses with an end token": int(ended.sum()),
        "responses cut off at the limit": int((~ended).sum()),
        "reset columns": int((~gym_rollout.mask).sum()),
        "ratios within the clip range": int((~outside).sum()),
        "ratios outside the clip range": int(outside.sum()),
        "values clipped by value_clip": int(((new.values - batch.values).abs()[mask] > OPTIONS.value_clip).sum()),
    }


# The exact policy gradient


def compare_with_exact_gradient(folder: Path, seed: int, critic: Literal["independent", "shared"]) -> Check:
    """Compare PPO's gradient before any update, averaged over all responses, with that of the expected return.

    With two letters, an end token and at most two tokens per response, there are seven responses. The expected return
    (score - kl_coef * KL) is a finite sum that autograd can differentiate. The KL rewards add 0 to it.
    """
    end, prompt = 2, [0, 1]
    responses = [[end], *([a, b] for a, b in product((0, 1), (0, 1, end)))]
    tokens = token_adapter(folder, "ab", ["ab"], 2, seed, critic, len(responses))
    llm, network = tokens.config.llm, tokens.policy.network
    tokens.respond = lambda *_: _make_responses(prompt, responses, end)  # type: ignore[method-assign]
    rollout = tokens.collect()
    logprobs = _logprobs(network.model, prompt, responses, llm.temperature)
    with torch.no_grad():
        reference = _logprobs(tokens.reference.network.model, prompt, responses, llm.temperature)
    texts = ["".join(LETTERS[token] for token in y if token != end) for y in responses]
    penalties = torch.tensor([llm.missing_eos_penalty * (y[-1] != end) for y in responses])
    scores = torch.tensor([response_score("ab", text) for text in texts]) - penalties
    returns = scores - llm.kl_coef * (logprobs - reference)
    (logprobs.exp() * returns).sum().backward()
    exact = collect_gradients(tokens.policy)["policy"]
    tokens.policy.zero_grad()
    batch = make_batch(rollout, PPO(gamma=1.0, lam=1.0, normalize_advantages="none"))
    weights = batch.weights * logprobs.detach().exp()[:, None]
    loss = ppo_loss(tokens.policy.evaluate(batch.obs, batch.actions), replace(batch, weights=weights), PPO())
    (-loss.policy).backward()
    return compare("exact policy gradient", collect_gradients(tokens.policy)["policy"], exact)


def _make_responses(prompt: list[int], responses: list[list[int]], end: int) -> Responses:
    """Return the given responses in the format of sampled responses."""
    longest = len(prompt) + max(map(len, responses))
    rows = [[*prompt, *y] + [0] * (longest - len(prompt) - len(y)) for y in responses]
    lengths = torch.tensor([len(prompt) + len(y) for y in responses])
    ended = torch.tensor([y[-1] == end for y in responses])
    return Responses(torch.tensor(rows), torch.full_like(lengths, len(prompt)), lengths, ended)


def _logprobs(model: nn.Module, prompt: list[int], responses: list[list[int]], temperature: float) -> Tensor:
    """Return the log-probs [N] of complete responses."""
    terms = [
        [next_logprobs(model, [*prompt, *y[:t]], temperature)[token] for t, token in enumerate(y)] for y in responses
    ]
    return torch.stack([torch.stack(x).sum() for x in terms])
