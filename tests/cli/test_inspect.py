"""Tests of `inspect`: numbers recomputed by hand, tables on narrow terminals, and usage errors."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from envs.gym.explain import explain
from envs.gym.options import GymConfig
from envs.gym.vector import GymAdapter
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.runs import samples
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.samples import QUANTITIES
from ppo_unified.terminal.sample_table import format_samples
from ppo_unified.text import display_width
from tests.sequences import COLUMNS, ROWS, make_config, sequences

__all__ = ["sequences"]  # a fixture, used by name

Result = tuple[int, str, str]  # exit code, stdout, stderr
Steps = list[dict[str, Any]]


def gym_config(env_id: str = "CartPole-v1", **changes: Any) -> GymConfig:
    """Return a run of two iterations with one optimizer step each, so that the losses are those of the old policy."""
    options: dict[str, Any] = {
        "gym": {"env_id": env_id, "num_envs": 3, "num_steps": 40},
        "policy": {"hidden": [8]},
        "ppo": {"epochs": 1, "minibatches": 1, "normalize_advantages": "none", "gamma": 0.97, "lam": 0.9},
        "optim": {"lr": 0.05, "anneal": False},
        "total_steps": 0,
        "total_iterations": 2,
        "eval": {"every_steps": 0, "episodes": 1},
        "log": {"samples_every": 1},
    }
    for section, table in changes.items():
        options[section] = options.get(section, {}) | table
    return GymConfig.model_validate(options)


def command(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    capsys.readouterr()
    code = main([*arguments, "--runs", str(folder)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(folder: Path, capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict[str, Any]:
    code, out, err = command(folder, capsys, "inspect", name, "--json", *arguments)
    assert (code, err) == (0, "")
    loaded: dict[str, Any] = json.loads(out)
    return loaded


def read_logged(path: Path, step: int) -> dict[str, float]:
    reader = EventReader(path)
    reader.poll()
    return {tag: float(x.values[x.steps == step][0]) for tag, x in reader.series.items() if step in x.steps}


def check_by_formula(steps: Steps, gamma: float, lam: float, clip: float, clip_high: float) -> None:
    """Check every derived number of one episode against its formula, from the last step to the first."""
    carried = 0.0
    for step in reversed(steps):
        delta = step["reward"] + gamma * step["next_value"] - step["value"]
        carried = delta + gamma * lam * carried
        ratio = math.exp(step["logprob_new"] - step["logprob_old"])
        expected = {"delta": delta, "advantage": carried, "return": carried + step["value"], "ratio": ratio}
        assert {name: step[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert step["clipped"] == (not 1 - clip <= ratio <= 1 + clip_high)
    assert all(step["continues"] for step in steps[:-1])
    for before, after in pairwise(steps):
        assert before["next_value"] == pytest.approx(after["value"], abs=1e-5)
        assert before["column"] < after["column"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with CartPole, a counter that a time limit truncates (asymmetric annealed clip) and no samples."""
    folder = tmp_path_factory.mktemp("runs")
    train(gym_config(), folder, "pole")
    clipped = {"clip": 0.05, "clip_high": 0.1, "anneal_clip": True, "normalize_advantages": "batch", "epochs": 4}
    train(gym_config("tests.gym_envs:TimedCounter-v0", ppo=clipped), folder, "timed")
    train(gym_config(log={"samples_every": 0}), folder, "none")
    return folder


