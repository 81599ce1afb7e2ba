"""Which recognised lines to believe: text that is not there, and text in a script the engine does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.core.text.scripts import HAN, JAPANESE, LATIN, script_of_letter

_FOUND = 0.5  # the detector's score of a line; of noise it is mostly below
_SURE_FOUND, _SURE_READ = 0.7, 0.9  # for a line of one or two characters, which noise often resembles
_CERTAIN_FOUND, _CERTAIN_READ = 0.75, 0.95  # for those of an image without a longer line
_RINGS = frozenset("Oo0Q°〇○ ")
_READ = 0.6  # confidence of a longer line
KNOWN = frozenset({LATIN, HAN, JAPANESE})  # scripts of the default engine's alphabet that it was trained on


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one line: its text and its confidence, the detector's score, and its sides in pixels."""

    text: str
    confidence: float
    found: float
    width: float
    height: float


def is_text(line: Evidence) -> bool:
    """Return whether a line is what it says, rather than noise or a script the engine does not know."""
    letters = [letter for letter in line.text if not letter.isspace()]
    if not letters or line.found < _FOUND or is_unread(line):
        return False
    if not any(letter.isalnum() for letter in letters) and len(letters) < 3:
        return False
    if len(letters) <= 2:
        return line.found >= _SURE_FOUND and line.confidence >= _SURE_READ
    return line.confidence >= _READ


def believed(lines: Sequence[Evidence]) -> list[bool]:
    """Return which lines of one image are text.

    Without a longer line, one or two characters are believed only if they are certain, and rings alone, which many
    round things look like, never.
    """
    first = [is_text(line) for line in lines]
    if any(kept and _is_long(line) for kept, line in zip(first, lines, strict=True)):
        return first
    return [kept and _is_certain(line) for kept, line in zip(first, lines, strict=True)]


def _is_long(line: Evidence) -> bool:
    return len(line.text.replace(" ", "")) > 2 and not set(line.text) <= _RINGS


def _is_certain(line: Evidence) -> bool:
    ring = set(line.text) <= _RINGS
    return not ring and line.found >= _CERTAIN_FOUND and line.confidence >= _CERTAIN_READ


def is_unread(line: Evidence) -> bool:
    """Return whether a line is certainly text, and its script is not one the default engine reads.

    It then answers nothing, much fewer letters than the line has room for, letters of other scripts (its alphabet has
    Greek ones, for formulas), or letters it is not sure of.
    """
    if line.found < _READ or line.width < 1.5 * line.height:
        return False
    letters = [letter for letter in line.text if letter.isalnum()]
    scripts = [script_of_letter(letter) for letter in letters if letter.isalpha()]
    foreign = sum(script not in KNOWN for script in scripts)
    if foreign > len(letters) / 3:
        return True
    room = line.width / line.height  # square letters that fit in
    return len(letters) < 0.5 * room and room >= 3 and _few(line, letters)


def _few(line: Evidence, letters: Sequence[str]) -> bool:
    return len(letters) < 0.25 * line.width / line.height or line.confidence < 0.8
