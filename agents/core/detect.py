"""The detector's protocol, and the conversion of its boxes to objects of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.values import Box, DetectedObject

Pixels = npt.NDArray[np.uint8]
P = TypeVar("P")  # a detector's prepared input: small, whatever the image's size


@dataclass(frozen=True, slots=True)
class Detection:
    """One box as an engine returns it: corners in pixels of the image, confidence 0 to 1."""

    label: str
    confidence: float
    left: float
    top: float
    right: float
    bottom: float


class Detector(Protocol[P]):
    """Detects objects. Preparation is separate, so that a batch does not keep whole images in memory."""

    def prepare(self, image: Image.Image) -> P:
        """Return the model's input for an RGB image."""

    def detect(self, prepared: Sequence[P]) -> list[list[Detection]]:
        """Return the boxes of each image, in the order given; the answer does not depend on the batch."""


def as_objects(found: Sequence[Detection], *, width: int, height: int) -> tuple[DetectedObject, ...]:
    """Return boxes clipped to the image, in pixels and as fractions of it, most confident first, without empty ones."""
    objects: list[DetectedObject] = []
    for one in sorted(found, key=lambda d: (-d.confidence, d.label, d.left, d.top)):
        left, right = (min(max(x, 0.0), float(width)) for x in (one.left, one.right))
        top, bottom = (min(max(y, 0.0), float(height)) for y in (one.top, one.bottom))
        if right <= left or bottom <= top:
            continue
        pixels = Box(x=left, y=top, width=right - left, height=bottom - top)
        box = Box(x=left / width, y=top / height, width=(right - left) / width, height=(bottom - top) / height)
        confidence = min(max(one.confidence, 0.0), 1.0)
        objects.append(DetectedObject(label=one.label, confidence=confidence, box=box, pixels=pixels))
    return tuple(objects)


def overlap(a: Detection, b: Detection) -> float:
    """Return the intersection over union of two boxes."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((d.right - d.left) * (d.bottom - d.top) for d in (a, b))
    return shared / (areas - shared)
