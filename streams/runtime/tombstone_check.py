"""Deletion check: events of a deleted image are dropped, so that a deletion wins against events in flight.

The runtime checks before processing and again before it delivers the outputs. The indexer first makes a deletion
certain and then lists the objects to remove: objects a stage wrote before its second check are in that list, later
ones are removed here.
"""

from __future__ import annotations

from typing import Protocol

from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones, objects_of
from streams.stage import Emit, Outcome
from streams.telemetry import metrics


class DeletionCheck(Protocol):
    """Decides which events belong to deleted images."""

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        """Return whether an event's image is deleted; if so, remove the objects its processing stored.

        `answer` is the outcome of the processing, None before it. Raises DependencyUnavailable when it cannot be known.
        """


class NoDeletionCheck:
    """Drops nothing: for tests of stages, and for a stage that checks the read model itself."""

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        return False


class TombstoneCheck:
    """Reads the tombstones in the object store: one small read per check."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._tombstones = Tombstones(files)

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        if isinstance(event, DeletionRequested):
            return False
        erasure = await self._tombstones.get(event.image_id)
        if erasure is None or not erasure.covers(event.owner, event.generation):
            return False
        async for key in objects_of(self._files, event.image_id, erasure.generation):
            await self._files.delete(key)
            metrics.LATE_REMOVED.labels("object").inc()
        # Results and originals may be shared with other images, which only the read model knows: left to the janitor.
        if erasure.finished_at is None or answer is not None:
            events = [event, *(one for _, one in answer.events)] if isinstance(answer, Emit) else [event]
            await self._tombstones.note(event.image_id, {sha256 for one in events for sha256 in hashes_in(one)})
        return True


def hashes_in(event: Event) -> set[str]:
    """Return the sha256s of original and master an event names: results and originals are keyed by them."""
    found = set()
    if isinstance(event, ImageUploaded | ImageFetched | ImageSanitized):
        found.add(event.original.sha256)
    if isinstance(event, ImageSanitized):
        found.add(event.image.master.sha256)
    return found
