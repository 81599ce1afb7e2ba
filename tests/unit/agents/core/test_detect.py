"""The conversion of a detector's boxes to objects."""

from __future__ import annotations

import pytest

from agents.core.detect import Detection, as_objects, overlap
from schemas.values import Box


def test_boxes_are_given_in_pixels_and_as_fractions_of_the_image() -> None:
    """A box has its pixels and the fractions of width and height."""
    (found,) = as_objects([Detection("cat", 0.9, 20, 10, 60, 40)], width=200, height=100)
    assert found.pixels == Box(x=20, y=10, width=40, height=30)
    assert found.box == Box(x=0.1, y=0.1, width=0.2, height=0.3)


def test_the_most_confident_object_comes_first() -> None:
    """Objects are sorted by confidence, so that equal answers are equal results."""
    found = as_objects([Detection("a", 0.3, 0, 0, 5, 5), Detection("b", 0.8, 0, 0, 5, 5)], width=10, height=10)
    assert [one.label for one in found] == ["b", "a"]


def test_boxes_are_clipped_at_the_edge_and_empty_ones_dropped() -> None:
    """Boxes are clipped to the image; a box wholly outside is dropped."""
    found = as_objects([Detection("cut", 0.9, -5, -5, 5, 5), Detection("out", 0.9, 12, 0, 20, 5)], width=10, height=10)
    assert [(one.label, one.pixels.width) for one in found] == [("cut", 5)]


def test_overlap_is_intersection_over_union() -> None:
    """Equal boxes overlap fully, disjoint ones not at all, half-shifted ones by a third."""
    one = Detection("a", 1, 0, 0, 10, 10)
    assert overlap(one, one) == 1
    assert overlap(one, Detection("a", 1, 10, 0, 20, 10)) == 0
    assert overlap(one, Detection("a", 1, 5, 0, 15, 10)) == pytest.approx(1 / 3)
