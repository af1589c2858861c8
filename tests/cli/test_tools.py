"""Tests of `tensorboard` with a real server, and of `doctor` on working and broken installations."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ppo_unified.cli.doctor import at_least, check_names, check_runs, lower_bound
from ppo_unified.cli.main import main
from ppo_unified.cli.shadowing import shadowed_packages
from ppo_unified.cli.tensorboard import _find_port
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0  # time limit for a server to answer or to exit


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A runs folder with three runs; the name of one is invalid in TensorBoard's --logdir_spec."""
    folder = tmp_path / "runs"
    for name in ("one", "two, a=b:c", "three"):
        run = Run(folder / name)
        run.path.mkdir(parents=True)
        run.write_status(Status(name=name))
        writer = EventWriter(run.path, 0)
        writer.scalars(1, {"eval/score": 1.0})
        writer.close()
    return folder


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds for a server that may not listen yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError, ConnectionError):
            if holds():
                return
        time.sleep(0.05)
    raise TimeoutError


@contextmanager
def serve_tensorboard(*arguments: str, tmp: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `ppo-unified tensorboard` and yield the process and the address from its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ppo_unified", "tensorboard", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = re.fullmatch(
            r"TensorBoard: (http://127\.0\.0\.1:\d+/) \(press Ctrl-C to stop\)\n", process.stdout.readline()
        )
        assert line
        yield process, line[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also ends the servers if the test has failed
        process.communicate()


def serves_runs(address: str, names: list[str]) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{address}data/runs") as answer:
        return sorted(json.load(answer)) == names


def test_tensorboard_serves_the_given_runs(runs: Path, tmp_path: Path) -> None:
    """Serve a runs folder and two named runs; each server ends with its parent and leaves no files behind."""
    everything = serve_tensorboard("--runs", str(runs), tmp=tmp_path)
    named = serve_tensorboard("two, a=b:c", str(runs / "one"), "--runs", str(runs), tmp=tmp_path)
    expected = [["one", "three", "two, a=b:c"], ["one", "two, a=b:c"]]
    with everything as first, named as second:
        for (process, address), names in zip((first, second), expected, strict=True):
            wait_until(partial(serves_runs, address, names))
            assert psutil.Process(process.pid).net_connections() == []
            servers = psutil.Process(process.pid).children(recursive=True)
            local = [c.laddr.ip for s in servers for c in s.net_connections() if c.status == "LISTEN"]
            assert set(local) == {"127.0.0.1"}
        links = [path for path in tmp_path.iterdir() if path.name.startswith("ppo-unified-tensorboard-")]
        assert len(links) == 1
        for (process, _), number, code in ((first, signal.SIGINT, 130), (second, signal.SIGTERM, 143)):
            servers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == code
            assert servers
            assert psutil.wait_procs(servers, PATIENCE_S)[1] == []
        assert not links[0].exists()


def get_json(address: str, path: str, **query: str) -> Any:
    """Return the answer of a server's HTTP API."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{address}{path}?{urllib.parse.urlencode(query)}") as answer:
        return json.load(answer)


@pytest.mark.parametrize("loader", ["--load_fast=true", "--load_fast=false"])
def test_tensorboard_shows_descriptions_of_a_resumed_run(tmp_path: Path, loader: str) -> None:
    """Both loaders show each metric's description, no point twice, and no warnings."""
    folder = tmp_path / "logs" / "one"
    folder.mkdir(parents=True)
    for first_step, steps in ((0, (5, 10)), (8, (8, 9))):
        writer = EventWriter(folder, first_step)
        if not first_step:
            writer.hyperparameters({"ppo.clip": 0.2})
        for step in steps:
            writer.scalars(step, {"policy/kl": step / 8, "mine": 1.0}, {"histogram/ratios": np.arange(9.0)})
        writer.text(steps[-1], "health/events", "kl: too high.")
        writer.close()
    logdir = ["--logdir", str(folder.parent), "--host", "127.0.0.1", "--port", str(_find_port(0)), loader]
    with open(tmp_path / "errors.txt", "w+") as errors:
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *logdir], stderr=errors)
        try:
            address = f"http://127.0.0.1:{logdir[5]}/data/"
            wait_until(lambda: "one" in get_json(address, "plugin/scalars/tags"))
            scalars = get_json(address, "plugin/scalars/tags")["one"]
            points = get_json(address, "plugin/scalars/scalars", run="one", tag="policy/kl")
            histograms = get_json(address, "plugin/histograms/tags")["one"]
            bars = get_json(address, "plugin/histograms/histograms", run="one", tag="histogram/ratios")
            texts = get_json(address, "plugin/text/text", run="one", tag="health/events")
            plugins = get_json(address, "plugins_listing")
        finally:
            server.terminate()
            server.wait(PATIENCE_S)
        errors.seek(0)
        log = errors.read()
    assert scalars.keys() == {"policy/kl", "mine"}
    assert "KL from the old policy to the new one" in scalars["policy/kl"]["description"]
    assert scalars["mine"] == {"displayName": "mine", "description": ""}
    assert [(step, value) for _, step, value in points] == [(5, 0.625), (8, 1.0), (9, 1.125)]
    assert histograms.keys() == {"histogram/ratios"}
    assert "ratio of new to old action probability" in histograms["histogram/ratios"]["description"]
    assert [step for _, step, _ in bars] == [5, 8, 9]
    assert [(text["step"], "too high" in text["text"]) for text in texts] == [(9, True)]
    assert plugins["hparams"]["enabled"]
    warnings = re.findall(r"(?m)^[WE]\d{4} .*", log)  # the slow loader reports the points that a resume discarded
    assert [line for line in warnings if "Purging 4 expired" not in line] == []


