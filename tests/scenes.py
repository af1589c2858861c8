"""An artificial runs folder with fixed numbers, times and names, for pictures of the UI in tests and documentation."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from textual.pilot import Pilot

from ppo_unified.config.presets import load_preset
from ppo_unified.config.schema import RunConfig
from ppo_unified.inspection import formulas
from ppo_unified.runs import samples
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import LOCK, Run, Status
from ppo_unified.runs.samples import StoredIteration
from tests.stored_tokens import CHINESE, ENGLISH, Response, make_token_iteration
from tui.app import Terminal
from tui.charts.plot import Plot
from tui.runs.entries import Entry
from tui.runs.run_list import RunList
from tui.runs.run_page import RunPage
from tui.runs.runs_screen import RunsScreen
from tui.runs.sweep_screen import SweepScreen
from tui.store import Store
from tui.watch.screen import WatchScreen

NOW = 1_768_478_400.0  # 2026-01-15 12:00 UTC
HOST = "workstation"
VERSIONS = {"python": "3.12.8", "torch": "2.9.1", "gymnasium": "1.3.0", "numpy": "2.3.5"}
LOG = "sb3/PPO_1"  # the log of another program
WITH_FRAMES = "cartpole-s1"  # its samples are shown with frames
POINTS = 80  # points per curve of a finished run
_HOLD_LOCKS = (
    "import fcntl, sys; files = [open(name, 'a+') for name in sys.argv[1:]]; "
    "[fcntl.lockf(file, fcntl.LOCK_EX) for file in files]; print('held', flush=True); sys.stdin.read()"
)
_TRACEBACK = """Traceback (most recent call last):
  File "ppo_unified/training/trainer.py", line 214, in train
    update(policy, optimizers, batch, config.ppo, generator)
  File "ppo_unified/engine/optimizers.py", line 58, in step
    raise Diverged("the gradient of the policy is not finite")
