"""Originals by URL: from the last answer while it is valid, else from the source; each URL is asked for once at a time.

An original is valid for days, then the source is asked whether it has changed. A refusal is valid for hours.
Requests for one URL are processed by one worker, because they are keyed by its host: here they wait for each other.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, cast

import structlog
from pydantic import Field

from agents.fetching.http_source import Download, HttpSource, Inquiry, NotModified, RedirectPostponed
from agents.fetching.source_errors import Refused
from agents.fetching.source_gate import SourceGate
from agents.fetching.source_rules import source_of
from schemas.events.intake import FetchRequested
from schemas.formats import MEDIA_TYPES
from schemas.stored.fetches import FetchRecord
from schemas.values import ErrorCode, ObjectRef
from streams.object_store.fetch_records import read_fetch_record, write_fetch_record
from streams.object_store.fetch_statistics import Answered, FetchStatistics
from streams.object_store.keys import original_key
from streams.object_store.original_references import add_reference, withdraw
from streams.object_store.protocol import FileStore
from streams.settings import Group

log = structlog.get_logger(__name__)

_KEPT_REFUSALS = frozenset(
    {
        ErrorCode.SOURCE_NOT_FOUND,
        ErrorCode.SOURCE_REFUSED,
        ErrorCode.NOT_AN_IMAGE,
        ErrorCode.EMPTY_FILE,
        ErrorCode.FILE_TOO_LARGE,
        ErrorCode.TOO_MANY_REDIRECTS,
    }
)
"""Refusals that cost a request, and that the next one would probably get too."""


class CacheSettings(Group):
    """How long answers of sources stay valid."""

    fresh_days: float = Field(
        30.0, ge=0, description="days until a source is asked whether a fetched image has changed"
    )
    refused_hours: float = Field(24.0, ge=0, description="hours until a source is asked again for what it refused")

    def is_valid(self, record: FetchRecord, now: float) -> bool:
        """Return whether an answer may be used without asking the source; `now` in unix seconds."""
        hours = self.fresh_days * 24 if record.original is not None else self.refused_hours
        return 0 <= now - record.checked_at < hours * 3600


class CachedSource:
    """Fetches the originals of all owners. Calls raise Refused, Retryable and Postponed."""

    def __init__(
        self,
        source: HttpSource,
        gate: SourceGate,
        files: FileStore,
        settings: CacheSettings,
        *,
        statistics: FetchStatistics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._gate = gate
        self._files = files
        self._settings = settings
        self.statistics = statistics or FetchStatistics()
        self._clock = clock
        self._users: Counter[tuple[str, str]] = Counter()  # of the locks
        self._asking: dict[tuple[str, str], asyncio.Lock] = {}

    async def original(self, event: FetchRequested) -> ObjectRef:
        """Return the original of a URL, stored for the event's owner and referenced by its image."""
        begun = time.monotonic()
        with self.statistics.working():
            async with self._alone(event):
                record = await read_fetch_record(self._files, event.owner, event.url)
                answered, original = await self._known(event, record)
                if original is None:
                    answered, original = await self._ask(event, record)
        self.statistics.count(answered, original.size)
        log.info(
            "image fetched",
            source=source_of(event.url),
            answered=answered.value,
            bytes=original.size,
            media_type=original.content_type,
            seconds=round(time.monotonic() - begun, 3),
        )
        return original

    async def _known(self, event: FetchRequested, record: FetchRecord | None) -> tuple[Answered, ObjectRef | None]:
        """Return the original of a valid answer. Raises Refused, for a valid refusal."""
        asked_anew = event.refresh or event.run > 0
        if record is None or asked_anew or not self._settings.is_valid(record, self._clock()):
            return Answered.FETCHED, None
        if record.code is not None:
            self.statistics.count(Answered.REFUSED_BEFORE)
            raise Refused(record.code, record.message)
        return Answered.STORED, await self._kept(event, record)

    async def _kept(self, event: FetchRequested, record: FetchRecord) -> ObjectRef | None:
        """Return the stored original of an answer, referenced by the event's image; None if it was deleted."""
        if record.original is None:
            return None
        # The reference first: it protects the bytes from concurrent removal.
        await add_reference(self._files, event.owner, record.original.sha256, event.image_id)
        if await self._files.stat(record.original.key) is not None:
            return record.original
        await withdraw(self._files, event.owner, record.original.sha256, event.image_id)
        return None

    async def _ask(self, event: FetchRequested, record: FetchRecord | None) -> tuple[Answered, ObjectRef]:
        """Ask the source; keep its answer."""
        with tempfile.NamedTemporaryFile(prefix="darkroom-fetch-") as spool:
            # The wrapper that deletes the file is all that NamedTemporaryFile adds to it.
            answer = await self._answer(event, await self._inquiry(event, record), cast("IO[bytes]", spool))
            if isinstance(answer, NotModified):
                assert record is not None  # noqa: S101 - only asked for with a record
                assert record.original is not None  # noqa: S101
                changed = record.model_copy(update={"checked_at": self._clock()})
                answered, original = Answered.NOT_MODIFIED, record.original
            else:
                await add_reference(self._files, event.owner, answer.sha256, event.image_id)
                answered, original = Answered.FETCHED, await self._store(event, answer, Path(spool.name))
                changed = self._record(event, answer, original)
        await write_fetch_record(self._files, event.owner, changed)
        return answered, original

    async def _inquiry(self, event: FetchRequested, record: FetchRecord | None) -> Inquiry:
        if record is None or record.code is not None:
            return Inquiry(event.url, event.priority)
        if await self._kept(event, record) is not None:
            return Inquiry(
                event.url,
                event.priority,
                stored_url=record.final_url,
                etag=record.etag,
                last_modified=record.last_modified,
            )
        if record.original is None and self._settings.is_valid(record, self._clock()):
            return Inquiry(record.final_url, event.priority, hops=record.hops)
        return Inquiry(event.url, event.priority)

    async def _answer(self, event: FetchRequested, inquiry: Inquiry, spool: IO[bytes]) -> Download | NotModified:
        try:
            return await self._source.download(inquiry, spool)
        except RedirectPostponed as error:
            await self._note(event, final_url=error.url, hops=error.hops)
            raise
        except Refused as error:
            self.statistics.count(Answered.REFUSED)
            if error.code in _KEPT_REFUSALS:
                await self._note(event, final_url=event.url, code=error.code, message=str(error))
            raise

    async def _note(self, event: FetchRequested, **fields: object) -> None:
        record = FetchRecord.model_validate({"url": event.url, "checked_at": self._clock(), **fields})
        await write_fetch_record(self._files, event.owner, record)

    async def _store(self, event: FetchRequested, found: Download, path: Path) -> ObjectRef:
        key = original_key(event.owner, found.sha256)
        return await self._files.put(key, path, content_type=MEDIA_TYPES[found.format], sha256=found.sha256)

    def _record(self, event: FetchRequested, found: Download, original: ObjectRef) -> FetchRecord:
        return FetchRecord(
            url=event.url,
            final_url=found.final_url,
            hops=found.hops,
            checked_at=self._clock(),
            original=original,
            etag=found.etag,
            last_modified=found.last_modified,
        )

    @asynccontextmanager
    async def _alone(self, event: FetchRequested) -> AsyncIterator[None]:
        """Let one request for a URL of an owner ask at a time. Raises Postponed if too many wait."""
        place = (event.owner, event.url)
        lock = self._asking.setdefault(place, asyncio.Lock())
        self._users[place] += 1
        try:
            if lock.locked():
                async with self._gate.holding(source_of(event.url)):
                    await lock.acquire()
            else:
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place], self._asking[place]