def test_inspect_matches_hand_computation_and_logged_metrics(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration in (1, 2):
        shown = document(runs, capsys, "pole", "--sample", "all", "--iteration", str(iteration))
        assert (shown["run"], shown["iteration"], shown["iterations"]) == ("pole", iteration, [1, 2])
        assert (shown["gamma"], shown["lam"], shown["clip"], shown["clip_high"]) == (0.97, 0.9, 0.2, 0.2)
        episodes = [sample["steps"] for sample in shown["each"]]
        for steps in episodes:
            check_by_formula(steps, 0.97, 0.9, 0.2, 0.2)
        every = [step for steps in episodes for step in steps]
        assert len(every) == shown["iteration_steps"]
        metrics = read_logged(runs / "pole", shown["step"])
        ratios = [step["ratio"] for step in every]
        means = {
            "value/mean": fmean(step["value"] for step in every),
            "policy/clip_fraction_after": fmean(step["clipped"] for step in every),
            "policy/kl_after": fmean(ratio - 1 - math.log(ratio) for ratio in ratios),
            "loss/policy": -fmean(step["advantage"] for step in every),
            "loss/value": fmean(0.5 * (step["value"] - step["return"]) ** 2 for step in every),
        }
        assert {tag: metrics[tag] for tag in means} == pytest.approx(means, rel=1e-5, abs=1e-5)
        assert {tag: shown["metrics"][tag] for tag in means} == pytest.approx(means, rel=1e-5, abs=1e-5)
        assert max(ratios) > 1.01  # the new policy is the one after the update


def test_inspect_handles_annealed_clip_and_truncation(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = document(runs, capsys, "timed", "--sample", "all")
    assert (shown["iteration"], shown["clip"], shown["clip_high"]) == (2, 0.025, 0.05)
    assert document(runs, capsys, "timed", "--iteration", "1")["clip"] == 0.05
    episodes = [sample["steps"] for sample in shown["each"]]
    for steps in episodes:
        check_by_formula(steps, 0.97, 0.9, 0.025, 0.05)
    every = [step for steps in episodes for step in steps]
    assert 0 < fmean(step["clipped"] for step in every) < 1
    cut_off = [steps[-1] for steps in episodes if not steps[-1]["continues"]]
    assert all(step["next_value"] != 0 for step in cut_off)  # truncated, so bootstrapped
    advantages = np.array([step["advantage"] for step in every])
    used = (advantages - advantages.mean()) / advantages.std(ddof=1)
    assert [step["advantage_used"] for step in every] == pytest.approx(used.tolist(), rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("sequences")
def test_inspect_handles_masked_columns_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_config(), tmp_path, "toy")
    shown = document(tmp_path, capsys, "toy", "--sample", "all")
    assert shown["samples"] == len(shown["each"]) == 2 * (ROWS - 1)
    for sample in shown["each"]:
        check_by_formula(sample["steps"], 0.99, 0.95, 0.2, 0.2)
    every = [step for sample in shown["each"] for step in sample["steps"]]
    assert fmean(step["value"] for step in every) == pytest.approx(shown["metrics"]["value/mean"], abs=1e-6)
    assert {step["text"] for step in every} <= {"left", "\x1b[31m\u6e38\n"}
    assert all((step["text"] == "left") == (step["context"] == 0) for step in every if step["reward"])
    one = document(tmp_path, capsys, "toy", "--sample", "3")
    assert (one["sample"], one["row"]) == (3, 1)
    assert one["steps"] == shown["each"][3]["steps"]
    assert max(step["column"] for step in one["steps"]) < COLUMNS
    for sample in shown["each"]:  # the text of the columns without an action before the sample's first column
        words = re.findall("left|\x1b\\[31m\u6e38\n", sample["before"])
        assert "".join(words) == sample["before"]
        others = [s["steps"][-1]["column"] for s in shown["each"] if s["row"] == sample["row"]]
        behind = max([last for last in others if last < sample["steps"][0]["column"]], default=-1)
        assert len(words) == sample["steps"][0]["column"] - behind - 1
    assert any(sample["before"] for sample in shown["each"])


def tables(text: str) -> list[list[str]]:
    """Split the output into the lines of each table: header, steps and sums."""
    parts = text.split("\n#")[1:]
    return [("#" + part).strip("\n").split("\n\n")[0].splitlines() for part in parts]


@pytest.mark.parametrize("width", [40, 80, 81, 120, 200])
@pytest.mark.usefixtures("sequences")
def test_table_fits_terminal_width(
    width: int, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    train(make_config(), tmp_path, "toy")
    for folder, name in ((runs, "pole"), (runs, "timed"), (tmp_path, "toy")):
        code, out, err = command(folder, capsys, "inspect", name, "--sample", "all")
        assert (code, err) == (0, "")
        assert max(map(display_width, out.splitlines())) <= width
        assert all(line.isprintable() for line in out.splitlines())
        assert not re.search(r"\s-0(\.0+)?\s", out)
        for lines in tables(out):
            assert lines[0].split()[:1] == ["#"]
            assert lines[-1].startswith("sum")
        assert (width >= 120) == ("Columns that do not fit" not in out)
        header = tables(out)[0][0]
        assert (width >= 80) == all(word in header.split() for word in ("r", "V", "delta", "A", "ratio", "clip"))


GYM_STEP = {
    "action": 0.1234,
    "reward": -0.0406,
    "value": -12.95,
    "next_value": -13.48,
    "delta": 0.0410,
    "advantage": -15.60,
    "return": -18.55,
    "logprob_old": -0.938,
    "logprob_new": -0.933,
    "ratio": 1.005,
    "clipped": False,
}
LLM_STEP = {
    "token": 50256,
    "text": "something",
    "score": -1.234,
    "logprob_ref": -1.788,
    "kl": 0.7182,
    "kl_full": 0.7321,
    **{name: x for name, x in GYM_STEP.items() if name != "action"},
}
DECISIVE = ("A used", "r", "V", "A", "ratio", "clip")  # the advantage that the loss uses comes first


@pytest.mark.parametrize(
    ("kind", "width", "shown"),
    [
        ("gym", 40, ("A used", "r", "V")),
        ("gym", 80, (*DECISIVE, "action", "return")),
        ("gym", 100, (*DECISIVE, "action", "return", "delta", "V'")),
        ("gym", 120, (*DECISIVE, "action", "return", "delta", "V'", "log new", "log old")),
        ("llm", 40, ("text", "A used", "r")),
        ("llm", 80, ("text", *DECISIVE, "score")),
        ("llm", 100, ("text", *DECISIVE, "score", "return", "kl")),
        ("llm", 120, ("text", *DECISIVE, "score", "return", "kl", "delta", "V'")),
        (
            "llm",
            200,
            ("text", *DECISIVE, "score", "return", "kl", "delta", "log old", "log new", "log ref", "kl full"),
        ),
    ],
)
def test_narrow_tables_keep_the_decisive_columns(kind: str, width: int, shown: tuple[str, ...]) -> None:
    step = {"column": 0, "continues": True, **(GYM_STEP if kind == "gym" else LLM_STEP), "advantage_used": -1.234}
    _, table = format_samples([{"sample": 0, "row": 0, "steps": [step]}], 1, QUANTITIES, width)
    header = next(line for line in table if line.startswith("#"))
    assert set(shown) <= set(re.split(r"\s{2,}", header))
    assert len(header) <= width


def test_narrowest_table_keeps_first_column(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    code, out, err = command(runs, capsys, "inspect", "pole")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "sum"


@pytest.mark.usefixtures("sequences")
def test_text_cells_are_sanitized_and_sums_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    train(make_config(), tmp_path, "toy")
    _, out, _ = command(tmp_path, capsys, "inspect", "toy", "--sample", "all")
    everything = document(tmp_path, capsys, "toy", "--sample", "all")["each"]
    for (header, *rows, sums), sample in zip(tables(out), everything, strict=True):
        assert "V_" in header.split()  # the adapter's own V, next to the engine's
        for row, step in zip(rows, sample["steps"], strict=True):
            assert row.split()[0] == str(step["column"])
            assert ("left" in row) == (step["text"] == "left")
            assert ('"\\u001b[31m\u6e38\\n"' in row) == (step["text"] != "left")
            assert ("*" in row) == step["clipped"]
            assert f"{step['value']:.3f}" in row.split()
        assert f"{sum(step['reward'] for step in sample['steps']):g}" in sums.split()
    assert command(tmp_path, capsys, "inspect", "toy", "--sample", str(len(everything)))[0] == 2
    for name in ("reward", "value", "delta", "advantage", "return", "ratio", "clipped"):
        assert QUANTITIES[name].meaning in out


def test_formulas_follow_the_runs_advantage_and_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(gym_config(), tmp_path, "run")
    a_run = Run(tmp_path / "run")
    usual = samples.read(a_run, 2)
    for advantage, target, says in (
        ("gae", "lambda", ["A = delta + gamma*lam*A'", "return = A + V"]),
        ("td", "lambda", ["A = delta;", "return = GAE + V"]),
        ("reward-to-go", "monte-carlo", ["A = r + gamma*A'", "return = r + gamma*return'"]),
        ("return", "lambda", ["A = sum of the episode's discounted rewards"]),
    ):
        samples.write(a_run, replace(usual, advantage_kind=advantage, value_target=target, steps=100_000))
        _, out, _ = command(tmp_path, capsys, "inspect", "run")
        text = " ".join(out.split())
        for formula in [*says, "delta = r + gamma*V' - V", "gamma 0.97, lam 0.9, clip 0.2"]:
            assert formula in text
        assert "100,000 sampled steps; only the first" in text


MISTAKES = {
    ("none",): r"none has no stored samples yet; .*log\.samples_every = 0",
    ("pole", "--iteration", "7"): r"--iteration: pole has no stored samples of iteration 7; available: 1, 2$",
    (
        "pole",
        "--sample",
        "99",
    ): r"--sample: expected 'all' or a sample of iteration 2 \(0 to \d+\), got '99'$",
    ("pole", "--sample", "-1"): r"--sample: expected 'all' or a sample of iteration 2 .*, got '-1'$",
    ("pole", "--sample", "x"): r"--sample: expected 'all' or a sample of iteration 2 .*, got 'x'$",
    ("pole", "--json", "--html", "x.html"): r"inspect: expected --json or --html, got both; remove one of them$",
    ("pole", "--critic", "--kl"): r"expected one of --critic, --kl and --html, got --critic and --kl; remove one$",
    ("pole", "--kl"): r"the samples contain no KL to a reference model .*; expected a run of a language model$",
    ("pole", "--critic", "--serve"): r"--critic has no effect with --serve; omit it$",
    ("pole", "--html", "missing/x.html"): r"--html missing/x.html: cannot write the page \(.*\); choose another path$",
    (
        "pole",
        "--html",
        "x.html",
        "--sample",
        "99",
    ): r"--sample: expected 'all' or a sample of iteration 2 .*, got '99'$",
    ("pole", "--iteration", "x"): r"inspect: --iteration: expected an integer, got 'x'; see ppo-unified inspect --help",
    ("poel",): r"no run 'poel'.*did you mean 'pole'",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_usage_error_is_one_line(arguments: tuple[str, ...], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(runs, capsys, "inspect", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(MISTAKES[arguments], err)


def test_damaged_sample_file_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(gym_config(), tmp_path, "run")
    samples.sample_path(Run(tmp_path / "run"), 2).write_bytes(b"PK")
    code, out, err = command(tmp_path, capsys, "inspect", "run", "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "00000002.npz: invalid sample file" in err
    assert document(tmp_path, capsys, "run", "--iteration", "1")["iteration"] == 1


def test_critic_shows_the_same_numbers_as_text_and_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(runs, capsys, "pole", "--critic", "--sample", "all")
    report, steps = found["critic"], document(runs, capsys, "pole", "--sample", "all")["each"]
    last = [sample["steps"][-1] for sample in steps]
    ended = sum(step["next_value"] == 0 and not step["continues"] for step in last)
    assert (report["samples"], report["excluded_samples"]) == (ended, len(last) - ended)
    assert [len(one["value"]) for one in found["each"]] == [len(sample["steps"]) for sample in steps]
    code, out, err = command(runs, capsys, "inspect", "pole", "--critic")
    assert (code, err) == (0, "")
    assert f"{report['overall']['steps']:,} steps of {report['samples']} episodes" in " ".join(out.split())
    assert "Sample 0: what the critic expected" in out


def test_inspect_imports_no_torch(runs: Path) -> None:
    code = (
        "import sys; from ppo_unified.cli.main import main;"
        f"main(['inspect', 'pole', '--critic', '--json', '--runs', {str(runs)!r}]);"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr == "False\n"
    assert json.loads(process.stdout)["run"] == "pole"


@pytest.mark.parametrize("space", ["box", "started", "multi", "grid", "bits"])
def test_actions_are_shown_as_environment_values(space: str) -> None:
    config = gym_config("tests.gym_envs:Echo-v0", gym={"env_kwargs": {"space": space}, "num_steps": 7})
    adapter = GymAdapter(config, torch.device("cpu"))
    rollout = adapter.collect()
    (action,) = explain(adapter, rollout).values()
    adapter.close()
    assert action.shape == (3, 7)
    mask = rollout.mask.numpy()
    sums = np.array([sum(float(x) for x in str(cell).split()) for cell in action.ravel()]).reshape(3, 7)
    if space == "box":
        # as sampled, in the environment's units: both bounds have a width of 0.75 and the sum of their centers is 0
        assert np.allclose(sums, 0.375 * rollout.actions.sum(-1), atol=1e-2)
    else:
        assert np.allclose(sums[mask], rollout.rewards.numpy()[mask])
    assert (action.dtype.kind == "U") == (space != "started")


@pytest.mark.usefixtures("sequences")
def test_eval_labels_mean_with_the_adapters_score_name(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_config(), tmp_path, "toy")
    for folder, name, key in ((tmp_path, "toy", "mean_score"), (runs, "pole", "mean_return")):
        code, out, _ = command(folder, capsys, "eval", name, "--json", "--episodes", "2")
        shown = json.loads(out)
        assert (code, shown[key]) == (0, shown["score"])
        assert {"mean_score", "mean_return"} & set(shown) == {key}


def page_document(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


@pytest.mark.usefixtures("sequences")
def test_html_shows_the_same_steps_as_json(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config(), tmp_path, "toy")
    monkeypatch.chdir(tmp_path)
    for folder, name, iteration in ((runs, "pole", "1"), (runs, "timed", "2"), (tmp_path, "toy", "1")):
        arguments = ("--iteration", iteration)
        assert command(folder, capsys, "inspect", name, "--html", "x.html", *arguments) == (0, "x.html\n", "")
        shown = page_document(Path("x.html"))
        every = document(folder, capsys, name, "--sample", "all", *arguments)["each"]
        assert len(shown["samples"]) == len(every) <= 40
        for sample, expected in zip(shown["samples"], every, strict=True):
            assert sample["steps"] == [step["column"] for step in expected["steps"]]
            for key in ("value", "ratio", "advantage", "return", "delta"):
                numbers = [step[key] for step in expected["steps"]]
                assert sample["columns"][key] == pytest.approx(numbers, rel=1e-5, abs=1e-5)
        assert command(folder, capsys, "inspect", name, "--html", "x.html", "--sample", "1", *arguments)[0] == 0
        (one,) = page_document(Path("x.html"))["samples"]
        assert one["columns"] == shown["samples"][1]["columns"]


def test_html_keeps_files_of_others(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.html"
    path.write_text("mine", encoding="utf-8")
    code, out, err = command(runs, capsys, "inspect", "pole", "--html", str(path))
    assert (code, out, path.read_text(encoding="utf-8")) == (2, "", "mine")
    assert "the file exists and is not a page of `inspect`; choose another file name" in err


def test_json_keeps_its_fields(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = {"column", "action", "reward", "value", "next_value", "delta", "advantage", "advantage_used", "return"}
    step |= {"logprob_old", "logprob_new", "ratio", "clipped", "continues"}
    about = {"run", "iterations", "samples", "iteration", "step", "iteration_steps", "gamma", "lam", "clip"}
    about |= {"clip_high", "advantage_kind", "value_target", "metrics"}
    for arguments in ((), ("--iteration", "1")):
        shown = document(runs, capsys, "timed", *arguments)
        assert about | {"sample", "row", "steps"} <= shown.keys()
        assert step <= shown["steps"][0].keys()
        every = document(runs, capsys, "timed", "--sample", "all", *arguments)
        assert about | {"each"} <= every.keys()
        assert {"sample", "row", "steps"} <= every["each"][0].keys()
