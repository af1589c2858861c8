"""Ends responses at the strings in llm.stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPARE = 8  # extra tokens that are decoded before a stop string, because some tokens contain only a part of a character


class StopStrings:
    """Finds stop strings in responses. A response ends with the token that completes the first stop string."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, list(strings)
        self.window = max(len(string.encode()) for string in strings) + SPARE
        self.special = frozenset(tokenizer.all_special_ids)
        self.last = {string[-1] for string in strings}
        self.relevant: dict[int, bool] = {}  # token -> True if the token can complete a stop string

    def completes(self, response: Sequence[int]) -> bool:
        """Return True if the last token of `response` completes a stop string.

        Only the last tokens are decoded, and only if the text of the last one contains the end of a stop string.
        """
        if not self._is_relevant(response[-1]):
            return False
        ids = [token for token in response[-2 * self.window :] if token not in self.special][-self.window :]
        return self._find(self._decode(ids)) >= 0

    def cut(self, text: str) -> str:
        """Return the text before the first stop string, or the whole text if it contains no stop string."""
        start = self._find(text)
        return text if start < 0 else text[:start]

    def _find(self, text: str) -> int:
        return min((start for string in self.strings if (start := text.find(string)) >= 0), default=-1)

    def _is_relevant(self, token: int) -> bool:
        if token not in self.relevant:
            text = self._decode([token])
            # Decoded alone, a token can lose its leading space, and a part of a character has no text of its own
            complete = text.strip() and "\ufffd" not in text and not any(c.isspace() for c in self.last)
            self.relevant[token] = token not in self.special and (not complete or not self.last.isdisjoint(text))
        return self.relevant[token]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
