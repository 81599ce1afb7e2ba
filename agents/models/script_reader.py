"""Reads lines in scripts that the default engine does not know, with Tesseract's packs of those languages.

Tesseract's own detection tells the script; the pack of a language in that script reads. The lines come as crops and
are read from one drawn page, in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytesseract
from PIL import Image

from agents.core.text.boxes import Pixels
from agents.core.text.decoding import Piece
from agents.core.text.doubt import KNOWN
from agents.core.text.scripts import COMMON, OF_TESSERACT, script_of, script_of_language
from agents.models.tesseract_reader import NAMES, check_signal, installed_packs, words_in

_GAP, _MARGIN = 20, 24  # pixels between the lines of the drawn page, and around them
_SYLLABLES = 0.2  # of a crop's height: with a smaller gap, what Tesseract calls words are syllables of one Korean word
_LEAST = 0.5  # confidence of a line
_SURE_SCRIPT = 3.0  # of Tesseract's confidence in the script
_LEAST_LETTERS = 5  # that Tesseract tries to detect a script from; its default of 50 is more than a sign has


@dataclass(frozen=True, slots=True)
class ScriptLine:
    """What a pack read of one line: its words, their places along the line, and its language."""

    pieces: tuple[Piece, ...]
    language: str

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join(piece.text for piece in self.pieces)

    @property
    def confidence(self) -> float:
        """Mean confidence, weighted by length."""
        letters = sum(len(piece.text) for piece in self.pieces)
        return sum(piece.confidence * len(piece.text) for piece in self.pieces) / letters if letters else 0.0


class ScriptReader:
    """Tesseract's packs by script. Thread-safe."""

    def __init__(self, languages: Sequence[str], *, timeout_s: float = 60.0) -> None:
        """Find which packs are installed. Raises Unavailable without Tesseract."""
        self.version, self._there = installed_packs()
        self._timeout_s = timeout_s
        self._detects = "osd" in self._there
        self.languages = tuple(language for language in languages if self.reads(language))

    def reads(self, language: str) -> bool:
        """Return whether the pack of a language is installed."""
        return NAMES.get(language, language) in self._there

    def read(self, crops: Sequence[Pixels], named: Sequence[str] = ()) -> tuple[list[ScriptLine | None], str]:
        """Return what the packs read of each crop (BGR), None for nothing, and a note of what was not read.

        `named` are the languages the caller expects: with a pack for one of them, the script is not detected.
        """
        page, tops = _drawn(crops)
        candidates = [each for each in named if self.reads(each) and script_of_language(each) not in KNOWN]
        script = guess = ""
        if not candidates:
            guess, sure = self._script(page)
            script = guess if sure >= _SURE_SCRIPT else self._script_by_reading(page)
            candidates = [each for each in self.languages if script_of_language(each) == script][:1]
        if not candidates:
            what = f"in the script {script or guess}" if script or guess else "in an unknown script"
            return [None] * len(crops), f"{len(crops)} lines {what}: no Tesseract language for it is installed"
        lines = max(
            (self._lines(page, tops, crops, language) for language in candidates),
            key=lambda found: sum(line.confidence for line in found if line is not None),
        )
        unread = sum(line is None for line in lines)
        return lines, f"{unread} lines could not be read" if unread else ""

    def _script(self, page: Image.Image) -> tuple[str, float]:
        """Return the script of a page, empty if it is unknown, and Tesseract's confidence in it."""
        if not self._detects:
            return "", 0.0
        try:
            found = pytesseract.image_to_osd(
                page,
                output_type=pytesseract.Output.DICT,
                timeout=self._timeout_s,
                config=f"--psm 0 -c min_characters_to_try={_LEAST_LETTERS}",
            )
        except pytesseract.TesseractError as error:  # too few letters to detect it
            check_signal(error)
            return "", 0.0
        except RuntimeError:  # a timeout
            return "", 0.0
        return OF_TESSERACT.get(str(found["script"]), ""), float(found["script_conf"])

    def _script_by_reading(self, page: Image.Image) -> str:
        """Return the script most letters are in when all packs read together; empty without packs."""
        if not self.languages:
            return ""
        packs = "+".join(NAMES.get(language, language) for language in self.languages)
        data = self._data(page, packs)
        sure = [
            str(word) for word, confidence in zip(data["text"], data["conf"], strict=True) if float(confidence) >= 50
        ]
        script = script_of(" ".join(sure))
        return script if script != COMMON else ""

    def _data(self, page: Image.Image, packs: str) -> dict[str, list[Any]]:
        return words_in(page, packs, timeout_s=self._timeout_s, config="--psm 6")

    def _lines(
        self, page: Image.Image, tops: Sequence[int], crops: Sequence[Pixels], language: str
    ) -> list[ScriptLine | None]:
        data = self._data(page, NAMES.get(language, language))
        words: list[list[Piece]] = [[] for _ in crops]
        for index, word in enumerate(data["text"]):
            text, sure = str(word).strip(), float(data["conf"][index])
            if not text or sure < 0:
                continue
            middle = data["top"][index] + data["height"][index] / 2
            row = min(range(len(tops)), key=lambda i: abs(tops[i] + crops[i].shape[0] / 2 - middle))
            width = crops[row].shape[1]
            start, end = data["left"][index] - _MARGIN, data["left"][index] + data["width"][index] - _MARGIN
            piece = Piece(text, sure / 100, min(max(start / width, 0), 1), min(max(end / width, 0), 1))
            last = words[row][-1] if words[row] else None
            if (
                language == "ko"
                and last is not None
                and (piece.start - last.end) * width < _SYLLABLES * crops[row].shape[0]
            ):
                words[row][-1] = _joined(last, piece)
            else:
                words[row].append(piece)
        lines = [
            ScriptLine(tuple(row), language) for row in words
        ]  # in Tesseract's order, also of scripts from the right
        return [line if line.pieces and line.confidence >= _LEAST else None for line in lines]


def _joined(one: Piece, other: Piece) -> Piece:
    return Piece(one.text + other.text, min(one.confidence, other.confidence), one.start, other.end)


def _drawn(crops: Sequence[Pixels]) -> tuple[Image.Image, list[int]]:
    """Return crops one below the other on a white page, and the first pixel row of each."""
    tops: list[int] = []
    row = _MARGIN
    for each in crops:
        tops.append(row)
        row += each.shape[0] + _GAP
    page = np.full((row + _MARGIN, max(each.shape[1] for each in crops) + 2 * _MARGIN, 3), 255, np.uint8)
    for each, top in zip(crops, tops, strict=True):
        page[top : top + each.shape[0], _MARGIN : _MARGIN + each.shape[1]] = each[:, :, ::-1]
    return Image.fromarray(page), tops
