"""Untrusted files, names and models cannot leave a folder, run code, use the network or control the terminal."""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_unified.cli.export import DESCRIPTION, FORMAT, _check_target
from ppo_unified.cli.main import main
from ppo_unified.config.presets import load_preset
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, notes, samples
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status, create, to_json
from ppo_unified.runs.heartbeat import BestEffort
from ppo_unified.training import checkpoint
from tests.conftest import ROOT
from tests.fuzz.readers import is_harmless

EVIL = "a\x1b[31m\x1b]52;c;aGk=\x07\x9b1mb\u202ec\u2066\x00[red]x[/red][@click=app.quit]y[/]"
ESCAPING = (
    "..",
    ".",
    "../a",
    "/tmp/a",
    "a/b",
    "a\x00b",
    "a\nb",
    "a\x1b[1m",
    "latest",
    ".a",
    "-a",
    "a\u202eb",
    "a\\b",
    "~a",
    "",
)
Capture = pytest.CaptureFixture[str]


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.mark),))


def make(runs: Path, name: str = "a", /, **status: Any) -> Run:
    """Create the folder of a finished run."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    usual: dict[str, Any] = {"name": name, "kind": "gym", "preset": "cartpole", "state": "finished"}
    usual |= {"step": 30, "total_steps": 30}
    run.write_status(Status(**(usual | status)))
    run.config.write_text('kind = "gym"\npreset = "cartpole"\n', encoding="utf-8")
    return run


def contents(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with the targets of symbolic links."""
    return {str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else "" for p in folder.rglob("*")}


# names


@pytest.mark.parametrize("name", ESCAPING)
def test_no_command_creates_or_renames_runs_outside_the_folder(tmp_path: Path, name: str) -> None:
    runs = tmp_path / "deep" / "runs"
    run = make(runs)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="run name"):
        control.rename(run, name)
    if name:  # without a name, `create` makes one
        with pytest.raises(UsageError, match="run name"):
            create(runs, name, "b")
    with pytest.raises(UsageError, match="run name"):
        create(runs, "", name)
    assert contents(tmp_path) == before


def test_name_in_run_json_has_no_effect(tmp_path: Path, capsys: Capture) -> None:
    """The name of a run is that of its folder."""
    victim, run = make(tmp_path, "victim"), make(tmp_path, "a", name="../victim")
    assert main(["delete", "a", "--yes", "--runs", str(tmp_path)]) == 0
    assert victim.path.is_dir()
    assert not run.path.exists()
    capsys.readouterr()


def test_preset_file_cannot_choose_another_run_folder(tmp_path: Path) -> None:
    from ppo_unified.config.presets import load_target
    from ppo_unified.runs.preparation import run_name

    path = tmp_path / "x.toml"
    path.write_text('kind = "gym"\npreset = "../../../x\\u0000\\u001b[1m"\n[gym]\nenv_id = "CartPole-v1"\n')
    config = load_target(str(path))
    run = create(tmp_path / "runs", "", run_name(config, config))
    assert run.path.parent == tmp_path / "runs"
    assert run.name.isprintable()


# links


def test_delete_removes_links_but_never_their_targets(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "000000000010").mkdir(parents=True)
    (precious / "thesis.tex").write_text("x")
    before = contents(precious)
    for name in ("checkpoints", "samples", "export", "deep/down"):
        run = make(tmp_path / "runs", name.replace("/", "-"))
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).symlink_to(precious)
        control.delete(run)
        assert not run.path.exists()
        assert contents(precious) == before
    target = make(tmp_path / "elsewhere")
    link = Run(tmp_path / "runs" / "link")
    link.path.symlink_to(target.path)
    control.delete(link)
    assert not link.path.is_symlink()
    assert (target.path / "run.json").is_file()


