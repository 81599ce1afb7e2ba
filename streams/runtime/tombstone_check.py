"""Deletion check: events of a deleted image are dropped, so that a deletion wins against events in flight.

The runtime checks before processing and again before it delivers the outputs. The indexer first makes a deletion
certain and then lists the objects to remove: objects a stage wrote before its second check are in that list, later
ones are removed here.

Each check reads the store again, so that a certain deletion is never missed. Checks share calls, because a call costs
more than what it reads: those that begin in the same step of the event loop, and those that begin while a call is in
progress or shortly after, which the next call answers. It begins when the other ends, but `SHORTEST_S` after it began
at the earliest, and `LONGEST_S` after it began even if the store is slow.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones, erasure_key, objects_of
from streams.stage import Emit, Outcome
from streams.telemetry import metrics

SHORTEST_S, LONGEST_S = 0.002, 0.01  # between calls; few milliseconds, since a check waits for them


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
    """Looks for the tombstones in the object store."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._tombstones = Tombstones(files)
        self._asked: dict[str, list[asyncio.Future[bool]]] = {}  # by key, for the next call
        self._next: asyncio.Handle | None = None  # begins the next call
        self._began = -math.inf  # the last call, by the event loop's clock
        self._calls: set[asyncio.Task[None]] = set()

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        if isinstance(event, DeletionRequested):
            return False
        if not await self._exists(erasure_key(event.image_id)):
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

    async def _exists(self, key: str) -> bool:
        if self._next is None:
            self._plan(LONGEST_S if self._calls else SHORTEST_S)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(answer)
        return await answer

    def _plan(self, seconds: float) -> None:
        """Begin the next call that long after the last one began, but not in this step of the event loop."""
        loop = asyncio.get_running_loop()
        due = self._began + seconds
        self._next = loop.call_soon(self._begin) if due <= loop.time() else loop.call_at(due, self._begin)

    def _begin(self) -> None:
        """Begin a call for every check that waits for one."""
        asked, self._asked, self._next = self._asked, {}, None
        self._began = asyncio.get_running_loop().time()
        call = asyncio.create_task(self._look(asked), name="tombstones")
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._next is not None:
            self._next.cancel()
            self._plan(SHORTEST_S)

    async def _look(self, asked: dict[str, list[asyncio.Future[bool]]]) -> None:
        answers = [(key, answer) for key, waiting in asked.items() for answer in waiting]
        try:
            existing = await self._files.existing(asked.keys())
        except Exception as error:
            for _, answer in answers:
                if not answer.done():  # done: its check was cancelled
                    answer.set_exception(error)
        else:
            for key, answer in answers:
                if not answer.done():
                    answer.set_result(key in existing)
        finally:
            for _, answer in answers:
                answer.cancel()  # without effect, unless this call itself was cancelled


def hashes_in(event: Event) -> set[str]:
    """Return the sha256s of original and master an event names: results and originals are keyed by them."""
    found = set()
    if isinstance(event, ImageUploaded | ImageFetched | ImageSanitized):
        found.add(event.original.sha256)
    if isinstance(event, ImageSanitized):
        found.add(event.image.master.sha256)
    return found
