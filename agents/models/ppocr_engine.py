"""PP-OCR for the scripts it knows and Tesseract's packs for others, as one reader of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from agents.core.text.boxes import Pixels, crop
from agents.core.text.decoding import Piece, pieces_of
from agents.core.text.doubt import KNOWN, believed, is_unread
from agents.core.text.geometry import Polygon, polygon_of, within
from agents.core.text.languages import UNKNOWN
from agents.core.text.page import Page, laid_out
from agents.core.text.scripts import script_of_language
from agents.models.ppocr_reader import HEIGHT, Line, PpocrReader
from agents.models.script_reader import ScriptLine, ScriptReader
from agents.models.tesseract_reader import ENGINE as TESSERACT
from schemas.values import TextSpan, TextWord

ENGINE = "ppocr"
_ENOUGH = 3.0  # line heights of unread text, all lines together, that are worth another engine


@dataclass(frozen=True, slots=True)
class PpocrEngine:
    """The default engine. Thread-safe."""

    reader: PpocrReader
    scripts: ScriptReader | None

    @property
    def name(self) -> str:
        """Name of the engine."""
        return ENGINE

    def knows(self, language: str) -> bool:
        """Return whether a language is read, by PP-OCR or by an installed pack."""
        known = script_of_language(language) in KNOWN
        return known or (self.scripts is not None and self.scripts.reads(language))

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image in reading order."""
        return list(self.page(image).spans)

    def page(self, image: Image.Image, named: Sequence[str] = (), min_confidence: float = 0.0) -> Page:
        """Return the text of an image; `named` are the languages the caller expects."""
        pixels = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
        lines, rotation = self.reader.lines(pixels)
        kept_lines = believed([line.evidence for line in lines])
        spans = [_span(line) for line, kept in zip(lines, kept_lines, strict=True) if kept]
        others, notes = self._other_scripts(pixels, [line for line in lines if is_unread(line.evidence)], named)
        kept = [span for span in (*spans, *others) if span.confidence >= min_confidence]
        return laid_out(kept, rotation=rotation, notes=notes)

    def _other_scripts(
        self, pixels: Pixels, lines: Sequence[Line], named: Sequence[str]
    ) -> tuple[list[TextSpan], tuple[str, ...]]:
        if sum(line.evidence.width / max(line.evidence.height, 1.0) for line in lines) < _ENOUGH:
            return [], ()
        if self.scripts is None:
            return [], (f"{len(lines)} lines in another script: Tesseract is not installed",)
        crops = [crop(pixels, line.corners, HEIGHT) for line in lines]
        found, note = self.scripts.read(crops, named)
        spans = [
            _script_span(answer, polygon_of(line.corners))
            for answer, line in zip(found, lines, strict=True)
            if answer is not None
        ]
        return spans, (note,) if note else ()


def _span(line: Line) -> TextSpan:
    corners = polygon_of(line.corners)
    pieces = pieces_of(line.letters)
    return TextSpan(
        text=" ".join(piece.text for piece in pieces),
        confidence=min(line.evidence.confidence, 1.0),
        polygon=corners,
        engine=ENGINE,
        language=UNKNOWN,
        words=_words(pieces, corners),
    )


def _script_span(line: ScriptLine, corners: Polygon) -> TextSpan:
    return TextSpan(
        text=line.text,
        confidence=min(line.confidence, 1.0),
        polygon=corners,
        engine=TESSERACT,
        language=line.language,
        words=_words(line.pieces, corners),
    )


def _words(pieces: Sequence[Piece], corners: Polygon) -> tuple[TextWord, ...]:
    return tuple(
        TextWord(
            text=piece.text,
            confidence=min(max(piece.confidence, 0.0), 1.0),
            polygon=within(corners, piece.start, piece.end),
        )
        for piece in pieces
    )
