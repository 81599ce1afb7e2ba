"""Letters and words from a recogniser's answer: connectionist temporal classification (Graves et al., 2006), greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

BLANK = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """One character, its confidence, and its middle as a fraction of the line's width."""

    text: str
    confidence: float
    at: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One word of a line, its confidence, and its ends as fractions of the line's width."""

    text: str
    confidence: float
    start: float
    end: float


def letters_of(
    best: npt.NDArray[np.integer], confidence: npt.NDArray[np.float32], alphabet: Sequence[str], width: float
) -> list[Letter]:
    """Return the letters of one line: `best` has the most likely class of each time step.

    `width` is the number of time steps that the line itself covers; those after it are padding. A repeated class is one
    letter, unless a blank separates its steps; its confidence is the greatest of its steps.
    """
    letters: list[Letter] = []
    start = 0
    count = len(best)
    while start < count:
        end = start + 1
        while end < count and best[end] == best[start]:
            end += 1
        if best[start] != BLANK:
            sure = float(confidence[start:end].max())
            letters.append(Letter(alphabet[int(best[start])], sure, min((start + end) / 2 / width, 1.0)))
        start = end
    return letters


def pieces_of(letters: Sequence[Letter]) -> list[Piece]:
    """Return the words of a line: its letters between white space, with ends half-way to the neighbouring letters."""
    shown = [letter for letter in letters if not letter.text.isspace()]
    if not shown:
        return []
    steps = [after.at - before.at for before, after in pairwise(letters)]
    half = (median(steps) if steps else 1.0) / 2
    words: list[list[Letter]] = [[]]
    for letter in letters:
        if letter.text.isspace():
            words.append([])
        else:
            words[-1].append(letter)
    return [
        Piece(
            "".join(letter.text for letter in word),
            sum(letter.confidence for letter in word) / len(word),
            max(word[0].at - half, 0.0),
            min(word[-1].at + half, 1.0),
        )
        for word in words
        if word
    ]
