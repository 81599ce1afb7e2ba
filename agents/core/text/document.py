"""The pages of a document as they are read: the master, the sanitizer's further pages, and what is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from agents.core.text.page import Page
from schemas.stored.results import SanitizedImage, TextPage
from schemas.values import ObjectRef


@dataclass(frozen=True, slots=True)
class Sheet:
    """One image to read."""

    number: int  # of the page in the file, from 1
    object: ObjectRef
    width: int  # pixels
    height: int


def sheets_of(image: SanitizedImage, max_pages: int) -> list[Sheet]:
    """Return the master and the first of a document's further pages, max_pages in all."""
    first = Sheet(1, image.master, image.width, image.height)
    return [first, *(Sheet(page.number, page.object, page.width, page.height) for page in image.pages)][:max_pages]


def digest_of(image: SanitizedImage) -> str:
    """Return a hash of all pages."""
    return hashlib.sha256("".join(ref.sha256 for ref in image.objects().values()).encode()).hexdigest()


def text_page(sheet: Sheet, page: Page) -> TextPage:
    """Return what was read of a page."""
    return TextPage(
        number=sheet.number,
        width=sheet.width,
        height=sheet.height,
        content=page.content,
        spans=page.spans,
        blocks=page.blocks,
        rotation=page.rotation,
        tilt=round(page.tilt, 2),
    )


def left_out(image: SanitizedImage, read: Collection[int]) -> list[str]:
    """Return a note that names the pages of a document that are not among the numbers read, none if all are."""
    if not image.pages and image.source_format != "pdf":
        return []
    missing = [number for number in range(1, image.frames + 1) if number not in read]
    runs = [[number for _, number in run] for _, run in groupby(enumerate(missing), lambda pair: pair[1] - pair[0])]
    ranges = (f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return [f"pages not read, beyond a limit or damaged: {', '.join(ranges)}"] if missing else []