Diverged: the gradient of the policy is not finite"""


@dataclass(frozen=True)
class Scene:
    """One artificial run."""

    name: str
    preset: str
    state: str
    step: int
    began_s: float  # seconds between the start and NOW
    took_s: float
    low: float  # score at the start
    high: float  # score at the end
    seed: int = 1
    note: str = ""
    solved: bool = False  # such a run ends at the step at which it is solved
    changes: Mapping[str, Any] = field(default_factory=dict)  # options that differ from the preset's
    status: Mapping[str, Any] = field(default_factory=dict)  # additional entries of run.json


SCENES: Sequence[Scene] = (
    Scene("cartpole-s1", "cartpole", "finished", 24_576, 7 * 3600, 4.1, 22, 500, solved=True),
    Scene("cartpole-s2", "cartpole", "finished", 26_624, 6.9 * 3600, 4.4, 25, 500, 2, solved=True),
    Scene("cartpole-s3", "cartpole", "finished", 28_672, 6.8 * 3600, 4.9, 19, 497.5, 3, solved=True),
    Scene(
        "cartpole-clip0.4",
        "cartpole",
        "stopped",
        40_960,
        5 * 3600,
        7.2,
        20,
        318.4,
        4,
        "clip too wide: unstable",
        changes={"ppo": {"clip": 0.4}},
    ),
    Scene("lunarlander-s1", "lunarlander", "running", 368_640, 171, 170, -262, 231.7),
    Scene(
        "pendulum-lr0.1",
        "pendulum",
        "failed",
        12_288,
        2 * 86400,
        3.5,
        -1311,
        -1187,
        changes={"optim": {"lr": 0.1}},
        status={"reason": "the gradient of the policy is not finite", "traceback": _TRACEBACK},
    ),
    Scene("sentiment-s1", "sentiment", "finished", 98_304, 26 * 3600, 412, 0.11, 0.94),
    Scene("acrobot-s7", "acrobot", "crashed", 163_840, 3 * 86400, 51, -500, -84.2, 7, "the laptop went to sleep"),
)
RESPONSES = [
    {"prompt": "the film was", "response": "a quiet delight from start to end", "score": 0.97, "kl": 3.1},
    {"prompt": "i went in expecting", "response": "little and came out smiling", "score": 0.91, "kl": 2.4},
    {"prompt": "the second half", "response": "drags, yet the cast is a joy to watch", "score": 0.88, "kl": 4.0},
]

REVIEWS = (  # the update makes ' mess' less likely
    Response("the film was ", ("a", " slow", " mess", ",", " dull", " from", " start", " on", "</s>"), -0.93),
    *ENGLISH[1:],
)


class _FixedTimeWriter(EventWriter):
    """Writes events with a given time stamp."""

    now = NOW

    def _write(self, event: Any) -> None:
        event.wall_time = self.now
        super()._write(event)


def make_scenes(runs: Path) -> None:
    """Create the folders of all scenes. The running ones also need `trainers`."""
    for number, scene in enumerate(SCENES):
        _make(runs, scene, np.random.default_rng(number))
    _make_log(runs / LOG, np.random.default_rng(len(SCENES)))


@contextmanager
def trainers(runs: Path) -> Iterator[None]:
    """Hold the locks of the running scenes, as their trainers would."""
    with hold_locks([Run(runs / scene.name) for scene in SCENES if scene.state == "running"]):
        yield


@contextmanager
def hold_locks(runs: Sequence[Run]) -> Iterator[None]:
    """Start a process that holds the locks of runs."""
    command = [sys.executable, "-c", _HOLD_LOCKS, *(str(run.path / LOCK) for run in runs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.stdin.close()


def _make(runs: Path, scene: Scene, rng: np.random.Generator) -> None:
    run = Run(runs / scene.name)
    run.path.mkdir(parents=True)
    config = load_preset(scene.preset, seed=scene.seed, **scene.changes)
    run.config.write_text(config.to_toml(), encoding="utf-8")
    run.command.write_text(f"ppo-unified train {scene.preset} --seed {scene.seed}\n", encoding="utf-8")
    run.log.write_text("".join(f"step {scene.step * k // 30:>9,}\n" for k in range(1, 31)), encoding="utf-8")
    (run.checkpoints / f"{scene.step:012d}").mkdir(parents=True)
    if scene.note:
        run.note.write_text(scene.note + "\n", encoding="utf-8")
    curves = _curves(scene, rng)
    steps = np.linspace(scene.step / POINTS, scene.step, POINTS).astype(int)
    started = NOW - scene.began_s
    writer = _FixedTimeWriter(run.path)
    for k, step in enumerate(steps):
        writer.now = started + scene.took_s * (k + 1) / POINTS
        evaluated = k % 4 == 3  # every fourth point has an evaluation
        row = {tag: float(values[k]) for tag, values in curves.items() if evaluated or not tag.startswith("eval/")}
        writer.scalars(int(step), row)
    writer.close()
    _write_status(run, scene, config.kind, config.total_steps, curves["eval/score"][3::4], steps[3::4])
    if config.kind == "llm":
        many = POINTS * 3 // 4
        samples.write(run, _make_many_reviews(many, int(steps[many - 1])))
        for iteration in (POINTS // 2, POINTS):
            samples.append_responses(run, int(steps[iteration - 1]), iteration, RESPONSES)
            responses = REVIEWS if iteration < POINTS else CHINESE
            samples.write(run, make_token_iteration(responses, iteration, int(steps[iteration - 1])))
    else:
        samples.write(run, _make_samples(scene, config, rng))


def _make_log(folder: Path, rng: np.random.Generator) -> None:
    """Create a log of another program, with data that the charts do not show."""
    started = NOW - 4 * 86400
    folder.mkdir(parents=True)
    writer = _FixedTimeWriter(folder)
    for k in range(1, POINTS + 1):
        writer.now = started + 2 * k
        risen = 1 - np.exp(-k / 25)
        row = {"rollout/ep_rew_mean": -200 + 450 * risen + rng.normal(0, 8), "rollout/ep_len_mean": 200 + 300 * risen}
        row |= {"train/approx_kl": abs(rng.normal(0.008, 0.003)), "train/loss": 40 * np.exp(-k / 20)}
        writer.scalars(2048 * k, {tag: float(value) for tag, value in row.items()})
    writer.text(2048, "hyperparameters", "learning_rate 0.0003")
    writer.close()
    (path,) = folder.iterdir()
    path.rename(folder / f"events.out.tfevents.{started:.0f}.{HOST}.1.0")  # the name contains the time of creation


def _write_status(run: Run, scene: Scene, kind: str, total: int, scores: np.ndarray, steps: np.ndarray) -> None:
    best, started = int(np.argmax(scores)), NOW - scene.began_s
    state = "running" if scene.state == "crashed" else scene.state
    status = Status(name=scene.name, preset=scene.preset, kind=kind, state=state, step=scene.step, total_steps=total)
    status.score, status.best_score, status.best_step = float(scores[-1]), float(scores[best]), int(steps[best])
    status.started, status.heartbeat, status.elapsed_s = started, started + scene.took_s, scene.took_s
    status.host, status.pid, status.device, status.seed = HOST, 4242, "cpu", scene.seed
    status.versions, status.iteration = VERSIONS, POINTS
    if scene.solved:
        status.reason, status.solved_step = "solved", scene.step
    for name, value in scene.status.items():
        setattr(status, name, value)
    run.write_status(status)


def _curves(scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the curves of a run, [POINTS] each: a rising score and other metrics that are consistent with it."""
    x = np.linspace(0, 1, POINTS)
    spread = scene.high - scene.low
    risen = 1 / (1 + np.exp(-9 * (x - 0.4 - 0.02 * scene.seed)))
    risen = (risen - risen[0]) / (risen[-1] - risen[0])
    noise = rng.normal(0, 0.045, POINTS) * np.minimum(1, 4 * risen * (1 - risen) + 0.15)
    score = np.minimum(scene.low + spread * (risen + noise), max(scene.low, scene.high))
    score[-1] = scene.high
    back = scene.low + spread * (risen + rng.normal(0, 0.05, POINTS)) * 0.96
    cpu, speed = rng.normal(97, 1.5, POINTS), scene.step / scene.took_s
    curves = {
        "eval/score": score,
        "episode/return": back,
        "episode/length": np.abs(back) + 20,
        "policy/kl": np.abs(rng.normal(0.009, 0.004, POINTS)) * (1.4 - x),
        "policy/entropy": 0.69 * np.exp(-1.1 * x) + rng.normal(0, 0.008, POINTS),
        "policy/clip_fraction": np.abs(rng.normal(0.12, 0.03, POINTS)) * (1.3 - x),
        "value/explained_variance": np.clip(1 - 1.2 * np.exp(-5 * x) + rng.normal(0, 0.04, POINTS), -0.3, 0.99),
        "loss/value": 90 * np.exp(-4 * x) * np.exp(rng.normal(0, 0.25, POINTS)) + 1.5,
        "loss/policy": rng.normal(-0.008, 0.003, POINTS),
        "optim/lr": 1e-3 * (1 - x),
        "system/cpu": cpu,
        "system/memory_gb": 0.41 + 0.02 * x,
        "time/steps_per_second": speed * (1 + rng.normal(0, 0.02, POINTS)),
    }
    if scene.preset == "sentiment":
        gold = np.minimum(score, 0.6) - 0.2 * np.maximum(x - 0.6, 0) + rng.normal(0, 0.03, POINTS)
        curves |= {"reward/sentiment": score, "reward/sentiment-gold": gold, "ref/kl_full": 9 * x}
    return curves


