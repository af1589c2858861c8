"""Tests of `envs`, `runs`, `show` and `compare`: their output, their errors, and the modules that they import."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ppo_unified import load_preset
from ppo_unified.cli import show
from ppo_unified.cli.main import main
from ppo_unified.config.estimate import format_bytes
from ppo_unified.runs import query
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status, create
from ppo_unified.runs.notes import write_note
from ppo_unified.terminal import screen
from ppo_unified.text import clean, display_width, elide, format_duration, format_number, format_table, pad

HOLD = """
import sys, time
from pathlib import Path
from ppo_unified.runs.folder import Run
run = Run(Path(sys.argv[1]))
run.acquire()
status = run.read_status()
status.state, status.heartbeat = "running", time.time()
run.write_status(status)
print("held", flush=True)
sys.stdin.readline()
status.state, status.reason, status.score = "finished", "solved", 499.0
run.write_status(status)
"""
Result = tuple[int, str, str]  # exit code, stdout, stderr


def make(folder: Path, name: str, curve: list[float], options: dict[str, Any] | None = None, **status: Any) -> Run:
    """Create a run folder as a trainer does, with `curve` as eval/score and its negative as loss/value."""
    config = load_preset("cartpole", **(options or {}))
    run = create(folder, name, "")
    run.config.write_text(config.to_toml(), encoding="utf-8")
    events = EventWriter(run.path)
    events.hyperparameters(config.flatten())
    for number, score in enumerate(curve, 1):
        events.scalars(100 * number, {"eval/score": score, "loss/value": -score, "optim/lr": 0.1})
    events.close()
    usual: dict[str, Any] = {
        "preset": "cartpole",
        "kind": "gym",
        "state": "finished",
        "total_steps": 10_000,
        "elapsed_s": 2.0,
    }
    step = 100 * len(curve)
    run.write_status(Status(**(usual | {"name": name, "seed": config.seed, "step": step} | status)))
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A runs folder with five runs: two that differ only in the seed, a faster one, a failed one and a crashed one."""
    scores = {"score": 450.0, "best_score": 480.0}
    make(tmp_path, "base-s1", [10, 200, 480, 450], {"seed": 1}, started=1.0, solved_step=300, **scores)
    make(
        tmp_path,
        "base-s2",
        [20, 100, 500, 500],
        {"seed": 2},
        started=2.0,
        best_score=500.0,
        score=500.0,
        solved_step=400,
    )
    make(tmp_path, "fast", [5, math.nan, 50], {"seed": 1, "optim": {"lr": 0.01}}, started=3.0, best_score=50.0)
    make(
        tmp_path,
        "broken",
        [],
        started=4.0,
        state="failed",
        reason="ValueError: reward is NaN\n\x1b[31m\x1b]0;x\x07boom",
    )
    make(tmp_path, "gone", [1.0], {"ppo": {"clip": 0.1}}, started=5.0, state="running")
    return tmp_path