@pytest.mark.parametrize("name", ["log.txt", "run.lock", "checkpoints", "samples", "nonfinite", "export"])
def test_resume_rejects_run_behind_a_link(tmp_path: Path, capsys: Capture, name: str) -> None:
    run = make(tmp_path / "runs", state="stopped")
    run.config.write_text(load_preset("cartpole").to_toml(), encoding="utf-8")
    (tmp_path / "precious").mkdir()
    (run.path / name).symlink_to(tmp_path / "precious" / "bashrc")
    before = contents(tmp_path)
    assert main(["resume", "a", "--runs", str(run.path.parent)]) == 2
    assert f"{run.path / name} is a symbolic link" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_delete_rejects_folders_that_are_not_runs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text("x")
    with pytest.raises(UsageError, match="no run"):
        control.delete(Run(folder))
    with pytest.raises(UsageError, match="no run"):
        control.delete(Run(tmp_path / "nothing"))
    assert contents(folder) == {"a.jpg": ""}


def test_pruning_and_truncation_touch_only_own_files(tmp_path: Path) -> None:
    """The target of a symbolic link is not touched either."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    run = make(tmp_path / "runs")
    (run.checkpoints / "000000000010").mkdir(parents=True)
    (run.checkpoints / "000000000020").symlink_to(precious)
    for name in ("2024", "photos", "\u00b2"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "000000000099").mkdir()
    checkpoint.prune(run, 1)
    assert (precious / "thesis.tex").is_file()
    assert {"2024", "photos", "\u00b2", "000000000099"} <= set(os.listdir(run.checkpoints))
    folder = run.samples
    folder.mkdir()
    (folder / "00000009.npz").symlink_to(precious / "thesis.tex")
    (folder / "\u00b2.npz").write_text("x")
    samples.truncate(run, 3, 0)
    assert os.listdir(folder) == ["\u00b2.npz"]
    assert (precious / "thesis.tex").is_file()


def test_forged_export_description_cannot_replace_files(tmp_path: Path) -> None:
    """policy.json lists the files of an earlier export; a forged list cannot move files outside the folder."""
    (tmp_path / "thesis.tex").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    (out / "deep").symlink_to(tmp_path)
    files = ["../thesis.tex", str(tmp_path / "thesis.tex"), "deep/thesis.tex", DESCRIPTION]
    (out / DESCRIPTION).write_text(json.dumps({"format": FORMAT, "run": "a", "files": files}))
    with pytest.raises(UsageError, match="the folder contains other files"):
        _check_target(out, "a")
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize("files", [[1], [None, DESCRIPTION], 1, "deep/a"])
def test_export_beside_malformed_description_is_rejected(tmp_path: Path, files: Any) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").touch()
    (tmp_path / DESCRIPTION).write_text(json.dumps({"format": FORMAT, "run": "a", "files": files}))
    with pytest.raises(UsageError, match="the folder contains other files"):
        _check_target(tmp_path, "a")


def test_export_to_non_utf8_path_is_rejected_early(tmp_path: Path) -> None:
    """torch would abort the process for such a path."""
    with pytest.raises(UsageError, match="expected a path in UTF-8"):
        _check_target(tmp_path / os.fsdecode(b"ex\xff"), "a")
    assert not contents(tmp_path)


# code


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_checkpoint_runs_no_code(tmp_path: Path, protocol: int, capsys: Capture) -> None:
    """All commands that read checkpoints are tested with pickles in every file of a checkpoint."""
    run, mark = make(tmp_path / "runs", state="stopped"), tmp_path / "executed"
    folder = checkpoint.checkpoint_folder(run, 10)
    folder.mkdir(parents=True)
    evil = pickle.dumps(Payload(mark), protocol)
    suffixes = (".pt", ".safetensors", ".json", ".bin", ".pkl", ".npz")
    for stem in ("policy", "trainer", "meta", "optimizer", "environment", "state"):
        for suffix in suffixes:
            (folder / f"{stem}{suffix}").write_bytes(evil)
    sample = run.samples / "00000001.npz"
    sample.parent.mkdir(exist_ok=True)
    sample.write_bytes(evil)
    for command in ("eval", "play", "inspect", "show", "compare", "runs"):
        arguments = [command, *([] if command == "runs" else [run.name]), "--runs", str(run.path.parent)]
        if command in ("eval", "play"):
            arguments += ["--checkpoint", "latest"]
        assert main(arguments) in (0, 1, 2), command
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    with suppress(UsageError):
        checkpoint.load_newest(run, torch.device("cpu"))
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.is_dir(), "the payload must work when it is unpickled"


def test_pickle_model_runs_no_code(tmp_path: Path) -> None:
    from envs.llm.model import load_causal_lm, load_reward_model
    from envs.llm.options import LLM
    from tests.models import save_model

    folder, mark = save_model(tmp_path / "model"), tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    torch.save(Payload(mark), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"llm\.model"):
        load_causal_lm(str(folder), LLM(), torch.device("cpu"), torch.float32)
    with pytest.raises(UsageError, match=r"llm\.reward"):
        load_reward_model(str(folder), "llm.reward", torch.float32)
    assert not mark.exists()


def test_model_with_custom_code_is_rejected_without_prompting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would otherwise prompt for permission to run the code."""
    from envs.llm.model import load_config, load_tokenizer
    from tests.models import save_model

    folder, mark = save_model(tmp_path / "model"), tmp_path / "executed"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["own.C", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    def fail_on_prompt(*_: object) -> str:
        raise AssertionError("input() was called")

    monkeypatch.setattr("builtins.input", fail_on_prompt)
    with pytest.raises(UsageError, match=r"trust_remote_code|custom code"):
        load_config(str(folder))
    with suppress(UsageError):
        load_tokenizer(str(folder))
    assert not mark.exists()


def test_chat_template_cannot_reach_python_objects(tmp_path: Path) -> None:
    from envs.llm.data import PromptData
    from envs.llm.model import load_tokenizer
    from envs.llm.prompts import tokenize
    from tests.models import save_model

    tokenizer = load_tokenizer(str(save_model(tmp_path / "model")))
    mark = tmp_path / "executed"
    tokenizer.chat_template = (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
        f"{{{{ c.__init__.__globals__['mkdir']({str(mark)!r}) }}}}{{% endif %}}{{% endfor %}}"
    )
    with pytest.raises(UsageError, match="unsafe"):
        tokenize(PromptData(["a"], {}, "prompts", [1]), tokenizer, True, 8)
    assert not mark.exists()


def test_reading_commands_do_not_import_named_modules(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "executed"
    (tmp_path / "evil_module.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    run = make(tmp_path / "runs", state="stopped")
    named = '[gym]\nenv_id = "evil_module:A-v0"\nwrappers = ["evil_module:W"]\n'
    run.config.write_text(f'kind = "gym"\npreset = "x"\n{named}')
    for arguments in (["runs", "gym.env_id:evil"], ["show", "latest", "--once"], ["compare", "latest", "--seeds"]):
        assert main(arguments) == 0, arguments
    main(["inspect", "latest"])
    assert not mark.exists()
    assert main(["train", str(run.config)]) == 2
    assert mark.is_dir(), "the module must work when it is imported"
    capsys.readouterr()


def test_exported_program_is_as_trusted_as_code(tmp_path: Path) -> None:
    """torch.export.load uses pickle, so docs/security.md lists exported programs among the inputs that execute code."""
    program, mark = tmp_path / "policy.pt2", tmp_path / "executed"
    torch.export.save(torch.export.export(torch.nn.Linear(2, 1), (torch.ones(1, 2),)), program)
    with zipfile.ZipFile(program) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    evil = io.BytesIO()
    torch.save(Payload(mark), evil)
    with zipfile.ZipFile(program, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, evil.getvalue() if "sample_inputs" in name else data)
    with suppress(Exception):
        torch.export.load(program)
    assert mark.is_dir()


@cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """Return every call in the packages: its location, its node and the name of the called function."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node, ast.unparse(node.func))
        for package in ("ppo_unified", "envs", "tui")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_code_uses_no_shell_eval_or_pickle() -> None:
    words = (
        "pickle.",
        "marshal.",
        "shelve.",
        "dill.",
        "joblib.",
        "yaml.",
        "os.system",
        "os.popen",
        "subprocess.getoutput",
    )
    wrong = []
    for where, call, name in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        wrong += [f"{where}: {name}"] * (name in ("eval", "exec", "compile", "__import__") or name.startswith(words))
        wrong += [f"{where}: shell"] * ("shell" in given)
        wrong += [f"{where}: {name}"] * (name == "torch.load")
        wrong += [f"{where}: {name}"] * (name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
        wrong += [f"{where}: {name}"] * (given.get("trust_remote_code", "False") != "False")
    assert not wrong
    assert sum(name == "np.load" for _, _, name in calls()), "the search must find the known calls"


def test_dynamic_imports_are_limited() -> None:
    """Only rewards, environments and wrappers that a configuration names are imported, as docs/security.md states."""
    found = {where.partition(":")[0] for where, _, name in calls() if name.endswith(("import_module", "preload"))}
    commands = {
        f"ppo_unified/cli/{name}.py"
        for name in (
            "common",
            "critics",
            "main",
            "policy",
            "regress",
            "run_training",
            "standby",
            "train",
            "tui",
            "what_if",
        )
    }
    assert found <= commands | {
        "ppo_unified/__init__.py",
        "ppo_unified/config/registry.py",
        "envs/llm/rewards/functions.py",
        "envs/gym/targets.py",
    }


# the network


def test_tensorboard_listens_on_localhost_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from ppo_unified.cli import tensorboard

    served: list[list[str]] = []

    def serve(command: Sequence[str]) -> int:
        served.append(list(command))
        return 0

    monkeypatch.setattr(tensorboard, "_serve", serve)
    make(tmp_path)
    options = argparse.Namespace(run=["a"], folder=tmp_path, port=0)
    assert tensorboard.run(options) == 0
    (command,) = served
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert not {"--bind_all", "--path_prefix"} & set(command)
    capsys.readouterr()


# the terminal


def make_hostile_run(runs: Path) -> Run:
    """Create a run in which every text contains control sequences and markup."""
    name = EVIL.replace("\x00", "").replace("/", "")
    status: dict[str, Any] = {key: EVIL for key, value in asdict(Status()).items() if isinstance(value, str)}
    status |= {"state": "failed", "kind": "gym", "versions": {EVIL: EVIL}, "resumes": [{"from_state": EVIL, "step": 3}]}
    run = make(runs, name, **status, started=1.7e9, best_step=3, solved_step=4, score=1.0)
    run.config.write_text(
        f'kind = "gym"\npreset = {json.dumps(EVIL)}\n[gym]\n{json.dumps(EVIL)} = {json.dumps(EVIL)}\n'
    )
    notes.write_note(run, EVIL)
    for path in (run.log, run.command):
        path.write_text(f"{EVIL}\n" * 3)
    events = EventWriter(run.path)
    for step in (10, 20, 30):
        events.scalars(step, {EVIL: 0.5, "eval/score": 0.5, f"system/{EVIL}": 1.0})
    events.close()
    mask = np.ones((1, 2), bool)
    columns = {
        "mask": mask,
        "continues": ~mask,
        "reward": np.zeros((1, 2)),
        "text": np.full((1, 2), EVIL),
        "own": np.full((1, 2), EVIL),
    }
    more: dict[str, Any] = {"options": {EVIL: {EVIL: EVIL}}, "record": {EVIL: [EVIL]}, "vocabulary": {0: EVIL}}
    likeliest = samples.Alternatives(np.zeros((1, 2, 1), int), np.zeros((1, 2, 1)))
    more |= {"alternatives": {"old": likeliest}}
    stored = samples.StoredIteration(1, 3, 2, 0.9, 0.8, 0.2, 0.2, EVIL, EVIL, {EVIL: 1.0}, columns, **more)
    samples.write(run, stored)
    samples.append_responses(run, 3, 1, [{"prompt": EVIL, "response": EVIL, EVIL: EVIL}])
    return run


COMMANDS = (
    ["runs"],
    ["runs", "reason:x"],
    ["show", "latest", "--once"],
    ["show", "latest", "--once", "--metric", EVIL],
    ["show", "latest", "--metric", "no" + EVIL],
    ["show", "latest", "--csv"],
    ["compare", "latest", "b"],
    ["compare", "latest", "b", "--seeds"],
    ["inspect", "latest"],
    ["note", "latest"],
    ["eval", "latest"],
    ["play", "latest"],
    ["resume", "latest"],
    ["stop", "latest"],
    ["export", "latest", "--to", "out"],
    ["rename", "latest", EVIL],
    ["delete", "latest"],
    ["train", EVIL],
    ["train", "cartpole", "--" + EVIL],
    ["train", "cartpole", "--name", EVIL],
    ["recipes", EVIL],
    [EVIL],
    ["runs", EVIL],
    ["show", EVIL],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda x: " ".join(x).encode("unicode_escape").decode()[:50])
def test_commands_sanitize_foreign_text(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_hostile_run(tmp_path / "runs")
    make(tmp_path / "runs", "b", started=1.0)
    with suppress(SystemExit):
        assert main(arguments) in (0, 1, 2)
    output = capsys.readouterr()
    assert output.out or output.err
    for text in (output.out, output.err):
        assert is_harmless(text), [c for c in text if not is_harmless(c)]


@pytest.mark.parametrize("arguments", [["runs", "--runs", "a"], ["runs", "x", "--runs", "b"], ["doctor"]], ids=" ".join)
def test_commands_sanitize_folder_names(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    folder = tmp_path / EVIL.replace("\x00", "").replace("/", "")
    make(folder / "b")
    monkeypatch.chdir(folder)
    assert main([str(folder / word) if word in ("a", "b") else word for word in arguments]) == 0
    output = capsys.readouterr()
    assert "[red]" in output.out + output.err
    assert is_harmless(output.out + output.err)


def test_storage_warnings_sanitize_foreign_text(tmp_path: Path, capsys: Capture) -> None:
    run = make(tmp_path / EVIL.replace("\x00", "").replace("/", ""))
    run.acquire()
    writes = BestEffort(run)
    with writes.attempt("run.json"):
        raise OSError(EVIL)
    with writes.attempt("run.json"):
        pass
    run.release()
    output = capsys.readouterr().err
    assert "cannot write run.json" in output
    assert "writing run.json works again" in output
    assert is_harmless(output)


def test_json_output_escapes_foreign_text(tmp_path: Path, capsys: Capture) -> None:
    make_hostile_run(tmp_path)
    for command in ("runs", "show latest", "inspect latest"):
        assert main([*command.split(), "--json", "--runs", str(tmp_path)]) == 0
        document = capsys.readouterr().out
        assert document.isascii()
        assert is_harmless(document)
        assert "\x1b]52" in str(list(json.loads(document))) or "1b" in document
    assert to_json(EVIL).isascii()


def test_tui_shows_foreign_text_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tab of the run page interprets markup or draws control characters."""
    import asyncio

    from tui.app import Terminal

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    make_hostile_run(tmp_path / "runs")
    drawn: list[str] = []

    async def look() -> None:
        app = Terminal(tmp_path / "runs")
        async with app.run_test(size=(120, 40)) as pilot:
            for keys in ("", "enter", "2", "3", "4", "5", "6"):
                if keys:
                    await pilot.press(keys)
                await pilot.pause(0.05)
                for line in app.screen._compositor.render_strips():
                    drawn.append("".join(segment.text for segment in line))
            assert app.is_running

    asyncio.run(look())
    assert any("aa" in line or "[red]x" in line for line in drawn), "the run was not drawn"
    assert all(is_harmless(line) for line in drawn), [line for line in drawn if not is_harmless(line)][:3]