def _make_many_reviews(iteration: int, step: int) -> StoredIteration:
    """Return 120 responses. The more of a response the critic has seen, the better it predicts the score."""
    rng = np.random.default_rng(3)
    responses = [
        Response(known.prompt, known.tokens[: int(rng.integers(3, 8))], round(float(rng.normal(0.4, 0.6)), 2))
        for known in ENGLISH * 24
    ]
    stored = make_token_iteration(responses, iteration, step)
    columns, mask = stored.columns, stored.columns["mask"]
    score = columns["score"].sum(1, keepdims=True)
    known = np.clip(0.25 * mask.cumsum(1) - 0.25, 0, 0.9)
    columns["value"] = (known * score + (1 - known) * 0.4 + rng.normal(0, 0.2, mask.shape)).astype(np.float32)
    columns["next_value"] = np.where(columns["continues"], np.roll(columns["value"], -1, 1), 0)
    full = 0.05 * rng.lognormal(0, 0.5, mask.shape)
    log_ratio = full + np.sqrt(2 * full) * rng.normal(0, 1, mask.shape)  # the mean of k1 and of k3 is `full`
    columns |= {"kl": log_ratio, "kl_full": full, "logprob_ref": columns["logprob_old"] - log_ratio}
    steps = formulas.Steps(*(columns[name] for name in ("reward", "value", "next_value", "continues", "mask")))
    columns["advantage"] = formulas.gae(steps, stored.gamma, stored.lam)
    return stored