def test_tensorboard_reports_port_in_use(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["tensorboard", "--port", str(port), "--runs", str(runs)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"--port {port}: cannot listen on this port (Address already in use); choose another port, or 0 for any free "
        "port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "65536"], "--port: expected an integer from 0 (any free port) to 65535, got 65536"),
        (["--port", "-1"], "--port: expected an integer from 0 (any free port) to 65535, got -1"),
        (["--port", "x"], "tensorboard: --port: expected an integer, got 'x'; see ppo-unified tensorboard --help"),
        (["ones"], "did you mean 'one'?"),
        (["--runs", "/nowhere"], "runs folder /nowhere not found; choose one with --runs DIR"),
    ],
)
def test_usage_errors_are_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["tensorboard", "--runs", str(runs), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert captured.err.count("\n") == 1


# doctor


def run_doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = main(["doctor", "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if document["ok"] else 1)
    return document


def test_doctor_passes_on_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    document = run_doctor(capsys)
    checks = {check["name"]: check for check in document["checks"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[\[>]", line)[0] for line in project["dependencies"]}
    assert document["ok"]
    assert required <= set(checks)
    assert {name for name, check in checks.items() if check["required"]} == required | {"python"}
    assert {"gpu", "terminal", "runs folder", "packages", *project["optional-dependencies"]} - {"dev", "docs"} <= set(
        checks
    )
    assert all(check["verdict"] == "ok" or check["remedy"] for check in checks.values())


def test_doctor_text_matches_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = run_doctor(capsys)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [check["verdict"] for check in document["checks"]]
    assert lines[-1] == "all required packages work"


def doctor_in(folder: Path, code: str, **environ: str) -> tuple[int, str, str]:
    """Run `doctor` in `folder`, in a process that executes `code` first; return its exit code and output."""
    script = f"import sys\n{code}\nfrom ppo_unified.cli.main import main\nsys.exit(main(['doctor']))"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | environ, cwd=folder, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_doctor_runs_with_missing_packages(tmp_path: Path) -> None:
    """`doctor` runs if no package can be imported, two are not installed and one is too old."""
    code, out, err = doctor_in(
        tmp_path,
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "old = {'numpy': '1.25.9', 'rich': None, 'torch': None}\n"
        "def version(name):\n"
        "    if old.get(name, '') is None: raise m.PackageNotFoundError(name)\n"
        "    return old.get(name) or real(name)\n"
        "m.version = version\n"
        "gone = 'torch numpy gymnasium pydantic tomli_w psutil rich tensorboard google_crc32c PIL Box2D pygame'\n"
        "sys.modules.update(dict.fromkeys(gone.split()))\n",
    )
    assert (code, err) == (1, "")
    verdicts = {line.split()[1]: line for line in out.splitlines()}
    assert re.fullmatch(r"missing  rich +not installed; pip install 'rich>=[\d.]+'", verdicts["rich"])
    assert re.fullmatch(r"missing  numpy +1.25.9 is older than 1.26; pip install 'numpy>=1.26'", verdicts["numpy"])
    assert re.fullmatch(
        r"missing  box2d +not installed; for Box2D environments: pip install 'ppo-unified\[box2d\]'", verdicts["box2d"]
    )
    assert verdicts["pygame"].startswith("missing")
    assert out.splitlines()[-1] == "broken: torch, numpy, rich, torch import"


def test_doctor_reports_shadowing_package(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    (tmp_path / "start").mkdir()
    code, out, err = doctor_in(tmp_path / "start", "", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (code, err) == (1, "")
    found = next(line for line in out.splitlines() if "packages" in line)
    assert found.startswith("missing")
    assert f"package 'envs': import finds {tmp_path / 'envs'} instead of {ROOT / 'envs'}; " in found
    assert f"remove {tmp_path} from PYTHONPATH" in found
    assert out.splitlines()[-1] == "broken: packages"


@pytest.mark.parametrize(
    ("found", "lowest", "reaches"),
    [
        ("2.13.0+cpu", "2.6", True),
        ("2.5.1+cu124", "2.6", False),
        ("1.26", "1.26.0", True),
        ("3", "3.0", True),
        ("2.9", "2.10", False),
        ("2.10rc1", "2.10", True),
        ("1.0", "", True),
    ],
)
def test_versions_compare_as_numbers(found: str, lowest: str, reaches: bool) -> None:
    assert at_least(found, lowest) is reaches


@pytest.mark.parametrize(
    ("requirement", "bound"),
    [("a[b,c]>=1.3", "1.3"), ("a<3,>=1.26", "1.26"), ("a==2", ""), ("a", ""), (">=3.11", "3.11")],
)
def test_lower_bounds_are_parsed(requirement: str, bound: str) -> None:
    assert lower_bound(requirement) == bound


def test_doctor_reports_unwritable_runs_folder(tmp_path: Path) -> None:
    assert check_runs(tmp_path / "not" / "there" / "yet").verdict == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/runs")):
        check = check_runs(folder)
        assert (check.verdict, check.required) == ("warn", False)
        assert str(folder) in check.found
        assert "--runs DIR" in check.remedy


# shadowing


def test_own_packages_are_not_reported_as_shadowing() -> None:
    assert shadowed_packages() == []


def test_doctor_reports_package_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_unified.cli.shadowing.REQUIRED", ("ppo_unified_has_no_such_package",))
    (problem,) = shadowed_packages(tmp_path)
    assert "'ppo_unified_has_no_such_package': not found" in problem
    assert problem.endswith("; reinstall the project: pip install -e .")


def test_doctor_reports_distribution_with_our_package_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another distribution is reported if it comes first on sys.path, and if it installs into the same folder."""
    info = tmp_path / "other_envs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-envs\nVersion: 1.0\n", encoding="utf-8")
    (info / "top_level.txt").write_text("envs\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (same_folder,) = shadowed_packages()
    assert f"'envs': other-envs also installs into {ROOT / 'envs'} and" in same_folder
    assert same_folder.endswith(
        "; pip uninstall other-envs, or install ppo-unified into a separate virtual environment"
    )
    (elsewhere,) = shadowed_packages(tmp_path)  # for a project in tmp_path, `import` finds another folder
    assert f"'envs': import finds {ROOT / 'envs'} instead of {tmp_path / 'envs'}; pip uninstall other-envs" in elsewhere


def test_users_package_with_our_name_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    import_from_path = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
    import_from_path += (
        f"sys.path.insert(1, {str(ROOT)!r}); import runpy; runpy.run_module('ppo_unified', alter_sys=True"
    )
    words = [sys.executable, "-c", f"{import_from_path}, run_name='__main__')", "train", "cartpole"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"package 'envs': import finds {tmp_path / 'envs'} instead of {ROOT / 'envs'}; run `ppo-unified` instead of "
        f"`python -m ppo_unified`, or remove {tmp_path} from PYTHONPATH\n"
    )


def test_doctor_reports_hidden_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tui").mkdir()
    (tmp_path / "envs").mkdir()
    assert [check.verdict for check in check_names()] == ["ok"]
    (tmp_path / "envs" / "mine.py").touch()
    (check,) = check_names()
    assert (check.verdict, check.found) == (
        "warn",
        "packages of this program have the same names as your folders and shadow them: envs",
    )
    assert check.remedy == "rename them, or use paths such as envs/FILE.py:EnvId as targets"
    monkeypatch.chdir(ROOT)
    assert [check.verdict for check in check_names()] == ["ok"]
