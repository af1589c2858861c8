"""The space of a sweep: parsing, the target's own values, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified.config.presets import load_preset
from ppo_unified.config.space import Choices, Range, Space, apply_values, drop_ignored, find_values, parse_space
from ppo_unified.errors import UsageError

CARTPOLE = load_preset("cartpole")
WORDS = ["optim.lr=1e-4..1e-2 log", "ppo.epochs=4..20", "policy.activation=tanh,relu", "policy.hidden=64 64,256 256"]
SPACE: Space = {
    "optim.lr": Range(1e-4, 1e-2, True, False),
    "ppo.epochs": Range(4, 20, False, True),
    "policy.activation": Choices(["tanh", "relu"]),
    "policy.hidden": Choices(["64 64", "256 256"]),
}
FILE = """
[optim]
lr = "1e-4..1e-2 log"
[ppo]
epochs = "4..20"
[policy]
activation = ["tanh", "relu"]
hidden = [[64, 64], [256, 256]]
"""


def test_flags_and_toml_files_give_the_same_space(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(FILE, encoding="utf-8")
    assert parse_space(WORDS, CARTPOLE) == parse_space([str(path)], CARTPOLE) == SPACE
    assert parse_space(["gym.normalize-obs=true,false"], CARTPOLE) == {"gym.normalize_obs": Choices(["true", "false"])}


def test_values_of_the_target_are_found_in_the_space() -> None:
    own = {"optim.lr": "0.002", "ppo.epochs": "10", "policy.activation": "tanh", "policy.hidden": "64 64"}
    assert find_values(SPACE, CARTPOLE) == own
    assert apply_values(CARTPOLE, own, "test") == CARTPOLE
    assert find_values({**SPACE, "optim.lr": Range(1e-4, 1e-3, True, False)}, CARTPOLE) is None
    assert find_values({**SPACE, "policy.activation": Choices(["relu", "silu"])}, CARTPOLE) is None


def test_sampled_numbers_are_short_and_inside_the_range() -> None:
    rate = Range(0.00012345, 0.012345, True, False)
    assert [rate.format(number) for number in (0.00123456789, 0.00012345, 0.012345)] == [
        *("0.001235", "0.00012345", "0.012345")
    ]


def test_ineffective_options_are_dropped_or_get_their_default() -> None:
    values = {"policy.torso": "mlp", "policy.memory_size": "16", "optim.lr": "0.001"}
    kept, reasons = drop_ignored(CARTPOLE, values)
    assert kept == {"policy.torso": "mlp", "optim.lr": "0.001"}
    assert reasons == {"policy.memory_size": "policy.torso = 'mlp'"}
    assert drop_ignored(CARTPOLE, values | {"policy.torso": "gru"})[1] == {}
    recurrent = apply_values(CARTPOLE, values | {"policy.torso": "gru"}, "test")
    config = apply_values(recurrent, drop_ignored(recurrent, values)[0], "test")
    assert config.flatten()["policy.memory_size"] == CARTPOLE.flatten()["policy.memory_size"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["foo"], "expected OPTION=VALUES, such as optim.lr=1e-4..1e-2, or a TOML file, got 'foo'"),
        (["lr=1e-4..1e-2"], "unknown option 'lr'; did you mean 'optim.lr'?"),
        (["optim.lr=1..2"], "optim.lr: expected a number > 0 and <= 1, got '2'"),
        (["ppo.epochs=1.5..3"], "ppo.epochs: expected an integer >= 1, got '1.5'"),
        (["ppo.epochs=9..4"], "ppo.epochs: expected a range from the smaller to the larger number, got '9..4'"),
        (["ppo.epochs=4..9 lg"], "ppo.epochs: expected a range such as '1..2' or '1..2 log', got '4..9 lg'"),
        (["ppo.entropy_coef=0..0.1 log"], "expected a range above 0, because of 'log', got '0..0.1 log'"),
        (["ppo.epochs=4,4"], "expected a range such as 1..2, or at least two different values separated by commas"),
        (["policy.activation=tanh,rel"], "expected one of tanh, relu, elu, silu, got 'rel'; did you mean 'relu'?"),
        (["policy.activation=a..b"], "expected values separated by commas (one of tanh, relu, elu, silu), got the ran"),
        (["seed=1..4"], "seed cannot be searched, because trials with different seeds are not comparable; set it"),
        (["eval.episodes=1..4"], "eval.episodes cannot be searched"),
        (["optim.lr=1e-4..1e-2", "optim.lr=1e-4..1e-3"], "optim.lr is given twice"),
        (["ppo.penalty_coef=2..3"], "ppo.penalty_coef has no effect because ppo.objective = 'clip'; remove it"),
        (["ppo.dual_clip=0.1..0.9"], "tried combinations is valid; first error: ppo.dual_clip: expected"),
    ],
)
def test_invalid_spaces_are_rejected(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space(words, CARTPOLE)
    assert str(caught.value).startswith("--space: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
