"""PP-OCR: detects boxes of text, finds which way is up, and reads each box. Lines anywhere, in pages and photos.

Detection runs on a small copy first. Where its text is small or uncertain, it runs again on a larger copy of those
windows alone; crops are always taken from the full resolution.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import cv2
import numpy as np

from agents.core.text.boxes import Floats, Pixels, TextBox, boxes_of, crop, inside, turned, windows_of
from agents.core.text.decoding import Letter, letters_of
from agents.core.text.doubt import Evidence
from agents.core.text.geometry import Frame
from agents.models.ppocr_networks import Networks, return_freed_memory

ENGINE = "ppocr"
HEIGHT = 48  # rows of the recogniser's input
_WIDTH_STEP = 64  # widths are rounded up: each new shape costs OpenVINO a preparation
_MOST_WIDTH = 3200
_BATCH_PIXELS = 2560  # columns of one batch of the recogniser, all lines together
_BAND_PIXELS = 800_000  # of an image, or of a band of a larger one, that text is found in at once
_OVERLAP = 64  # rows that a band sees of each of its neighbours
_SURE, _WEAK = 0.5, 0.2  # least scores of a box: to be read, and to be looked at again
_TARGET = 18.0  # pixels of height of the lines at the second look
_MOST_WINDOWS = 0.4  # share of the image: if more of it would be looked at again, all of it is
_SAMPLE = 6  # lines that decide which way is up


@dataclass(frozen=True, slots=True)
class Line:
    """One line, read or not: its corners (x, y) from the text's top left, clockwise, in the image's pixels."""

    letters: tuple[Letter, ...]
    corners: Floats
    found: float  # the detector's score

    @property
    def evidence(self) -> Evidence:
        """What decides whether the line is believed."""
        sure = sum(letter.confidence for letter in self.letters) / len(self.letters) if self.letters else 0.0
        across, down = (math.dist(self.corners[0], self.corners[i]) for i in (1, 3))
        return Evidence("".join(letter.text for letter in self.letters), sure, self.found, across, down)


@dataclass(frozen=True, slots=True)
class Detection:
    """How boxes are found; see the settings of the ocr stage."""

    first_side: int = 736  # pixels of the longest side at the first look
    large: int = 1800  # pixels of the longest side of an image above which `large_side` is used
    large_side: int = 960
    second_side: int = 1600  # pixels of the longest side at the second look
    small: float = 10.0  # pixels of height, at the first look, below which a box is looked at again


class PpocrReader:
    """Reads lines with PP-OCR. Thread-safe."""

    def __init__(self, networks: Networks, detection: Detection | None = None) -> None:
        self.networks = networks
        self._lock = threading.Lock()  # the networks take one call at a time anyway; two images would take more memory
        self.detection = detection or Detection()

    def lines(self, pixels: Pixels) -> tuple[list[Line], int]:
        """Return the lines of an image (BGR), in no order, and its rotation.

        The rotation is by how many degrees clockwise the image must be rotated to be upright: 0, 90, 180 or 270.
        """
        with self._lock:
            try:
                return self._lines(pixels)
            finally:
                return_freed_memory()

    def _lines(self, pixels: Pixels) -> tuple[list[Line], int]:
        boxes = self.boxes(pixels)
        quarters = self._quarters(pixels, boxes)
        corners = [turned(box.corners, quarters) for box in boxes]
        letters = self.read(pixels, corners)
        lines = [Line(tuple(read), place, box.score) for read, place, box in zip(letters, corners, boxes, strict=True)]
        return lines, quarters * 90

    def boxes(self, pixels: Pixels) -> list[TextBox]:
        """Return the boxes of text of an image, in no order."""
        rules = self.detection
        height, width = pixels.shape[:2]
        longest = max(height, width)
        scale = min((rules.first_side if longest <= rules.large else rules.large_side) / longest, 1.0)
        first = self._detect(pixels, scale, least_score=_SURE if scale == 1 else _WEAK)
        small = [box for box in first if min(box.width, box.height) * scale < rules.small]
        if scale == 1 or not small:
            return [box for box in first if box.score >= _SURE]
        windows = windows_of(small, width, height)
        if sum(window.area for window in windows) > _MOST_WINDOWS * width * height:
            typical = median(min(box.width, box.height) for box in small)
            side = min(_TARGET / typical * longest, rules.second_side)
            return self._detect(pixels, min(side / longest, 1.0))
        outside = [box for box in first if box.score >= _SURE and not any(inside(box, each) for each in windows)]
        return [*outside, *(box for window in windows for box in self._look_again(pixels, small, window))]

    def _look_again(self, pixels: Pixels, small: Sequence[TextBox], window: Frame) -> list[TextBox]:
        """Return the boxes of a window, detected at a scale where its text is large enough."""
        left, top, right, bottom = (round(edge) for edge in (window.left, window.top, window.right, window.bottom))
        least = min(min(box.width, box.height) for box in small if inside(box, window))
        part = pixels[top:bottom, left:right]
        scale = min(_TARGET / least, self.detection.second_side / max(part.shape[:2]), 1.0)
        return [box.scaled(1, 1, left, top) for box in self._detect(part, scale)]

    def _detect(self, pixels: Pixels, scale: float, *, least_score: float = _SURE) -> list[TextBox]:
        height, width = pixels.shape[:2]
        rows, columns = max(round(height * scale), 1), max(round(width * scale), 1)
        small = pixels
        if scale != 1:
            small = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        padded = cv2.copyMakeBorder(small, 0, -rows % 32, 0, -columns % 32, cv2.BORDER_REPLICATE)
        found = boxes_of(self._probabilities(padded)[:rows, :columns], least_score=least_score)
        return [box.scaled(width / columns, height / rows) for box in found]

    def _probabilities(self, image: Pixels) -> Floats:
        """Return for each pixel the probability that it is text; sides are multiples of 32.

        Of a large image from bands that overlap: at once, 1600 by 1200 pixels take 450 MB.
        """
        height, width = image.shape[:2]
        rows = max(_BAND_PIXELS // width // 32 * 32, 32) if height * width > _BAND_PIXELS else height
        found = np.empty((height, width), np.float32)
        for top in range(0, height, rows):
            above, below = min(top, _OVERLAP), top + rows + _OVERLAP
            band = self.networks.detect(_batch([image[top - above : below]]))[0]
            found[top : top + rows] = band[above : above + rows]
        return found

    def _quarters(self, pixels: Pixels, boxes: Sequence[TextBox]) -> int:
        """Return by how many quarter turns clockwise the image must be rotated to be upright."""
        long = sorted(boxes, key=lambda box: -max(box.width, box.height))
        lying = sum(box.width for box in boxes if box.width > 1.5 * box.height)
        standing = sum(box.height for box in boxes if box.height > 1.5 * box.width)
        quarters = 1 if standing > 1.5 * lying else 0
        sample = [box.corners for box in long[:_SAMPLE]]
        if not sample:
            return 0
        if self._upside_down(pixels, [turned(corners, quarters) for corners in sample]):
            quarters += 2
        return quarters

    def _upside_down(self, pixels: Pixels, sample: Sequence[Floats]) -> bool:
        crops = [_fitted(crop(pixels, corners, HEIGHT), 192) for corners in sample]
        votes = self.networks.upside_down(_batch(crops))
        if float(votes.mean()) < 0.3:
            return False
        upright = self._certainty(pixels, sample[:3])
        flipped = self._certainty(pixels, [turned(corners, 2) for corners in sample[:3]])
        return flipped > upright + 0.05

    def _certainty(self, pixels: Pixels, sample: Sequence[Floats]) -> float:
        letters = [letter for line in self.read(pixels, sample) for letter in line]
        return sum(letter.confidence for letter in letters) / len(letters) if letters else 0.0

    def read(self, pixels: Pixels, places: Sequence[Floats]) -> list[list[Letter]]:
        """Return the letters at each place; corners start at the text's top left."""
        crops = [crop(pixels, corners, HEIGHT) for corners in places]
        crops = [each if each.shape[1] <= _MOST_WIDTH else _fitted(each, _MOST_WIDTH) for each in crops]
        answers: list[list[Letter]] = [[] for _ in crops]
        for batch in _batches([each.shape[1] for each in crops]):
            width = _stepped(max(crops[i].shape[1] for i in batch))
            best, confidence = self.networks.recognise(_batch([_padded(crops[i], width) for i in batch]))
            steps = best.shape[1]
            for row, index in enumerate(batch):
                covered = max(steps * crops[index].shape[1] / width, 1.0)
                answers[index] = letters_of(best[row], confidence[row], self.networks.alphabet, covered)
        return answers


def _stepped(width: int) -> int:
    return max(-(-width // _WIDTH_STEP) * _WIDTH_STEP, 2 * _WIDTH_STEP)


def _batches(widths: Sequence[int]) -> Iterator[list[int]]:
    """Yield batches of indexes of similar widths, each with few columns of padding."""
    batch: list[int] = []
    for index in sorted(range(len(widths)), key=lambda i: widths[i]):
        width = _stepped(widths[index])
        if batch and (width * (len(batch) + 1) > _BATCH_PIXELS or width > 1.25 * _stepped(widths[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch(images: Sequence[Pixels]) -> Floats:
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def _padded(image: Pixels, width: int) -> Pixels:
    """Return an image with grey columns added at its right."""
    grey = (127, 127, 127)
    wide: Pixels = cv2.copyMakeBorder(image, 0, 0, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=grey)
    return wide


def _fitted(image: Pixels, width: int) -> Pixels:
    """Return an image squeezed or padded to a width."""
    if image.shape[1] > width:
        narrow: Pixels = cv2.resize(image, (width, image.shape[0]), interpolation=cv2.INTER_AREA)
        return narrow
    return _padded(image, width)
