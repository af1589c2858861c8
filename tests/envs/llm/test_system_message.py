"""Tests of the system message of a run's prompts in `play` and in the README of an export."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.export import _find_system, export
from envs.llm.options import LLMConfig
from envs.llm.play import LLMChat
from envs.llm.prompts import find_system_message
from tests.models import make_tokenizer, save_model

ABOUT: dict[str, Any] = {"run": "a", "step": 3, "score": None, "versions": {}}
BRIEF = {"role": "system", "content": "Be brief."}
KIND = {"role": "system", "content": "Be kind."}
NONE_SHARED = "the run's prompts do not share one system message, so this prompt has none"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def make_adapter(folder: Path, *chats: list[dict[str, str]]) -> LLMAdapter:
    save_model(folder / "lm")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "lm")
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    llm: dict[str, Any] = {"model": str(folder / "lm"), "prompts": str(folder / "chats.jsonl"), "reward": "length:3"}
    llm |= {"max_new_tokens": 3, "critic": "shared"}
    return LLMAdapter(LLMConfig.model_validate({"llm": llm, "threads": 1}), torch.device("cpu"), notes=False)


@pytest.mark.parametrize(
    ("second", "seen", "note", "text"),
    [
        (BRIEF, "<system>Be brief.<user>hi!", "as in training, the system message is: Be brief.", "Use it for your"),
        (KIND, "<user>hi!", NONE_SHARED, "did not share"),
        (None, "<user>hi!", NONE_SHARED, "did not share"),
    ],
)
def test_play_and_export_use_a_shared_system_message(
    tmp_path: Path, second: dict[str, str] | None, seen: str, note: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path, [BRIEF, user("a")], [second, user("b")] if second else [user("b")])
    respond = Mock(wraps=adapter.respond)
    monkeypatch.setattr(adapter, "respond", respond)
    chat = LLMChat(adapter, 0, greedy=True)
    exchange = chat.answer("hi")
    assert [adapter.tokenizer.decode(call.args[0][0]) for call in respond.call_args_list] == [seen, seen]
    assert (exchange.prompt, exchange.remark) == ("hi", note)
    assert chat.answer("hi").remark == ""  # the note appears once
    export(adapter, tmp_path / "out", ABOUT)
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert text in page
    assert (repr(BRIEF) in page) == (second == BRIEF)


def test_play_scores_a_known_prompt_with_system_message(tmp_path: Path) -> None:
    """The prompts of the run, which have the columns for the reward, are found by their text."""
    adapter = make_adapter(tmp_path, [BRIEF, user("a")])
    assert LLMChat(adapter, 0, greedy=True).answer("a").policy.score is not None


def test_prompts_without_system_message_need_no_note() -> None:
    assert find_system_message(["a", [user("b")]]) == ([], "")


def test_readme_code_has_no_system_message_with_backticks() -> None:
    prompts = [[{"role": "system", "content": "Write ```x```."}, user("a")]]
    adapter = SimpleNamespace(prompts=SimpleNamespace(data=SimpleNamespace(prompts=prompts)))
    system, text = _find_system(adapter)  # type: ignore[arg-type] # only the prompts are read
    assert system == []
    assert "Add it to your prompts." in text
