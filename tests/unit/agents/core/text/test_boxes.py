"""Boxes from a drawn probability map, windows around them, and crops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from agents.core.text.boxes import TextBox, boxes_of, crop, inside, turned, windows_of
from agents.core.text.geometry import Frame, polygon_of, within


def box(left: float, top: float, width: float, height: float, score: float = 0.9) -> TextBox:
    right, bottom = left + width, top + height
    return TextBox(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32), score)


def test_a_kernel_is_grown_to_its_line() -> None:
    """A kernel of 100 by 10 becomes a box larger by area * 1.6 / perimeter at each side; a faint one gives none."""
    probabilities = np.zeros((100, 200), np.float32)
    probabilities[40:50, 50:150] = 0.9
    probabilities[80:90, 50:150] = 0.4
    (found,) = boxes_of(probabilities)
    grown = 100 * 10 * 1.6 / (2 * 110)
    assert found.width == pytest.approx(100 + 2 * grown, abs=3)
    assert found.height == pytest.approx(10 + 2 * grown, abs=3)
    assert found.score == pytest.approx(0.9, abs=0.1)
    assert len(boxes_of(probabilities, least_score=0.2)) == 2


def test_no_text_gives_no_boxes() -> None:
    """An empty map, and one with a single pixel, give no box."""
    probabilities = np.zeros((32, 32), np.float32)
    assert boxes_of(probabilities) == []
    assert boxes_of(np.zeros((1, 1), np.float32)) == []


@pytest.mark.parametrize("degrees", [-30, -10, 0, 10, 30])
def test_a_tilted_line_is_boxed_and_straightened(degrees: int) -> None:
    """The first side of the box is the text's upper one, and the crop of a tilted bar is filled by it."""
    page = np.zeros((300, 300, 3), np.uint8)
    bar = cv2.boxPoints(((150, 150), (200, 24), degrees))
    cv2.fillPoly(page, [bar.astype(np.int32)], (255, 255, 255))
    (found,) = boxes_of((page[..., 0] / 255).astype(np.float32), grow=0)
    (ax, ay), (bx, by) = found.corners[:2]
    assert np.degrees(np.arctan2(by - ay, bx - ax)) == pytest.approx(degrees, abs=2)
    straight = crop(page, found.corners, 48)
    assert straight.shape[0] == 48
    assert straight.mean() > 230


def test_a_crop_of_a_rotated_page_starts_at_the_texts_top_left() -> None:
    """Corners renamed by quarter turns give the upright pixels of a rotated page."""
    page = np.zeros((40, 100, 3), np.uint8)
    page[:20, :30] = 255  # marks the top left
    for quarters in range(4):
        rotated = np.ascontiguousarray(np.rot90(page, quarters))  # counterclockwise
        height, width = rotated.shape[:2]
        straight = crop(rotated, turned(box(0, 0, width, height).corners, quarters), 40)
        assert straight.shape[:2] == (40, 100)
        assert straight[5, 5].mean() > 250
        assert straight[30, 90].mean() < 5


def test_a_large_crop_is_shrunk_without_skipping_pixels() -> None:
    """Thin lines of a large crop are still seen in the small one, as grey."""
    page = np.zeros((480, 960, 3), np.uint8)
    page[::4] = 255
    assert crop(page, box(0, 0, 960, 480).corners, 48).mean() == pytest.approx(64, abs=12)


def test_windows_around_near_boxes_are_joined() -> None:
    """Windows have a margin, stay within the image, and do not overlap each other."""
    windows = windows_of([box(10, 10, 60, 8), box(90, 12, 60, 8), box(700, 500, 40, 8)], 760, 520)
    assert len(windows) == 2
    first, second = sorted(windows, key=lambda window: window.left)
    assert (first.left, first.top) == (0, 0)
    assert (second.right, second.bottom) == (760, 520)
    assert inside(box(90, 12, 60, 8), first)
    assert not inside(box(90, 12, 60, 8), second)
    assert first.shared(second) == 0


def test_a_word_is_a_part_of_its_line() -> None:
    """The part of a tilted line between two fractions of its length lies on its sides."""
    line = ((0.0, 0.0), (100.0, 10.0), (100.0, 30.0), (0.0, 20.0))
    assert within(line, 0.5, 1.0) == ((50.0, 5.0), (100.0, 10.0), (100.0, 30.0), (50.0, 25.0))
    assert polygon_of(box(1, 2, 3, 4).corners) == Frame(1, 2, 4, 6).corners
