"""Tesseract: one process per call, so that several threads read several pages in parallel."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from typing import Any

import pytesseract
from PIL import Image

from agents.core.read_text import mean_confidence
from agents.core.text.geometry import Frame, Polygon, around, frame_of, rotated_back
from agents.core.text.languages import UNKNOWN
from agents.core.text.page import Page, page_of
from agents.models.weights import Unavailable
from schemas.values import TextSpan, TextWord
from streams.errors import Retryable

ENGINE = "tesseract"
# ISO 639-1 to Tesseract's names; any other name is passed on unchanged.
NAMES = {
    "en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por", "nl": "nld", "pl": "pol",
    "cs": "ces", "sk": "slk", "sv": "swe", "da": "dan", "no": "nor", "fi": "fin", "hu": "hun", "ro": "ron",
    "tr": "tur", "vi": "vie", "ko": "kor", "ja": "jpn", "zh": "chi_sim", "ru": "rus", "uk": "ukr", "bg": "bul",
    "sr": "srp", "be": "bel", "mk": "mkd", "el": "ell", "ar": "ara", "fa": "fas", "ur": "urd", "he": "heb",
    "yi": "yid", "hi": "hin", "mr": "mar", "ne": "nep", "th": "tha", "hy": "hye", "ka": "kat", "bn": "ben",
    "ta": "tam", "te": "tel", "gu": "guj", "am": "amh", "km": "khm", "lo": "lao", "my": "mya", "si": "sin",
    "bo": "bod", "kn": "kan", "ml": "mal", "pa": "pan",
}  # fmt: skip
_SURE = 0.7  # below this mean confidence the orientation is checked
_SIDE_LIMIT = 32_767  # pixels that Tesseract can index
# Signals sent by a supervisor or the kernel: the page did not cause the exit.
_ENDED_FROM_OUTSIDE = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL})


def installed_packs() -> tuple[str, frozenset[str]]:
    """Return the version of Tesseract and the names of its installed languages. Raises Unavailable without it."""
    os.environ["OMP_THREAD_LIMIT"] = "1"  # pages run in parallel; threads within one page would compete
    if shutil.which(pytesseract.pytesseract.tesseract_cmd) is None:
        raise Unavailable("the program tesseract is not installed (Debian: tesseract-ocr)")
    return str(pytesseract.get_tesseract_version()), frozenset(pytesseract.get_languages())


class TesseractReader:
    """Reads lines with Tesseract's page layout analysis, in its order. Thread-safe."""

    name = ENGINE

    def __init__(self, languages: Sequence[str] = ("en",), *, timeout_s: float = 60.0) -> None:
        """Find the program and its languages. Raises Unavailable when one is missing."""
        self.version, there = installed_packs()
        names = [NAMES.get(language, language) for language in languages]
        missing = [name for name in names if name not in there]
        if missing:
            raise Unavailable(f"tesseract has no language {', '.join(missing)} (Debian: tesseract-ocr-…)")
        self.languages = "+".join(names)
        self._can_turn = "osd" in there
        self._timeout_s = timeout_s

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image; see `page`."""
        return list(self.page(image).spans)

    def page(self, image: Image.Image) -> Page:
        """Return the text of an image. A page that reads badly and is rotated is rotated upright first.

        Raises Retryable when Tesseract takes longer than its timeout, or was killed by a signal from outside.
        """
        spans = self._lines(image)
        if not self._can_turn or mean_confidence(spans) >= _SURE or sum(len(s.text) for s in spans) < 20:
            return page_of(spans)
        degrees = self._rotation_needed(image)
        if not degrees:
            return page_of(spans)
        upright = self._lines(image.rotate(-degrees, expand=True))
        if mean_confidence(upright) <= mean_confidence(spans):
            return page_of(spans)
        return page_of([_rotated_back(span, degrees, image) for span in upright], rotation=degrees)

    def _rotation_needed(self, image: Image.Image) -> int:
        """Return by how many degrees clockwise the image must be rotated to be upright; 0 if unknown."""
        try:
            found = pytesseract.image_to_osd(
                image, output_type=pytesseract.Output.DICT, timeout=self._timeout_s, config="--psm 0"
            )
        except pytesseract.TesseractError as error:  # too few letters to detect it
            check_signal(error)
            return 0
        except RuntimeError:  # a timeout
            return 0
        return int(found["rotate"]) if float(found["orientation_conf"]) > 1 else 0

    def _lines(self, image: Image.Image) -> list[TextSpan]:
        if max(image.size) > _SIDE_LIMIT or min(image.size) < 3:
            return []
        data = words_in(image, self.languages, timeout_s=self._timeout_s)
        lines: dict[tuple[int, int, int], list[int]] = {}
        for index, word in enumerate(data["text"]):
            if str(word).strip() and float(data["conf"][index]) >= 0:
                position = (data["block_num"][index], data["par_num"][index], data["line_num"][index])
                lines.setdefault(position, []).append(index)
        return [_span(data, words, row) for row, words in enumerate(lines.values())]


def words_in(image: Image.Image, packs: str, *, timeout_s: float, config: str = "") -> dict[str, list[Any]]:
    """Return Tesseract's table of an image's words, a list for each column.

    Raises Retryable when it takes longer than the timeout or was killed by a signal from outside, and OSError.
    """
    try:
        data: dict[str, list[Any]] = pytesseract.image_to_data(
            image, lang=packs, output_type=pytesseract.Output.DICT, timeout=timeout_s, config=config
        )
    except pytesseract.TesseractError as error:
        check_signal(error)
        raise OSError(f"tesseract: {str(error)[:300]}") from error
    except RuntimeError as error:  # what pytesseract raises for a timeout
        raise Retryable(f"tesseract took longer than {timeout_s:g} s") from error
    return data


def _rotated_back(span: TextSpan, degrees: int, image: Image.Image) -> TextSpan:
    def back(polygon: Polygon) -> Polygon:
        return rotated_back(polygon, degrees, image.width, image.height)

    words = tuple(word.model_copy(update={"polygon": back(word.polygon)}) for word in span.words)
    return span.model_copy(update={"polygon": back(span.polygon), "words": words})


def _span(data: dict[str, list[int]], indexes: list[int], row: int) -> TextSpan:
    words = [_word(data, index) for index in indexes]
    frame = around(frame_of(word.polygon) for word in words)
    weight = sum(len(word.text) for word in words)
    return TextSpan(
        text=" ".join(word.text for word in words),
        confidence=sum(word.confidence * len(word.text) for word in words) / weight,
        polygon=frame.corners,
        engine=ENGINE,
        language=UNKNOWN,
        words=tuple(words),
        block=data["block_num"][indexes[0]],
        row=row,
    )


def _word(data: dict[str, list[int]], index: int) -> TextWord:
    left, top = float(data["left"][index]), float(data["top"][index])
    frame = Frame(left, top, left + float(data["width"][index]), top + float(data["height"][index]))
    sure = min(max(float(data["conf"][index]) / 100, 0.0), 1.0)
    return TextWord(text=str(data["text"][index]).strip(), confidence=sure, polygon=frame.corners)


def check_signal(error: pytesseract.TesseractError) -> None:
    """Raise Retryable if a signal from outside ended Tesseract."""
    if error.status in _ENDED_FROM_OUTSIDE:
        raise Retryable(f"tesseract was killed by {signal.Signals(-error.status).name}") from error
