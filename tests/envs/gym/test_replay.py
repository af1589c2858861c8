"""Episodes of a rollout are drawn again from their starts and actions, or the reason why they cannot be is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from envs.gym.options import named_code
from envs.gym.replay import replay
from envs.gym.vector import GymAdapter, alternatives, record
from ppo_unified import run as train
from ppo_unified.config.spec import Frame, ReplayError, StoredEpisode
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.training import checkpoint
from ppo_unified.training.collection import name_observations
from tests.envs.gym.test_resume import EXACT, _close_adapters, load_state, make_adapter, save_and_load
from tests.envs.gym.test_vector import make_config

__all__ = ["_close_adapters"]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # from the import of Box2D
BEFORE = "the episode began before this iteration's rollout"


class Collected(NamedTuple):
    """The episodes in one rollout of an adapter, and the record that was stored with it."""

    adapter: GymAdapter
    record: Any
    episodes: list[StoredEpisode]
    ends: list[bool]  # True if the episode ended in the rollout

    def replay(self, number: int, first: int = 0) -> tuple[list[Frame], str]:
        """Replay an episode. Return its frames, and the reason why they end early or ""."""
        frames: list[Frame] = []
        try:
            for frame in replay(self.adapter.config, self.record, self.episodes[number], (), first):
                frames.append(frame)
        except ReplayError as reason:
            return frames, str(reason)
        return frames, ""


def collect(adapter: GymAdapter) -> Collected:
    rollout = adapter.collect()
    columns = {"mask": rollout.mask.numpy(), "continues": rollout.continues.numpy()}
    stored = StoredIteration(
        *(1, 1, 1, 1.0, 1.0, 0.2, 0.2, "gae", "lambda", {}, columns),
        observations={name: x.numpy() for name, x in name_observations(rollout.obs).items()},
        actions=rollout.actions.numpy(),
        record=json.loads(json.dumps(record(adapter, rollout))),
    )
    samples = stored.samples()
    ends = [not columns["continues"][sample.row, sample.columns[-1]] for sample in samples]
    return Collected(adapter, stored.record, [*map(stored.episode, samples)], ends)


@pytest.mark.parametrize("name", [name for name in EXACT if name != "vector version with load_state_dict"])
def test_episodes_are_replayed_exactly(name: str) -> None:
    """In several rollouts, including one after a restart, each episode that began in the rollout can be replayed."""
    env_id, options = EXACT[name]
    adapter = make_adapter(env_id, **options)
    for number in range(3):
        found = collect(adapter)
        assert found.episodes
        for which, (episode, ended) in enumerate(zip(found.episodes, found.ends, strict=True)):
            frames, reason = found.replay(which)
            if reason:
                assert BEFORE in reason
                assert number, "in the first rollout, no episode began before"
                assert episode.column == 0
                continue
            assert [frame.step for frame in frames] == [*range(len(episode.observations[min(episode.observations)]))]
            if not found.record.get("states"):
                assert not any(frame.ended for frame in frames[:-1])
                assert frames[-1].ended == (ended and len(frames) > len(episode.actions))
            assert [f.step for f in found.replay(which, first=len(frames) - 1)[0]] == [len(frames) - 1]
        if number == 1:
            state = save_and_load(adapter)
            adapter = make_adapter(env_id, **options)
            assert load_state(adapter, state) is None


def test_states_of_cartpole_need_no_start() -> None:
    """For CartPole's own vector version, episodes that began before the rollout are drawn too."""
    adapter = make_adapter("CartPole-v1", num_steps=5, normalize_obs=True)
    for _ in range(3):
        found = collect(adapter)
        assert [len(found.replay(number)[0]) for number in range(len(found.episodes))] == [
            len(episode.observations["obs"]) for episode in found.episodes
        ]
    episode = found.episodes[0]
    episode.observations["obs"][3] += 0.01
    frames, reason = found.replay(0)
    assert len(frames) == 3
    assert reason == f"the replayed observation differs from the stored one at step {episode.column + 3}"
    found.record["scaling"]["clip"] = 0.001
    assert found.replay(0)[1].startswith("gym.normalize_obs clipped the observation at step ")
    for damaged in ([1], {"mean": [0.0] * 4, "clip": 1}, {"mean": "x", "factor": [1.0] * 4, "clip": 1}):
        found.record["scaling"] = damaged
        assert found.replay(0)[1].startswith("the stored record of the rollout is damaged (")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_episode_that_began_before_is_not_replayed(vectorization: str) -> None:
    """Episodes have three steps. Before the second rollout, one has taken two steps."""
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_envs=1, num_steps=6, vectorization=vectorization)
    assert [episode.column for episode in collect(adapter).episodes] == [0, 4]
    found = collect(adapter)
    assert [episode.column for episode in found.episodes] == [0, 2]
    assert found.replay(0) == ([], f"{BEFORE}, so its start is not stored")
    frames, reason = found.replay(1)
    assert [frame.total for frame in frames] == [0, 1, 2, 3]
    assert frames[-1].ended
    assert not reason


def test_replay_stops_at_the_first_difference() -> None:
    found = collect(make_adapter("tests.gym_envs:Wanders-v0", num_envs=1, num_steps=30))
    frames, reason = found.replay(0)
    assert len(frames) == 3
    assert reason == "the replayed observation differs from the stored one at step 3"