def _make_samples(scene: Scene, config: RunConfig, rng: np.random.Generator) -> StoredIteration:
    """Return two short episodes of the last iteration."""
    shape, ppo = (2, 12), config.ppo
    value = rng.normal(20, 2, shape)
    reward, following = np.ones(shape), np.hstack([value[:, 1:], np.zeros((2, 1))])
    mask, continues = np.ones(shape, bool), np.hstack([np.ones((2, 11), bool), np.zeros((2, 1), bool)])
    steps = formulas.Steps(reward, value, following, continues, mask)
    advantage = formulas.gae(steps, ppo.gamma, ppo.lam)
    columns = {
        "mask": mask,
        "continues": continues,
        "action": rng.integers(0, 2, shape),
        "reward": reward,
        "value": value,
        "next_value": following,
        "delta": formulas.td_errors(steps, ppo.gamma),
        "advantage": advantage,
        "return": value + advantage,
        "logprob_old": rng.normal(-0.6, 0.1, shape),
        "ratio": rng.normal(1, 0.05, shape),
    }
    columns["logprob_new"] = columns["logprob_old"] + np.log(columns["ratio"])
    if scene.name == WITH_FRAMES:
        columns["ratio"][0, 7] = np.exp(0.3 * np.sign(advantage[0, 7]))
        columns["logprob_new"][0, 7] = columns["logprob_old"][0, 7] + np.log(columns["ratio"][0, 7])
    about: dict[str, Any] = {"gamma": ppo.gamma, "lam": ppo.lam, "clip": ppo.clip, "clip_high": ppo.clip}
    about |= {"advantage_kind": ppo.advantage, "value_target": ppo.value_target, "metrics": {}}
    about["options"] = {"kind": config.kind, "ppo": ppo.model_dump(mode="json") | {"normalize_advantages": "batch"}}
    return StoredIteration(iteration=POINTS, step=scene.step, steps=24, columns=columns, **about)


# processes that the watch screen starts instead of `play`

_PLAYER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from ppo_unified.runs.play_messages import *
def send(message, pixels=b""):
    sys.stdout.buffer.write(encode(message) + pixels)
    sys.stdout.buffer.flush()
requests = map(decode, sys.stdin.buffer)
"""
_CARTPOLE = """
import numpy as np
from ppo_unified.terminal.frames import fit
y, x = np.mgrid[:400, :600]
picture = np.full((400, 600, 3), 255, np.uint8)
picture[(y == 300)] = 0
picture[(abs(y - 300) < 15) & (abs(x - 330) < 25)] = 0
picture[(abs(x - 330 - (300 - y) * 0.1) < 5) & (y > 190) & (y < 300)] = (202, 152, 101)
send(Ready(False, "best checkpoint, step 24,576"))
for request in requests:
    pixels = fit(picture, request.columns, request.lines, request.blocks)
    facts = (59.0, 2, 140, "140", "1", "1", False, False, request.greedy, "best checkpoint, step 24,576")
    send(FrameReply(pixels.shape[1], len(pixels), "", *facts), pixels.tobytes())
"""
_REPLAY = _CARTPOLE.replace("request.greedy", "False")
_SENTIMENT = """
send(Ready(True, "best checkpoint, step 93,388"))
for request in requests:
    facts = "greedy, score 0.97, 9 tokens, ended"
    ours, theirs = "a quiet delight from start to end", "not the best of this year, but not the worst"
    send(PromptReply(request.prompt, ours, facts + ", KL 3.1", theirs, facts.replace("0.97", "0.31"), ""))