@pytest.fixture
def run_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a command on `folder` and returns its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Result:
        code = main([*arguments, *(() if arguments[0] == "envs" else ("--runs", str(folder)))])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(text: str) -> dict[str, list[str]]:
    """Map the first word of each line to all words of the line."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_show_draws_the_training_score_of_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The score during training is one of the charts that are shown by default, as episode/return is."""
    run = make(tmp_path, "words", [])
    writer = EventWriter(run.path)
    for step in (1, 2):
        writer.scalars(step, {"reward/score": 0.5, "reward/total": 0.4, "policy/kl": 0.01})
    writer.close()
    assert main(["show", "words", "--once", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "reward/score (sampled) [score]" in out
    assert "reward/total" not in out


# --- envs


def test_envs_lists_presets_with_score_and_time(run_command: Any) -> None:
    code, out, err = run_command("envs")
    assert (code, err) == (0, "")
    listed = rows(out)
    assert "cartpole" in listed
    assert "500 (maximum)" in out
    assert "ppo-unified train mymodule:MyEnv-v0" in out


def test_envs_json_holds_presets_and_option_schemas(run_command: Any) -> None:
    document = json.loads(run_command("envs", "--json")[1])
    names = {preset["name"] for preset in document["presets"]}
    assert {path.stem for path in Path(__file__).parents[2].glob("envs/presets/*.toml")} == names
    assert all(preset.keys() == {"name", "kind", "title", "score", "time", "group"} for preset in document["presets"])
    schema = document["options"]["gym"]
    assert set(schema["properties"]) >= {"seed", "ppo", "optim", "gym", "policy"}
    assert schema["$defs"]["PPO"]["properties"]["clip"]["description"]


# --- runs


def test_runs_shows_solved_without_percentage_and_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    now = time.time()
    make(tmp_path, "solved", [1.0], reason="solved", started=1.0)
    make(tmp_path, "ended", [1.0], reason="total_iterations reached", started=2.0)
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    head, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:5] == ["run", "state", "preset", "step", "done"]
    assert [line[:5] for line in lines] == [
        ["ended", "finished", "cartpole", "100", "100%"],
        ["solved", "solved", "cartpole", "100", "-"],
    ]
    assert main(["runs", "--json", "state=finished", "--runs", str(tmp_path)]) == 0
    documents = json.loads(capsys.readouterr().out)  # in JSON, both states keep the name that scripts rely on
    assert {d["name"]: (d["state"], d["shown_state"], d["reason"]) for d in documents} == {
        "ended": ("finished", "finished", "total_iterations reached"),
        "solved": ("finished", "finished", "solved"),
    }
    beats: dict[str, Any] = {"heartbeat": now, "progressed": now, "phase": "collecting", "phase_done": 0.345}
    make(tmp_path, "busy", [1.0], state="running", started=3.0, **beats)
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    head, line, *_ = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:6] == ["run", "state", "phase", "preset", "step", "done"]
    assert line[:7] == ["busy", "running", "collecting", "34%", "cartpole", "100", "1%"]


def test_runs_lists_newest_first_with_shown_state(run_command: Any) -> None:
    code, out, err = run_command("runs")
    assert (code, err) == (0, "")
    listed = rows(out)
    assert [name for name in listed if name != "run"][:4] == ["gone", "killed?", "broken", "ValueError:"]
    assert listed["gone"][1] == "crashed"  # run.json has the state "running", but no process holds the lock
    assert listed["base-s1"][1:] == ["finished", "cartpole", "400", "100%", "450", "480", "200", *listed["base-s1"][8:]]


def test_runs_strips_control_sequences(run_command: Any) -> None:
    _, out, _ = run_command("runs", "failed")
    assert out.splitlines()[2] == "  ValueError: reward is NaN boom"
    assert "\x1b" not in out


