"""The fence: work on a deleted image is dropped, so that a deletion wins against whatever is in flight.

The runtime looks before work, and again after it, before anything that follows from it is delivered. The indexer first
makes a deletion certain and then lists what there is to remove: what a stage wrote before its second look is found
there, and what it wrote after is removed here.
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
    """Whoever knows which images are deleted."""

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        """Say whether an event's image is deleted. If so, clear away what the work on it stored.

        `answer` is what came of the work, None before it. Raises DependencyUnavailable while nobody can tell.
        """


class NoDeletionCheck:
    """Lets everything pass: for tests of stages, and for a stage that asks the read model itself."""

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        return False


class TombstoneCheck:
    """Asks the erasures in the object store: one small read per look."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._erasures = Tombstones(files)

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        if isinstance(event, DeletionRequested):
            return False
        erasure = await self._erasures.get(event.image_id)
        if erasure is None or not erasure.covers(event.owner, event.generation):
            return False
        async for key in objects_of(self._files, event.image_id, erasure.generation):
            await self._files.delete(key)
            metrics.LATE_REMOVED.labels("object").inc()
        # Results and originals may be somebody else's too, which needs the read model: the janitor sees to them.
        if erasure.finished_at is None or answer is not None:
            said = [event, *(one for _, one in answer.events)] if isinstance(answer, Emit) else [event]
            await self._erasures.note(event.image_id, {sha256 for one in said for sha256 in hashes_in(one)})
        return True


def hashes_in(event: Event) -> set[str]:
    """Return the sha256s of the bytes an event speaks of: what results and originals are kept under."""
    found = set()
    if isinstance(event, ImageUploaded | ImageFetched | ImageSanitized):
        found.add(event.original.sha256)
    if isinstance(event, ImageSanitized):
        found.add(event.image.master.sha256)
    return found