"""


def player_command(body: str) -> list[str]:
    """Return the command of a process that sends messages, as `body` says, instead of playing a policy."""
    return [sys.executable, "-c", _PLAYER + body, str(Path(__file__).resolve().parents[1])]


# a tour of the screens

Seen = Callable[[str, Terminal], object]
SIZES = ((80, 24), (120, 40), (200, 60))


async def visit_screens(
    runs: Path, size: tuple[int, int], seen: Seen, theme: str = "ppo-dark", unicode: bool = True
) -> None:
    """Show an artificial folder in the UI, with a fixed clock, and call `seen` with the name of each screen."""
    app = Terminal(runs, store=Store(runs, clock=lambda: NOW), unicode=unicode)
    app.state.theme, app.state.marked = theme, [scene.name for scene in SCENES if scene.preset == "cartpole"]
    app.state.typed["lunarlander"] = {"ppo.clip": "1.5", "seed": "1-3"}
    async with app.run_test(size=size) as pilot:

        async def look(name: str, *texts: str) -> None:
            await _wait_until(pilot, lambda: all(text in screen_text(app) for text in texts))
            await _wait_until_settled(pilot, app)
            seen(name, app)

        await _visit_list(pilot, app, look)
        await _visit_new_run(pilot, app, look)
        list_ = app.screen_stack[1].query_one(RunList)
        for name, tabs in PAGES.items():
            list_.move_to(name)
            await pilot.press("enter")
            for key, tab, text in tabs:
                await pilot.press(key)
                await look(tab, name, text)
            await pilot.press("escape")
        await pilot.press("d")
        await look("delete", "Delete runs/acrobot-s7?")
        await pilot.press("escape")
        await _visit_watch_screens(pilot, app, look)
        await _visit_inspector(pilot, app, list_, look)
        await pilot.press("q")


def _make_sweep() -> Store:
    """Return the runs of a sweep, some of which are still training or were pruned."""
    rng, store, entries = np.random.default_rng(7), Store(Path("runs"), clock=lambda: NOW), {}
    for number in range(16):
        rate, epochs = f"{10 ** rng.uniform(-4, -2):.3e}", str(rng.integers(2, 20))
        options = {"optim.lr": rate, "ppo.epochs": epochs, "policy.activation": ("tanh", "relu", "silu")[number % 3]}
        far = abs(np.log10(float(rate)) + 2.8)
        score = round(-78 - 150 * far - 2 * abs(int(epochs) - 12) + rng.normal(0, 4), 1)
        state = "running" if number > 13 else "stopped" if far > 0.6 and number > 5 else "finished"
        status = Status(state=state, step=300_000 if state == "finished" else 80_000, score=score)
        status.reason = "pruned by the sweep" if state == "stopped" else ""
        status.sweep = {"name": "acrobot-sweep", "trial": number, "options": options, "objective": "score"}
        key = f"acrobot-sweep-{number}"
        if number != 4:  # an invalid combination
            entries[key] = Entry(key, Path("runs", key), False, status, state)
    store.entries = entries
    return store


Look = Callable[..., Awaitable[None]]  # arguments: name of the screen, and texts that it contains


async def _visit_list(pilot: Pilot[None], app: Terminal, look: Look) -> None:
    """Show the list of runs with its charts and dialogs."""
    list_, wide = app.screen.query_one(RunList), app.size.width >= RunsScreen.HORIZONTAL_BREAKPOINTS[1][0]
    await look("runs", "lunarlander-s1", "sentiment-s1", "eval/score", "500")
    await pilot.press("f")
    await look("metric", "max at", "cartpole-clip0.4")
    await pilot.press("escape", "question_mark")
    await look("help", "Help", "Everywhere" if app.size.height > 80 else "List of runs")
    await pilot.press("escape", "slash", *"score>300")
    await look("filter", "List only matching runs")
    await pilot.press("escape", "A")
    await look("seeds", "seeds grouped")
    await pilot.press("A", "c")
    await look("compare", "ppo.clip", "solved")
    await pilot.press("escape")
    app.push_screen(SweepScreen(_make_sweep(), "acrobot-sweep", app.home.services.unicode))
    await look("sweep", "acrobot-sweep: ", "optim.lr")
    await pilot.press("escape")
    toggle = "" if wide else "t"  # on wide screens, the details are always visible
    list_.move_to("pendulum-lr0.1")
    await pilot.press(*toggle)
    await look("details", "optim.lr", "gradient of the policy is not finite")
    list_.move_to("lunarlander-s1")
    await pilot.press(*toggle)


async def _visit_new_run(pilot: Pilot[None], app: Terminal, look: Look) -> None:
    """Show the list of targets and forms, one of them with an invalid value."""
    await pilot.press("n")
    await look("picker", "select a target", "cartpole")
    await pilot.press(*"lunarlander", "enter")
    await look("form", "New run: lunarlander", "> 0 and < 1, got")
    await pilot.press("ctrl+s")
    await look("form-error", "ppo.clip", "> 0 and < 1, got")
    await pilot.press("escape", "escape", "n", *"sentiment", "enter")
    await look("form-llm", "New run: sentiment")
    await pilot.press("ctrl+r")
    await look("recipes", "Apply a published system's options")
    await pilot.press("escape", "escape", "escape")
    await _wait_until(pilot, lambda: len(app.screen_stack) == 2)


async def _visit_watch_screens(pilot: Pilot[None], app: Terminal, look: Look) -> None:
    """Watch a policy, and send a prompt to a language model."""
    app.push_screen(WatchScreen("cartpole-s1", player_command(_CARTPOLE), app.home.has_colors))
    await look("watch", "cartpole-s1", "step 140")
    await pilot.press("escape")
    app.push_screen(WatchScreen("sentiment-s1", player_command(_SENTIMENT), app.home.has_colors))
    await look("chat", "sentiment-s1", "Type a prompt")
    await pilot.press(*"the film was", "enter")
    await look("chat", "KL 3.1")
    await pilot.press("escape")


async def _visit_inspector(pilot: Pilot[None], app: Terminal, list_: RunList, look: Look) -> None:
    """Inspect a Chinese and an English response, other options, and an episode with its frame."""
    list_.move_to("sentiment-s1")
    await pilot.press("i")
    await look("inspector-chinese", "iteration 80", "A used")
    await pilot.press("left_curly_bracket", "2")
    await look("inspector-critic", "iteration 60", "Explained variance of V")
    await pilot.press("3")
    await look("inspector-kl", "Estimates of the KL")
    await pilot.press("1", "left_curly_bracket")
    await look("inspector", "iteration 40", "A used")
    await pilot.press("g")
    await look("inspector-study", "A: GAE")
    if app.unicode:
        await pilot.press("L", "j", "j", "j", "j")
        await look("inspector-study-zh", "用截断限制")
        await pilot.press("L")
    await pilot.press("g")
    await pilot.press("t")
    await look("inspector-table", "iteration 40")
    await pilot.press("t", "t", "w", "down", *["greater_than_sign"] * 2, "down", "less_than_sign")
    await look("inspector-what-if", "< 0.15 >")
    await pilot.press("escape", "question_mark")
    await look("inspector-help", "This screen shows how PPO")
    await pilot.press("escape", "escape")
    list_.move_to(WITH_FRAMES)
    with patch("tui.inspector.panes.replay_command", lambda run, allowed: player_command(_REPLAY)):
        await pilot.press("i")
        await look(
            "inspector-episode",
            "iteration 80",
            "A used",
            *(["▀"] if app.home.has_colors and app.size.height >= 30 else []),
        )
        await pilot.press("escape")


PAGES = {  # run -> (key, name of the picture, text that it contains)
    "lunarlander-s1": (("1", "page", "eval/score"), ("2", "options", "minibatches"), ("3", "log", "step"))
    + (("4", "samples", "Sample 0"), ("5", "system", HOST)),
    "sentiment-s1": (("4", "responses", "delight"),),
    LOG: (("1", "page-log", "rollout/ep_rew_mean"),),
    "pendulum-lr0.1": (("6", "events", "Traceback"),),
    "acrobot-s7": (("6", "crashed", "crashed"),),
}


def screen_text(app: Terminal) -> str:
    """Return the text on the screen, every line at full width."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips(app.size))


