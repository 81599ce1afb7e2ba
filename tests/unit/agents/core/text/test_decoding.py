"""Letters and words from the classes of time steps."""

from __future__ import annotations

import numpy as np
import pytest

from agents.core.text.decoding import Letter, letters_of, pieces_of

ALPHABET = ("", "a", "b", " ")


def test_repeated_classes_are_one_letter_unless_a_blank_lies_between() -> None:
    """`aa-ab` is read as `aab`; each letter has its surest step, and its place."""
    best = np.array([1, 1, 0, 1, 2, 0])
    sure = np.array([0.5, 0.9, 1.0, 0.8, 0.7, 1.0], np.float32)
    letters = letters_of(best, sure, ALPHABET, 6)
    assert [letter.text for letter in letters] == ["a", "a", "b"]
    assert [letter.confidence for letter in letters] == pytest.approx([0.9, 0.8, 0.7])
    assert [letter.at for letter in letters] == pytest.approx([1 / 6, 3.5 / 6, 4.5 / 6])


def test_blanks_alone_are_no_letters() -> None:
    """A line of blanks, or of no steps, has no letters and no words."""
    assert letters_of(np.zeros(5, int), np.ones(5, np.float32), ALPHABET, 5) == []
    assert letters_of(np.zeros(0, int), np.ones(0, np.float32), ALPHABET, 1) == []
    assert pieces_of([]) == []
    assert pieces_of([Letter(" ", 0.9, 0.5)]) == []


def test_words_are_letters_between_spaces() -> None:
    """Words have the mean confidence of their letters, and ends between their letters and the next."""
    letters = [Letter(text, 0.8, 0.1 + 0.1 * i) for i, text in enumerate("ab a")]
    first, second = pieces_of(letters)
    assert (first.text, second.text) == ("ab", "a")
    assert first.confidence == pytest.approx(0.8)
    assert (first.start, first.end) == pytest.approx((0.05, 0.25))
    assert (second.start, second.end) == pytest.approx((0.35, 0.45))
