"""Marks of pending deletions: found for a page of images with few listings, whatever else is pending."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store import pending_deletions
from streams.object_store.factory import open_files
from streams.object_store.pending_deletions import DELETIONS, PendingDeletions, mark_key, marked_image
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.settings import FilesSettings


class Watched:
    """A store that notes its calls."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._files, name)

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        self.calls.append("list")
        return self._files.list(prefix, after=after)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Watched]:
    """Yield a folder as a store."""
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield Watched(found)


async def test_marks_hide_an_owners_image_up_to_a_generation(files: Watched) -> None:
    """Hidden are marked images of this owner, of the deletion's generation or a lower one."""
    marks = PendingDeletions(files)
    first, second, third = (new_image_id() for _ in range(3))
    for owner, image_id, generation in (("anna", first, 3), ("ben", second, 2), ("an", third, 3)):
        await marks.add(owner, image_id, generation)
    assert await marks.hidden([("anna", first, 1), ("anna", second, 1), ("anna", third, 1)]) == {first}
    assert await marks.hidden([("ben", second, 1), ("anna", first, 3), ("an", third, 4)]) == {first, second}
    assert await marks.hidden([]) == set()
    assert await marks.generation("anna", first) == 3
    await marks.remove("anna", first)
    await marks.remove("anna", first)
    assert await marks.generation("anna", first) == 0
    assert await marks.hidden([("anna", first, 1)]) == set()


async def test_a_page_costs_one_listing(files: Watched) -> None:
    """The marks of 50 images are one listing, with marks among them and without."""
    marks = PendingDeletions(files)
    page = [("anna", new_image_id(), 1) for _ in range(50)]
    assert await marks.hidden(page) == set()
    assert files.calls == ["list"]
    for owner, image_id, _ in page[::2]:
        await marks.add(owner, image_id, 2)
    files.calls.clear()
    assert await marks.hidden(page) == {image_id for _, image_id, _ in page[::2]}
    assert files.calls == ["list"]


async def test_many_pending_deletions_cost_one_call_more(files: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """If more marks lie among the images than are listed, the images beyond them are checked by one call."""
    monkeypatch.setattr(pending_deletions, "RUN", 4)
    marks = PendingDeletions(files)
    images = [new_image_id() for _ in range(60)]
    for image_id in images[::2]:
        await marks.add("anna", image_id, 2)
    for chosen in (images, images[5:50:7], images[:4]):
        files.calls.clear()
        assert await marks.hidden(("anna", image_id, 1) for image_id in chosen) == set(chosen) & set(images[::2])
        assert files.calls in (["list"], ["list", "existing"])


async def test_an_unreadable_mark_is_an_error(files: Watched) -> None:
    """Whether a rerun of an image is deleted cannot be known from a damaged mark."""
    image_id = new_image_id()
    await files.put(mark_key("anna", image_id), b"{", content_type="application/json")
    with pytest.raises(DependencyUnavailable, match="unreadable"):
        await PendingDeletions(files).hidden([("anna", image_id, 2)])


def test_a_key_names_its_image() -> None:
    """Owner and image are read from the key of a mark, and from no other key."""
    image_id = new_image_id()
    assert marked_image(mark_key("anna", image_id)) == ("anna", image_id)
    for key in (f"{DELETIONS}anna/x", f"{DELETIONS}{image_id}", f"{DELETIONS}anna/{image_id}.1"):
        with pytest.raises(ValueError, match="not the key"):
            marked_image(key)