async def _wait_until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, screen_text(cast("Terminal", pilot.app))
        await pilot.pause(0.02)


async def _wait_until_settled(pilot: Pilot[None], app: Terminal) -> None:
    """Wait until every curve is read and drawn completely and the screen no longer changes."""

    def is_drawn() -> bool:
        plots = [plot for plot in app.screen.query(Plot) if plot.is_on_screen]
        screen, scores = app.screen, ("eval/score", "rollout/ep_rew_mean")
        read = [[app.store.curve(key, tag) for tag in scores] for key in app.store._watched]
        keys = screen._drawn_keys() if isinstance(screen, RunsScreen | RunPage) else app.state.marked
        lengths = [[len(one.raw) for one in plot.curves] for plot in plots]
        shown = not app.reader.found.is_news
        if not shown or not all(any(c is not None and len(c.steps) >= POINTS // 4 for c in curves) for curves in read):
            return False
        if isinstance(screen, RunsScreen) and screen.plots.settings.aggregate:
            return all(lengths)
        return all(len(found) == len(keys) and set(found) <= {POINTS, POINTS // 4} for found in lengths)

    await _wait_until(pilot, is_drawn)
    before, same = "", 0
    while same < 3:
        await pilot.pause(0.015)
        text = screen_text(app)
        same = same + 1 if text == before else 0
        before = text
