"""Tesseract: one process per call, so that several threads read several pages in parallel."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence

import pytesseract
from PIL import Image

from agents.core.read_text import Polygon, frame_of, mean_confidence, rotated_back
from agents.models.weights import Unavailable
from schemas.values import TextSpan
from streams.errors import Retryable

ENGINE = "tesseract"
# ISO 639-1 to Tesseract's names; any other name is passed on unchanged.
_NAMES = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por", "nl": "nld", "pl": "pol"}
_SURE = 0.7  # below this mean confidence the orientation is checked
_SIDE_LIMIT = 32_767  # pixels that Tesseract can index
# Signals sent by a supervisor or the kernel: the page did not cause the exit.
_ENDED_FROM_OUTSIDE = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL})


class TesseractReader:
    """Reads lines with Tesseract's page layout analysis, in its order. Thread-safe."""

    def __init__(self, languages: Sequence[str] = ("en",), *, timeout_s: float = 60.0) -> None:
        """Find the program and its languages. Raises Unavailable when one is missing."""
        os.environ["OMP_THREAD_LIMIT"] = "1"  # pages run in parallel; threads within one page would compete
        if shutil.which(pytesseract.pytesseract.tesseract_cmd) is None:
            raise Unavailable("the program tesseract is not installed (Debian: tesseract-ocr)")
        names = [_NAMES.get(language, language) for language in languages]
        there = set(pytesseract.get_languages())
        missing = [name for name in names if name not in there]
        if missing:
            raise Unavailable(f"tesseract has no language {', '.join(missing)} (Debian: tesseract-ocr-…)")
        self.version = str(pytesseract.get_tesseract_version())
        self.languages = "+".join(names)
        self._language = languages[0]
        self._can_turn = "osd" in there
        self._timeout_s = timeout_s

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image. A page that reads badly and is rotated is rotated upright first.

        Raises Retryable when Tesseract takes longer than its timeout, or was killed by a signal from outside.
        """
        spans = self._lines(image)
        if not self._can_turn or mean_confidence(spans) >= _SURE or sum(len(s.text) for s in spans) < 20:
            return spans
        degrees = self._rotation_needed(image)
        if not degrees:
            return spans
        upright = self._lines(image.rotate(-degrees, expand=True))
        if mean_confidence(upright) <= mean_confidence(spans):
            return spans
        return [
            span.model_copy(update={"polygon": rotated_back(span.polygon, degrees, image.width, image.height)})
            for span in upright
        ]

    def _rotation_needed(self, image: Image.Image) -> int:
        """Return by how many degrees clockwise the image must be rotated to be upright; 0 if unknown."""
        try:
            found = pytesseract.image_to_osd(
                image, output_type=pytesseract.Output.DICT, timeout=self._timeout_s, config="--psm 0"
            )
        except pytesseract.TesseractError as error:  # too few letters to detect it
            _check_signal(error)
            return 0
        except RuntimeError:  # a timeout
            return 0
        return int(found["rotate"]) if float(found["orientation_conf"]) > 1 else 0

    def _lines(self, image: Image.Image) -> list[TextSpan]:
        if max(image.size) > _SIDE_LIMIT or min(image.size) < 3:
            return []
        try:
            data = pytesseract.image_to_data(
                image, lang=self.languages, output_type=pytesseract.Output.DICT, timeout=self._timeout_s
            )
        except pytesseract.TesseractError as error:
            _check_signal(error)
            raise OSError(f"tesseract: {str(error)[:300]}") from error
        except RuntimeError as error:  # what pytesseract raises for a timeout
            raise Retryable(f"tesseract took longer than {self._timeout_s:g} s") from error
        lines: dict[tuple[int, int, int], list[int]] = {}
        for index, word in enumerate(data["text"]):
            if str(word).strip() and float(data["conf"][index]) >= 0:
                position = (data["block_num"][index], data["par_num"][index], data["line_num"][index])
                lines.setdefault(position, []).append(index)
        return [self._span(data, words) for words in lines.values()]

    def _span(self, data: dict[str, list[int]], words: list[int]) -> TextSpan:
        texts = [str(data["text"][i]).strip() for i in words]
        corners: Polygon = tuple(
            point
            for i in words
            for point in (
                (float(data["left"][i]), float(data["top"][i])),
                (float(data["left"][i] + data["width"][i]), float(data["top"][i] + data["height"][i])),
            )
        )
        box = frame_of(corners)
        weight = sum(len(text) for text in texts)
        sure = sum(float(data["conf"][i]) * len(text) for i, text in zip(words, texts, strict=True)) / weight / 100
        polygon = ((box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom))
        return TextSpan(
            text=" ".join(texts),
            confidence=min(max(sure, 0.0), 1.0),
            polygon=polygon,
            engine=ENGINE,
            language=self._language,
        )


def _check_signal(error: pytesseract.TesseractError) -> None:
    """Raise Retryable if a signal from outside ended Tesseract."""
    if error.status in _ENDED_FROM_OUTSIDE:
        raise Retryable(f"tesseract was killed by {signal.Signals(-error.status).name}") from error
