"""Marks of pending deletions: found for a page of images with few listings, whatever else is pending."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.values import new_image_id
from streams.object_store import pending_deletions
from streams.object_store.factory import open_files
from streams.object_store.pending_deletions import DELETIONS, PendingDeletions, deletion_of, mark_key
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.settings import FilesSettings


class Listings:
    """A store that counts its listings."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        self.count += 1
        return self._files.list(prefix, after=after)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Listings]:
    """Yield a folder as a store."""
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield Listings(found)


async def test_marks_are_found_for_owner_and_image(files: Listings) -> None:
    """Marked images have the newest generation deleted; others, and those of other owners, are absent."""
    marks = PendingDeletions(files)
    first, second, third = (new_image_id() for _ in range(3))
    for owner, image_id, generation in (("anna", first, 2), ("anna", first, 10), ("ben", second, 2), ("an", third, 3)):
        await marks.add(owner, image_id, generation)
    assert await marks.of([("anna", first), ("anna", second), ("anna", third)]) == {first: 10}
    assert await marks.of([("ben", second), ("anna", first), ("an", third)]) == {first: 10, second: 2, third: 3}
    assert await marks.of([]) == {}
    await marks.remove("anna", first, 10)
    await marks.remove("anna", first, 10)
    assert await marks.of([("anna", first)]) == {first: 2}


async def test_a_page_costs_one_listing(files: Listings) -> None:
    """The marks of 50 images are one listing, with marks among them and without."""
    marks = PendingDeletions(files)
    page = [("anna", new_image_id()) for _ in range(50)]
    assert await marks.of(page) == {}
    assert files.count == 1
    for owner, image_id in page[::2]:
        await marks.add(owner, image_id, 2)
    assert await marks.of(page) == {image_id: 2 for _, image_id in page[::2]}
    assert files.count == 2


async def test_many_pending_deletions_are_skipped(files: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between images far apart the marks of others are not all read: at most one listing per image."""
    monkeypatch.setattr(pending_deletions, "RUN", 4)
    marks = PendingDeletions(files)
    images = [new_image_id() for _ in range(60)]
    for image_id in images:
        await marks.add("anna", image_id, 2)
    page = [("anna", images[at]) for at in (0, 30, 59)]
    assert await marks.of(page) == {image_id: 2 for _, image_id in page}
    assert files.count <= len(page) + 1
    files.count = 0
    assert await marks.of([("anna", image_id) for image_id in images]) == dict.fromkeys(images, 2)
    assert files.count == 60 // 4 + 1


async def test_many_marks_of_one_image_are_all_read(files: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest generation is found, however many an image has."""
    monkeypatch.setattr(pending_deletions, "RUN", 2)
    marks, image_id = PendingDeletions(files), new_image_id()
    for generation in (2, 3, 4, 11, 5, 6):
        await marks.add("anna", image_id, generation)
    assert await marks.of([("anna", image_id)]) == {image_id: 11}


def test_a_key_names_its_deletion() -> None:
    """Owner, image and generation are read from the key of a mark, and from no other key."""
    image_id = new_image_id()
    assert deletion_of(mark_key("anna", image_id, 3)) == ("anna", image_id, 3)
    for key in (f"{DELETIONS}anna/{image_id}", f"{DELETIONS}{image_id}.1", f"{DELETIONS}anna/x.1"):
        with pytest.raises(ValueError, match=r"."):
            deletion_of(key)