def test_runs_searches_and_shows_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, note in (("a", "the \x1b[31mbaseline"), ("b", "")):
        make(tmp_path, name, [1.0])
        write_note(Run(tmp_path / name), note)
    for words in ("note:BASE", "baseline"):
        assert main(["runs", words, "--runs", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [lines[1].split()[0], lines[2:]] == ["a", ["  note: the baseline"]]


def test_runs_json_adds_shown_state_to_run_json(run_command: Any, folder: Path) -> None:
    found = json.loads(run_command("runs", "--json")[1])
    assert [entry["name"] for entry in found] == ["gone", "broken", "fast", "base-s2", "base-s1"]
    for entry in found:
        path = Path(entry.pop("path"))
        assert path == folder / entry["name"]
        shown = entry.pop("shown_state")
        assert entry == json.loads((path / "run.json").read_text())
        assert shown == ("crashed" if entry["name"] == "gone" else entry["state"])
    assert [entry["name"] for entry in json.loads(run_command("runs", "score>=450", "base", "--json")[1])] == [
        "base-s2",
        "base-s1",
    ]
    assert json.loads(run_command("runs", "nothing-like-it", "--json")[1]) == []
    displayed = json.loads(run_command("runs", "reason:killed", "--json")[1])  # run.json has no reason
    assert [entry["name"] for entry in displayed] == ["gone"]


def test_runs_in_empty_folder_explains_how_to_start(run_command: Any, tmp_path: Path) -> None:
    for missing in ("empty", "not there"):
        if missing == "empty":
            (tmp_path / "empty").mkdir()
        code = main(["runs", "--runs", str(tmp_path / missing)])
        assert code == 0
    code, out, err = run_command("runs", "zzz")
    assert (code, out) == (0, "")
    assert "\n0 of 5 runs in " in err
    assert err.endswith(" match the query\n")


@pytest.mark.parametrize("closed", [">&-", "2>&- nothing-matches", "<&- >&- 2>&-"])
def test_command_runs_with_a_closed_stream(folder: Path, closed: str) -> None:
    words = [sys.executable, "-m", "ppo_unified", "runs", "--runs", str(folder)]
    script = ["sh", "-c", f'exec "$@" {closed}', "sh", *words]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_runs_rejects_bad_query_in_one_line(run_command: Any) -> None:
    code, out, err = run_command("runs", "scor>3")
    assert (code, out) == (2, "")
    assert err == "query 'scor>3': unknown key 'scor'; did you mean 'score'?\n"


def test_runs_reports_runs_with_unreadable_options(run_command: Any, folder: Path) -> None:
    (folder / "fast" / "config.toml").write_bytes(b"\xff\xfe")
    code, out, err = run_command("runs", "optim.lr>0")
    assert code == 0
    assert set(rows(out)) >= {"base-s1", "base-s2", "gone"}
    assert "fast" not in rows(out)
    assert "skipped: " in err
    assert "config.toml: expected a TOML file in UTF-8, got an invalid byte at offset 0" in err


# --- show


def test_show_draws_default_metrics(run_command: Any) -> None:
    code, out, err = run_command("show", "base-s1")
    assert (code, err) == (0, "")
    assert "eval/score (greedy) [score]  450" in out
    assert "loss/value" in out
    assert "optim/lr" not in out
    assert "solved 490" in out
    assert all(display_width(line) <= 80 for line in out.splitlines())
    assert rows(out)["base-s1"][1] == "finished"


def test_show_says_who_stopped_the_run(run_command: Any, folder: Path) -> None:
    make(folder, "halted", [1.0], state="stopped", reason="stopped by another program (SIGTERM)")
    _, out, _ = run_command("show", "halted", "--once")
    assert out.splitlines()[2] == "  stopped by another program (SIGTERM)"


def test_show_respects_width(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (30, 60, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        out = run_command("show", "base-s1", "--metric", "eval/score")[1]
        chart = out.split("\n\n")[1].splitlines()
        assert max(map(display_width, chart)) == width


def test_show_overlays_runs_with_letters(run_command: Any) -> None:
    _, out, _ = run_command("show", "base-s1", "base-s2", "--metric", "eval/score")
    assert rows(out)["A"][1] == "base-s1"
    assert rows(out)["B"][1] == "base-s2"
    assert "eval/score (greedy) [score]  A 450  B 500" in out
    plot = out.split("eval/score")[1].split("\n", 1)[1]
    assert "A" in plot
    assert "B" in plot


def test_show_suggests_the_nearest_metric(run_command: Any) -> None:
    _, out, _ = run_command("show", "base-s1", "--metric", "optim/lr", "--metric", "loss/value")
    assert out.index("optim/lr") < out.index("loss/value")
    assert "eval/score" not in out
    code, out, err = run_command("show", "base-s1", "--metric", "loss/valu")
    assert (code, out) == (2, "")
    assert err == "--metric: no metric 'loss/valu' in base-s1; did you mean 'loss/value'?\n"
    assert "known metrics: eval/score, loss/value, optim/lr" in run_command("show", "base-s1", "--metric", "zzz")[2]


def test_show_reports_run_without_events(run_command: Any) -> None:
    code, out, _ = run_command("show", "broken")
    assert code == 0
    assert "no metrics yet" in out
    assert "ValueError: reward is NaN boom" in out


def test_show_csv_and_json_contain_every_point(run_command: Any) -> None:
    _, out, _ = run_command("show", "fast", "base-s1", "--csv")
    table_rows = list(csv.DictReader(io.StringIO(out)))
    assert table_rows[0].keys() == {"run", "tag", "step", "wall_time", "value"}
    document = json.loads(run_command("show", "fast", "base-s1", "--json")[1], parse_constant=pytest.fail)
    assert document["fast"]["eval/score"]["values"] == [5.0, None, 50.0]
    assert document["fast"]["optim/lr"]["values"] == [0.1, 0.1, 0.1]  # the shortest decimal of the float32
    points = 0
    for run, tags in document.items():
        for tag, columns in tags.items():
            chosen = [row for row in table_rows if (row["run"], row["tag"]) == (run, tag)]
            points += len(chosen)
            assert columns["steps"] == [int(row["step"]) for row in chosen]
            assert columns["wall"] == [float(row["wall_time"]) for row in chosen]
            values = [float(row["value"]) for row in chosen]
            assert columns["values"] == [x if math.isfinite(x) else None for x in values]
    assert points == len(table_rows) == 3 * (3 + 4)
    only = json.loads(run_command("show", "fast", "--json", "--metric", "eval/score")[1])
    assert list(only["fast"]) == ["eval/score"]
    code, _, err = run_command("show", "fast", "--json", "--csv")
    assert code == 2
    assert "--csv cannot be combined with --json" in err


def test_show_labels_same_named_runs_by_path(run_command: Any, folder: Path) -> None:
    other = make(folder / "elsewhere", "fast", [1.0])
    document = json.loads(run_command("show", "fast", str(other.path), str(folder / "fast"), "--json")[1])
    assert set(document) == {str(folder / "fast"), str(other.path)}


def test_show_reports_damaged_file_and_draws_the_rest(run_command: Any, folder: Path) -> None:
    (path,) = (folder / "base-s1").glob("events*")
    data = bytearray(path.read_bytes())
    data[-10] ^= 0xFF
    path.write_bytes(data)
    code, out, err = run_command("show", "base-s1", "--json")
    assert code == 0
    assert json.loads(out)["base-s1"]["eval/score"]["steps"] == [100, 200, 300]
    assert "is damaged and was skipped" in err


def test_show_falls_back_to_ascii(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert run_command("show", "base-s1", "base-s2")[1].isascii()
    monkeypatch.delenv("LC_ALL")
    assert not run_command("show", "base-s1", "base-s2")[1].isascii()


def read_until(terminal: int, wanted: bytes, patience_s: float = 30.0) -> bytes:
    """Read from a terminal until `wanted` appears, the program closes it, or the time is up."""
    seen, deadline = b"", time.monotonic() + patience_s
    while wanted not in seen and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # on Linux: the other end is closed
                break
    return seen


@pytest.mark.parametrize("end", ["finished", "ctrl-c"])
def test_show_follows_running_run_on_terminal(folder: Path, end: str) -> None:
    run = make(folder, "live", [1.0, 2.0])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "ppo_unified", "show", "live", "--runs", str(folder)]
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"}
    shown = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True)
    os.close(inner)
    try:
        assert b"running" in read_until(terminal, b"loss/value")
        if end == "finished":
            holder.communicate("\n")
        else:
            shown.send_signal(2)
        last = read_until(terminal, b"never shown").decode()
        assert shown.wait(30) == (0 if end == "finished" else 130)
        assert "\x1b[?1049l" in last  # the terminal is restored
        left = last.rpartition("\x1b[?1049l")[2]
        assert ("solved" if end == "finished" else "running") in left
        assert "eval/score" in left
    finally:
        os.close(terminal)
        for child in (shown, holder):
            child.kill()
            child.communicate()


def test_show_reads_options_once_while_it_redraws(
    run_command: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder, "live", [1.0, 2.0])
    paint, read = Mock(), Mock(wraps=query.read_options)
    alive = iter([True] * 8)
    monkeypatch.setattr(screen, "open_screen", lambda stream: nullcontext(Mock(size=lambda: (80, 24), paint=paint)))
    monkeypatch.setattr(query, "read_options", read)
    monkeypatch.setattr(show, "is_drawable", lambda stream: True)
    monkeypatch.setattr(show, "_any_alive", lambda watched: next(alive, False))
    monkeypatch.setattr(show, "REDRAW_S", 0.0)
    assert run_command("show", "live", "base-s1")[0] == 0
    assert paint.call_count > 1
    assert [call.args[0].name for call in read.call_args_list] == ["live", "base-s1"]


# --- compare


def test_compare_shows_results_then_differences(run_command: Any) -> None:
    code, out, err = run_command("compare", "base-s1", "fast")
    assert (code, err) == (0, "")
    head, results, options = out.split("\n\n")
    assert head == "Comparison of 2 runs"
    assert options.startswith("Options that differ: 1; equal options: ")
    assert rows(options)["option"] == ["option", "base-s1", "fast"]
    assert rows(options)["optim.lr"] == ["optim.lr", "0.002", "0.01"]
    assert re.split("  +", results.splitlines()[1])[3:5] == ["score (greedy)", "best (greedy)"]
    assert rows(results)["base-s1"] == ["base-s1", "finished", "400", "450", "480", "300", "2.0", "s"]
    assert rows(results)["fast"][1:6] == ["finished", "300", "-", "50", "-"]
    assert "score, best: the last and the best greedy evaluation." in results


def test_compare_json_lists_differences_and_scores(run_command: Any) -> None:
    document = json.loads(run_command("compare", "base-s1", "base-s2", "gone", "--json")[1])
    assert document["options"] == {
        "seed": {"base-s1": 1, "base-s2": 2, "gone": 1},
        "ppo.clip": {"base-s1": 0.2, "base-s2": 0.2, "gone": 0.1},
    }
    assert document["runs"]["base-s2"] == {
        "state": "finished", "step": 400, "score": 500.0, "best_score": 500.0, "solved_step": 400, "elapsed_s": 2.0,
        "greedy": True,
    }  # fmt: skip


def test_compare_shows_option_missing_from_one_run(run_command: Any, folder: Path) -> None:
    path = folder / "fast" / "config.toml"
    path.write_text(path.read_text().replace("lr = 0.01\n", "") + "\n[extra]\nflag = true\n")
    options = rows(run_command("compare", "base-s1", "fast")[1].split("\n\n")[-1])
    assert options["optim.lr"] == ["optim.lr", "0.002", "-"]
    assert options["extra.flag"] == ["extra.flag", "-", "true"]


def test_compare_replaces_names_that_do_not_fit_by_letters(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wide, _ = run_command("compare", "base-s1", "base-s2", "fast", "gone", "broken")
    assert "option" in rows(wide)
    assert "Comparison of 5 runs in 3 groups; the runs of a group differ only in the seed" in wide
    assert "base-s1 ... s2  " in wide
    monkeypatch.setattr("ppo_unified.cli.compare.output_width", lambda: 74)
    _, narrow, _ = run_command("compare", "base-s1", "base-s2", "fast", "gone", "broken")
    assert narrow.split("\n")[2:5] == ["A  base-s1, broken, base-s2", "B  fast", "C  gone"]
    assert max(map(len, narrow.split("\n"))) <= 74


def test_compare_reports_equal_runs_and_needs_two(run_command: Any, folder: Path) -> None:
    make(folder, "twin", [1.0], {"seed": 1})
    assert run_command("compare", "base-s1", "twin")[1].startswith(
        "Comparison of 2 runs with the same options and seed"
    )
    for names in (["base-s1"], ["base-s1", "base-s1"]):
        code, out, err = run_command("compare", *names)
        assert (code, out) == (2, "")
        assert "expected at least two different runs (with --seeds, one run is enough)" in err


def test_compare_seeds_groups_runs_by_options(run_command: Any) -> None:
    document = json.loads(run_command("compare", "--seeds", "base-s1", "fast", "base-s2", "--json")[1])
    base, fast = document["groups"]
    assert (base["runs"], base["seeds"], base["options"]) == (["base-s1", "base-s2"], [1, 2], {"optim.lr": 0.002})
    interval = {"iqm": 490.0, "iqm_low": 480.0, "iqm_high": 500.0}
    best = {"mean": 490.0, "std": pytest.approx(200**0.5), "min": 480.0, "max": 500.0, "runs": 2}
    assert base["best_score"] == best | interval
    assert (base["score"]["mean"], base["score"]["std"]) == (475.0, pytest.approx(1250**0.5))
    assert base["solved_step"]["std"] == pytest.approx(5000**0.5)
    assert (fast["runs"], fast["solved_step"]["runs"]) == (["fast"], 0)
    assert (fast["best_score"]["mean"], fast["best_score"]["std"], fast["best_score"]["runs"]) == (50.0, None, 1)
    out = run_command("compare", "--seeds", "base-s1", "fast", "base-s2")[1].splitlines()
    assert re.split("  +", out[0]) == ["group", "seeds", "score (greedy)", "best (greedy)", "solved", "solved step"]
    assert re.split("  +", out[1]) == [
        "cartpole optim.lr=0.002", "2", "475 +- 35.36 (n=2)", "490 +- 14.14 (n=2)", "2 of 2", "350 +- 71 (n=2)"
    ]  # fmt: skip
    assert re.split("  +", out[2])[2:] == ["-", "50 (n=1)", "0 of 1", "-"]
    assert out[3:] == [
        "",
        "score, best: the last and the best greedy evaluation of each run",
        "mean +- standard deviation (n = number of seeds that have a value; one run per seed)",
        "",
        "group                    score IQM       best IQM        solved step IQM",
        "cartpole optim.lr=0.002  475 [450, 500]  490 [480, 500]  350 [300, 400]",
        "cartpole optim.lr=0.01   -               50              -",
        "IQM: interquartile mean (the mean of the middle half of the seeds) with its 95 % bootstrap interval",
    ]
    assert "IQM" not in run_command("compare", "--seeds", "base-s1")[1]  # a single seed has no interval


def test_compare_seeds_scales_the_scores_of_tasks(run_command: Any, folder: Path) -> None:
    make(folder, "lander-s1", [1.0], {"gym": {"env_id": "Lander-v3"}}, started=9.0, preset="lander", score=50.0)
    named = ["compare", "--seeds", "base-s1", "base-s2", "lander-s1"]
    (both,) = json.loads(run_command(*named, "--scale", "cartpole=0..500", "lander=-50..150", "--json")[1])["all_tasks"]
    assert (both["tasks"], both["runs"]) == (["cartpole", "lander"], 3)
    assert both["score"]["iqm"] == pytest.approx((0.9 + 1.0 + 0.5) / 3)
    assert run_command(*named, "--scale", "cartpole=0..500", "lander=-50..150")[1].splitlines()[-1].split() == [
        *("-", "2", "3", "0.8", "[0.7667,", "0.8333]")
    ]
    for words, problem in (
        (["cartpol=0..1"], "no run of the task 'cartpol'; did you mean 'cartpole'?"),
        (["cartpole=5..1"], "expected TASK=LOW..HIGH with LOW < HIGH, such as cartpole=0..500, got 'cartpole=5..1'"),
        (["cartpole=0..1"], "expected a scale for each task; add lander=LOW..HIGH"),
    ):
        code, out, err = run_command(*named, "--scale", *words)
        assert (code, out) == (2, "")
        assert err.endswith(f"{problem}\n")


def test_compare_counts_each_seed_once(run_command: Any, folder: Path) -> None:
    """A repeated or restarted run is not another seed; the newest run with a score is used."""
    make(folder, "base-s2-2", [1.0], {"seed": 2}, started=9.0, score=300.0, best_score=320.0)
    make(folder, "base-s2-3", [1.0], {"seed": 2}, started=10.0)  # has no score yet
    named = ["compare", "--seeds", "base-s2", "base-s1", "base-s2-3", "base-s2-2"]
    (group,) = json.loads(run_command(*named, "--json")[1])["groups"]
    assert (group["seeds"], group["runs"]) == ([1, 2], ["base-s1", "base-s2-2"])
    assert group["repeated_runs"] == ["base-s2", "base-s2-3"]
    assert (group["score"]["mean"], group["score"]["runs"]) == (375.0, 2)
    assert (group["solved_step"]["mean"], group["solved_step"]["runs"]) == (300, 1)
    out = run_command(*named)[1].splitlines()
    assert out[-1] == "not counted, because another run has the same options and seed: base-s2, base-s2-3"


def test_compare_shows_the_source_of_a_run(run_command: Any, folder: Path) -> None:
    """A run that started with the policy of another run is neither a repetition nor another seed."""
    source = {"run": "cp", "step": 1490, "score": 9.0, "checkpoint": "/runs/cp/checkpoints/000000001490"}
    for seed in (1, 2):
        make(folder, f"cp-s{seed}", [1.0], {"seed": seed}, started=20.0, score=100.0, init=source)
    options = rows(run_command("compare", "base-s1", "cp-s1")[1].split("\n\n")[-1])
    assert options["init"] == ["init", "-", "cp,", "step", "1,490"]
    document = json.loads(run_command("compare", "base-s1", "cp-s1", "--json")[1])
    assert document["options"] == {"init": {"base-s1": None, "cp-s1": "cp, step 1,490"}}
    named = ["compare", "--seeds", "base-s1", "base-s2", "cp-s1", "cp-s2"]
    groups = json.loads(run_command(*named, "--json")[1])["groups"]
    assert [(group["runs"], group["options"]) for group in groups] == [
        (["base-s1", "base-s2"], {"init": None}),
        (["cp-s1", "cp-s2"], {"init": "cp, step 1,490"}),
    ]
    assert "cartpole init=cp, step 1,490" in run_command(*named)[1]


@pytest.mark.parametrize("command", ["show", "compare"])
def test_unknown_run_suggests_the_nearest(run_command: Any, command: str) -> None:
    code, out, err = run_command(command, "base-s3", "fast")
    assert (code, out) == (2, "")
    assert "no run 'base-s3' in the folder" in err
    assert "did you mean 'base-s" in err


# --- in separate processes


@pytest.mark.parametrize("arguments", [["runs", "--json"], ["--help"], ["runs"], ["envs"], ["show", "fast", "--once"]])
def test_read_commands_import_no_torch(folder: Path, arguments: list[str]) -> None:
    where = [] if arguments[0] in ("--help", "envs") else ["--runs", str(folder)]
    command = [sys.executable, "-X", "importtime", "-m", "ppo_unified", *arguments, *where]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ppo_unified.cli.main" in loaded
    banned = {"torch", "gymnasium"} | (
        {"numpy", "tensorboard", "pydantic"} if arguments[0] in ("runs", "--help") else set()
    )
    assert not banned & loaded
    if "--json" in arguments:
        assert len(json.loads(done.stdout)) == 5


def test_closed_pipe_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m ppo_unified show fast base-s1 --csv --runs {folder} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "run,tag,step,wall_time,value\n"
    assert "Traceback" not in done.stderr


# --- text


def test_clean_returns_one_safe_line() -> None:
    assert clean("a\x1b[31;1mb\x1b]8;;http://x\x07c\x1b]0;t\x1b\\d\x1bMe\nf\tg\x07\x9b31m") == "abcde f g  31m"
    assert clean("\u202eevil\u2066") == "evil"
    assert clean("學習 é ok") == "學習 é ok"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (500.0, "500"), (9999.4, "9999"), (14742, "14.74k"), (2e6, "2M"), (-1234.567, "-1235"),
     (0.00004, "4.0e-05"), (math.nan, "nan"), (-math.inf, "-inf"), (0, "0")],
)  # fmt: skip
def test_numbers_are_shortened(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (2.06, "2.1 s"),
        (45, "45 s"),
        (90, "1.5 min"),
        (3600 * 12, "12 h"),
        (86400 * 4, "4.0 d"),
        (-5, "0.0 s"),
    ],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MB"), (2.94e9, "2.94 GB"), (999.4e6, "999 MB"), (999.6e6, "1 GB"), (2e12, "2 TB"), (2e15, "2,000 TB")],
)
def test_sizes_are_formatted_in_a_suitable_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_tables_align_wide_characters_and_numbers() -> None:
    lines = format_table([{"name": "學習", "n": "5"}, {"name": "abc", "n": "1,234"}])
    assert lines == ["name      n", "學習      5", "abc   1,234"]
    rows = [{"time": "4.5 min", "solved": "3 of 3", "text": "1 s of 2"}, {"time": "12 h", "solved": "-", "text": "-"}]
    assert format_table(rows) == ["   time  solved  text", "4.5 min  3 of 3  1 s of 2", "   12 h       -  -"]
    assert format_table(rows, align_numbers=False)[2] == "12 h     -       -"
    assert [display_width(pad(text, 5)) for text in ("", "abc", "abcdefgh", "學習學習")] == [5, 5, 5, 5]


def test_long_text_is_cut_in_the_middle() -> None:
    assert elide("cartpole-lr3e-3-clip0.2-s12", 20) == "cartpole-~lip0.2-s12"
    assert [elide(text, 7) for text in ("", "學習a", "exactly", "學習學習學習")] == ["", "學習a", "exactly", "學~學習"]
    assert [elide("abcdef", width) for width in range(6)] == ["", "~", "~f", "a~f", "a~ef", "ab~ef"]


def test_cutting_a_long_wide_line_takes_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    combining = Mock(return_value=0)
    monkeypatch.setattr("unicodedata.combining", combining)
    line = "學習" * 1500
    assert elide(line, 101) == "學習" * 12 + "學~習" + "學習" * 12
    assert pad(line, 100) == "學習" * 24 + "學~ "
    assert combining.call_count < 4000
    assert elide("e" + "\u0301" * 9, 0) == ""


def test_colours_are_used_only_on_colour_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppo_unified.text import can_color, can_unicode

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal, pipe = Terminal(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert can_color(terminal)
    assert not can_color(pipe)
    assert can_unicode(terminal)
    assert not can_unicode(pipe)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not can_color(terminal)
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert not can_color(terminal)
    monkeypatch.setenv("LC_ALL", "POSIX")
    assert not can_unicode(terminal)
