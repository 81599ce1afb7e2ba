"""Tokenises text and labels for word search as Qdrant's `word` tokenizer does."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, tokenised as by Qdrant's `word` tokenizer."""
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def label_key(label: str) -> str:
    """Return a label's matching key: lower case, words separated by single spaces."""
    return " ".join(words_of(label))
