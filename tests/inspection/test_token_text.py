"""Tests of token texts on the screen: nothing is invisible, and split characters are shown once."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from envs.llm.explain import token_texts
from ppo_unified.inspection.token_text import BYTE, PART, pieces_of, visible_text
from ppo_unified.text import decode_bytes, display_width
from tests.models import make_tokenizer

TEXTS = {
    "chinese": "语言模型。\u3000強化",
    "emoji": "ok 👩\u200d👩\u200d👧 \u2764\ufe0f!",
    "right to left": "שלום \u202eعليكم",
    "thai": "ที่นี่",
    "combining": "e\u0301a\u0300",
    "control": "a\n\tb\x1b[31m\0",
    "backslash": r"\xe4\udce4 \n",
}


def split(text: str, seed: int) -> list[str]:
    """Split the bytes of a text at random places."""
    rng, encoded = random.Random(seed), text.encode()
    cuts = sorted(rng.sample(range(1, len(encoded)), k=rng.randrange(len(encoded))))
    pairs = zip([0, *cuts], [*cuts, len(encoded)], strict=True)
    return [encoded[start:end].decode("utf-8", "surrogateescape") for start, end in pairs]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("name", TEXTS)
def test_every_split_of_a_text_shows_it_once(name: str, unicode: bool) -> None:
    text = TEXTS[name]
    for seed in range(50):
        texts = split(text, seed)
        pieces = pieces_of(texts, unicode)
        assert len(pieces) == len(texts)
        for piece in pieces:
            assert piece.isprintable()
            assert display_width(piece) >= 1
            assert display_width(piece[0]) >= 1
            assert unicode or piece.isascii()
        if unicode:
            assert "".join(pieces).replace(PART[0], "").replace("◌", "") == visible_text(text)


def bytes_of(text: str) -> list[str]:
    return [chr(0xDC00 + byte) if byte > 127 else chr(byte) for byte in text.encode()]


def test_split_characters_are_shown_at_their_last_token() -> None:
    assert pieces_of(bytes_of("a语b")) == ["a", "⋯", "⋯", "语", "b"]
    assert pieces_of(["a\udce8\udcaf", "\udcad b"]) == ["a⋯", "语 b"]
    assert pieces_of(["a\udce8\udcaf", "\udcad b"], unicode=False) == ["a~", "?? b"]
    assert pieces_of(["\udce8\udcaf", "b", "\udcad"]) == ["⟨E8⟩⟨AF⟩", "b", "⟨AD⟩"]
    assert pieces_of(["\udcff", "\ufffd", ""]) == ["⟨FF⟩", "\ufffd", "∅"]


def test_escapes_differ_from_backslashes() -> None:
    assert pieces_of([r"\xe4", "\udce4"]) == [r"\xe4", "⟨E4⟩"]
    assert decode_bytes("\\xe4 \udce8\udcaf\udcad \udce4") == r"\xe4 语 \xe4"
    assert decode_bytes("\ud800") == "\ud800"  # not a byte
    assert visible_text("\ud800") == "�"


def test_invisible_characters_have_signs() -> None:
    assert visible_text("a\n\t\x1b\0\u202e\u200d\ue000\u3000\u00a0.") == "a⏎⇥␛�··�   ."
    assert visible_text("a\n\t\x1b\0é语", unicode=False) == r"a\n\t\e????"
    assert pieces_of(["e", "\u0301", "\u0e31"]) == ["e", "◌\u0301", "◌\u0e31"]


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "backslash"])
def test_byte_level_tokens_show_the_text(name: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXTS[name])["input_ids"]
    texts = [token_texts(tokenizer, ids)[i] for i in ids]
    assert len(texts) == len(TEXTS[name].encode())
    assert decode_bytes("".join(texts)) == TEXTS[name]
    assert "".join(pieces_of(texts)).replace(PART[0], "").replace("◌", "") == visible_text(TEXTS[name])


def test_byte_fallback_tokens_show_the_text() -> None:
    names = ["<unk>", "\u2581", *"abc", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = [
        names.index(piece) for piece in ("a", "\u2581", *(f"<0x{byte:02X}>" for byte in "语🙂\n".encode()), "<0xE8>")
    ]
    texts = [token_texts(tokenizer, ids)[i] for i in ids]
    assert pieces_of(texts) == ["a", " ", *"⋯⋯语⋯⋯⋯🙂⏎", BYTE[0].format(0xE8)]


def test_width_ignores_all_nonspacing_marks() -> None:
    assert [display_width(text) for text in ("e\u0301", "\u0e17\u0e35", "\u2764\ufe0f", "语", "a")] == [1, 1, 1, 2, 1]
