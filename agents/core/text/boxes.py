"""Text boxes from a detector's probability map, and the straightened crop of each.

The detector is a differentiable binarization network (Liao et al., 2020): its map marks the shrunken kernel of each
line of text, which is grown again by `area * ratio / perimeter`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from agents.core.text.geometry import Frame, around

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_MOST = 3000  # boxes of one map; a dense newspaper page has about a thousand


@dataclass(frozen=True, slots=True)
class TextBox:
    """A box around one line of text: four corners (x, y), clockwise, and the mean probability within."""

    corners: Floats
    score: float

    @property
    def width(self) -> float:
        """Length of the first side, in pixels."""
        return math.dist(self.corners[0], self.corners[1])

    @property
    def height(self) -> float:
        """Length of the second side, in pixels."""
        return math.dist(self.corners[1], self.corners[2])

    def scaled(self, across: float, down: float, x: float = 0.0, y: float = 0.0) -> TextBox:
        """Return the box multiplied by two factors, then moved."""
        moved = self.corners * np.array([across, down], np.float32) + np.array([x, y], np.float32)
        return TextBox(moved.astype(np.float32), self.score)


def boxes_of(
    probabilities: Floats, *, threshold: float = 0.3, least_score: float = 0.5, grow: float = 1.6
) -> list[TextBox]:
    """Return the boxes of a probability map (rows, columns), in its pixels, without order.

    The first side of a box is the longer one if it lies, within 45 degrees, else the upper one.
    """
    mask = (probabilities > threshold).astype(np.uint8)
    contours, _ = cv2.findContours(cv2.dilate(mask, np.ones((2, 2), np.uint8)), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found: list[TextBox] = []
    for contour in contours[:_MOST]:
        (middle, (width, height), angle) = cv2.minAreaRect(contour)
        if min(width, height) < 1:
            continue
        score = _score(probabilities, cv2.boxPoints((middle, (width, height), angle)))
        if score < least_score:
            continue
        by = width * height * grow / (2 * (width + height))
        grown = (middle, (width + 2 * by, height + 2 * by), angle)
        if min(grown[1]) < 3:
            continue
        found.append(TextBox(_from_top_left(cv2.boxPoints(grown)), score))
    return found


def _score(probabilities: Floats, corners: Floats) -> float:
    """Return the mean probability within a quadrilateral."""
    rows, columns = probabilities.shape
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, [columns - 1, rows - 1])
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, [columns - 1, rows - 1])
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - [left, top]).astype(np.int32)], 1)
    return float(cv2.mean(probabilities[top : bottom + 1, left : right + 1], mask)[0])


def _from_top_left(corners: Floats) -> Floats:
    """Return corners clockwise, the first side the one that is closest to horizontal and above its opposite."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    top_left, bottom_left = left[np.argsort(left[:, 1], kind="stable")]
    top_right, bottom_right = right[np.argsort(right[:, 1], kind="stable")]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)


def windows_of(boxes: Sequence[TextBox], width: int, height: int) -> list[Frame]:
    """Return disjoint windows of an image around boxes, with a margin of some line heights."""
    windows: list[Frame] = []
    for box in boxes:
        margin = 3 * max(min(box.width, box.height), 8.0)
        (left, top), (right, bottom) = box.corners.min(axis=0), box.corners.max(axis=0)
        window = Frame(
            max(float(left) - margin, 0.0),
            max(float(top) - margin, 0.0),
            min(float(right) + margin, float(width)),
            min(float(bottom) + margin, float(height)),
        )
        while touching := [each for each in windows if each.shared(window)]:
            windows = [each for each in windows if each not in touching]
            window = around([window, *touching])
        windows.append(window)
    return windows


def inside(box: TextBox, window: Frame) -> bool:
    """Return whether the middle of a box lies in a window."""
    x, y = (float(each) for each in box.corners.mean(axis=0))
    return window.left <= x <= window.right and window.top <= y <= window.bottom


def turned(corners: Floats, quarters: int) -> Floats:
    """Return the corners renamed for a reader who sees the image rotated clockwise by quarter turns."""
    return np.roll(corners, quarters, axis=0)


def crop(image: Pixels, corners: Floats, height: int) -> Pixels:
    """Return the straightened pixels within corners, `height` pixels high, at least one pixel wide."""
    across = max(math.dist(corners[0], corners[1]), math.dist(corners[3], corners[2]))
    down = max(math.dist(corners[1], corners[2]), math.dist(corners[0], corners[3]))
    width = max(round(across * height / max(down, 1e-3)), 1)
    if down > 2 * height:  # shrinking by more than half in one step would skip pixels
        return _shrunk(image, corners, across, down, (width, height))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    flags = cv2.INTER_CUBIC if down < height else cv2.INTER_LINEAR
    straight: Pixels = cv2.warpPerspective(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return straight


def _shrunk(image: Pixels, corners: Floats, across: float, down: float, size: tuple[int, int]) -> Pixels:
    columns, rows = max(round(across), 1), max(round(down), 1)
    target = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    full = cv2.warpPerspective(image, matrix, (columns, rows), borderMode=cv2.BORDER_REPLICATE)
    small: Pixels = cv2.resize(full, size, interpolation=cv2.INTER_AREA)
    return small