def test_dependence_on_earlier_episodes_is_noticed() -> None:
    adapter = make_adapter("tests.gym_envs:Unrepeatable-v0", num_envs=1, num_steps=40, env_kwargs={"by": "episodes"})
    found = collect(adapter)
    assert [found.replay(number)[1].partition(" at ")[2] for number in range(4)] == [
        *("", ""),  # by chance: the first and the second episode of an environment
        *("step 20", "step 30"),  # their first steps
    ]


def test_shorter_episode_is_noticed() -> None:
    found = collect(make_adapter("tests.gym_envs:Counter-v0", num_envs=1, env_kwargs={"blind": True, "length": 9}))
    found.adapter.config.gym.env_kwargs["length"] = 4
    frames, reason = found.replay(0)
    assert len(frames) == 5
    assert reason == "the replayed episode ended before step 5"


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("tests.gym_envs:OwnCounter-v0", "the environment's vector version does not report how an episode starts"),
        ("tests.gym_envs:KeepsCounters-v0", "set gym.vectorization to sync or async"),
        ("tests.faulty_envs:OddRandom-v0", "its np_random is not a numpy.random.Generator"),
    ],
)
def test_unknown_starts_are_explained(env_id: str, reason: str) -> None:
    found = collect(make_adapter(env_id, num_steps=30))
    explained = found.replay(1)[1]
    assert explained.startswith("the episode cannot be replayed: ")
    assert reason in explained


@pytest.mark.parametrize(
    "stored", [None, [], {}, {"rows": []}, {"rows": [1]}, {"rows": [{"starts": [{"column": 0}]}]}, {"rows": {"0": 1}}]
)
def test_other_records_are_explained(stored: Any) -> None:
    found = collect(make_adapter("tests.gym_envs:Counter-v0"))
    assert found._replace(record=stored).replay(0)[1]


def test_replay_uses_training_wrappers() -> None:
    """In training, an episode is one of three lives, and rewards are clipped from 5 to 1."""
    training = ["envs.gym.atari:LifeLoss", "ClipReward(min_reward=-1.0, max_reward=1.0)"]
    options = {"wrappers": ["envs.gym.atari:FireStart"], "training_wrappers": training}
    found = collect(make_adapter("tests.pixel_envs:Lives-v0", 1, 12, **options))
    frames, reason = found.replay(0)
    assert (frames[-1].total, frames[-1].ended, reason) == (2.0, True, "")
    config = make_config("CartPole-v1", gym={"training_wrappers": ["own.py:Bonus(size=1)"]})
    assert named_code(config) == "own.py:Bonus"


def test_changed_spaces_are_explained() -> None:
    found = collect(make_adapter("CartPole-v1"))
    reason = found._replace(adapter=make_adapter("Acrobot-v1")).replay(0)[1]
    assert reason == "the observations or actions of Acrobot-v1 have changed since these samples were stored"


def test_starts_take_bounded_memory() -> None:
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_envs=1, num_steps=6, vectorization="sync")
    for _ in range(20):
        adapter.collect()
    (recorder,) = adapter.envs.envs  # type: ignore[attr-defined]
    assert len(recorder.starts) <= 4


# the likeliest actions


@pytest.mark.parametrize(
    ("env_id", "options", "count"),
    [
        ("CartPole-v1", {}, 2),
        ("LunarLander-v3", {}, 4),
        ("Taxi-v4", {}, 5),
        ("tests.gym_envs:Echo-v0", {"env_kwargs": {"space": "started"}}, 3),
    ],
)
def test_alternatives_contain_the_likeliest_actions(env_id: str, options: dict[str, Any], count: int) -> None:
    adapter = make_adapter(env_id, **options)
    rollout = adapter.collect()
    found = alternatives(adapter, rollout, reference=False)
    assert found is not None
    actions, logprobs, _ = found
    assert actions.shape == logprobs.shape == (*rollout.mask.shape, count)
    assert (logprobs.diff() <= 0).all()
    taken = rollout.actions + adapter.actions.start[0]
    same = (actions == taken) & rollout.mask[..., None]
    assert torch.allclose(logprobs[same], rollout.logprobs[same.any(-1)], atol=1e-6)
    if count == adapter.actions.sizes[0]:
        assert (same.sum(-1) == rollout.mask).all()
        assert torch.allclose(logprobs.exp().sum(-1), torch.ones(rollout.mask.shape))
    assert alternatives(adapter, rollout, reference=True) is None


@pytest.mark.parametrize(("env_id", "space"), [("tests.gym_envs:Locks-v0", ""), ("tests.gym_envs:Echo-v0", "box")])
def test_other_actions_have_no_alternatives(env_id: str, space: str) -> None:
    adapter = make_adapter(env_id, env_kwargs={"space": space} if space else {})
    assert alternatives(adapter, adapter.collect(), reference=False) is None


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
def test_recording_does_not_change_training(vectorization: str, tmp_path: Path) -> None:
    gym = {"vectorization": vectorization, "normalize_obs": True, "normalize_reward": True}
    weights = []
    for every in (0, 1):
        config = make_config("CartPole-v1", num_steps=32, gym=gym, total_steps=300, log={"samples_every": every})
        run = Run(train(config, tmp_path, f"every-{every}").path)
        assert bool(samples.iterations(run)) == bool(every)
        weights.append(checkpoint.load_policy(run, checkpoint.steps(run)[-1], torch.device("cpu")))
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    stored = samples.read(run, samples.iterations(run)[-1])
    assert stored.alternatives.keys() == {"old", "new"}
    assert stored.record.keys() == {"states" if vectorization == "auto" else "rows", "scaling"}
