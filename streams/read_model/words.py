"""Tokenising text and labels for word search, the way Qdrant's `word` tokenizer does."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, as Qdrant's `word` tokenizer cuts them."""
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def label_key(label: str) -> str:
    """Return a label as it is matched: in small letters, its words between single spaces."""
    return " ".join(words_of(label))
