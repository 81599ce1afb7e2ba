"""Polygons of text and the boxes around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """An axis-aligned box by its edges, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Height in pixels."""
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        """The vertical middle, in pixels."""
        return (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Area in pixels."""
        return max(self.width, 0.0) * max(self.height, 0.0)

    @property
    def corners(self) -> Polygon:
        """The corners, clockwise from the top left."""
        return ((self.left, self.top), (self.right, self.top), (self.right, self.bottom), (self.left, self.bottom))

    def shared(self, other: Frame) -> float:
        """Return the pixels that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        return max(width, 0.0) * max(self.beside(other), 0.0)

    def beside(self, other: Frame) -> float:
        """Return the pixels of height that both boxes cover; negative: the gap between them."""
        return min(self.bottom, other.bottom) - max(self.top, other.top)


def frame_of(polygon: Polygon) -> Frame:
    """Return the box around a polygon."""
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    return Frame(min(xs), min(ys), max(xs), max(ys))


def around(frames: Iterable[Frame]) -> Frame:
    """Return the box around boxes, of which there is at least one."""
    parts = list(frames)
    return Frame(
        min(part.left for part in parts),
        min(part.top for part in parts),
        max(part.right for part in parts),
        max(part.bottom for part in parts),
    )


def rotated_back(polygon: Polygon, degrees: int, width: float, height: float) -> Polygon:
    """Map a polygon of an image rotated clockwise by 0, 90, 180 or 270 degrees back to the unrotated image.

    `width` and `height` are the unrotated ones. The order of the corners is kept: the first is the text's top left.
    """
    back: dict[int, Callable[[float, float], tuple[float, float]]] = {
        0: lambda x, y: (x, y),
        90: lambda x, y: (y, height - x),
        180: lambda x, y: (width - x, height - y),
        270: lambda x, y: (width - y, x),
    }
    return tuple(back[degrees](x, y) for x, y in polygon)


def within(corners: Polygon, start: float, end: float) -> Polygon:
    """Return the part of a quadrilateral from `start` to `end`, fractions of its upper and lower side."""
    a, b, c, d = corners
    return (_between(a, b, start), _between(a, b, end), _between(d, c, end), _between(d, c, start))


def polygon_of(corners: npt.NDArray[np.float32]) -> Polygon:
    """Return corners (rows x, y) as a polygon, rounded to a hundredth of a pixel."""
    return tuple((round(float(x), 2), round(float(y), 2)) for x, y in corners.tolist())


def _between(a: tuple[float, float], b: tuple[float, float], at: float) -> tuple[float, float]:
    return (round(a[0] + (b[0] - a[0]) * at, 2), round(a[1] + (b[1] - a[1]) * at, 2))
