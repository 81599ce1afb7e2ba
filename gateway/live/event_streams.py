"""Streams of live progress: what is sent to a listener, in which order, and when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sse_starlette import ServerSentEvent

from gateway.http.problems import Problem
from gateway.images.lookup import Job, Lookup
from gateway.images.views import job_status
from schemas.events.envelope import now
from schemas.http.live import ImageEnded, JobSuperseded, LiveEvent, StageChanged, StreamNotice
from schemas.values import ImageState, Owner, Value, job_id_of
from streams.errors import DependencyUnavailable
from streams.live.broadcast import Crowded, Delivery, Lost, TooSlow
from streams.live.catch_up import Unfinished
from streams.live.cursors import Positions
from streams.live.log_follower import Listening, LogFeed

log = logging.getLogger(__name__)

END = "end"  # the id of a job's last event: whoever sends it back has seen everything

_MISSED = "Some of what happened since then is not in the log any more: read anew what you show."
_SLOW = "You take events more slowly than they happen. Go on from the last id."
_LONG = "You missed more than is read at once. Go on from the last id."


class Alive(ServerSentEvent):
    """A sign of life on a quiet stream, with where it stands."""

    def __init__(self, *, at: str | None = None, retry: int | None = None) -> None:
        super().__init__(comment="alive", id=at, retry=retry)


async def owner_events(feed: LogFeed, owner: Owner, since: Positions | None) -> AsyncIterator[ServerSentEvent]:
    """Tell of everything an owner has, from a position on or from now on."""
    yield Alive(retry=feed.settings.retry_ms)
    while True:
        try:
            async with feed.listening(owner, None, since) as listening:
                async for heard in _heard(feed, listening):
                    yield _event(heard) if isinstance(heard, Delivery) else heard
        except Lost:
            since = None
            yield _notice(LiveEvent.RESET, _MISSED)
        except (Crowded, DependencyUnavailable) as error:
            log.info("a stream of live progress ends", extra={"error": repr(error)})
            return
        else:
            return


@dataclass(slots=True)
class JobProgress:
    """The stream of one job."""

    lookup: Lookup
    feed: LogFeed
    owner: Owner
    base: str
    job: Job

    async def events(self, floor: Positions, resumed: Positions | None) -> AsyncIterator[ServerSentEvent]:
        """Tell of the job until it has ended: from a position that the client names, or from a snapshot on.

        `floor` is a position from which on everything is told that the snapshot may not know.
        """
        yield Alive(retry=self.feed.settings.retry_ms)
        while True:
            fresh = resumed is None
            if fresh:
                yield self._snapshot()
                if self.job.state is not ImageState.PROCESSING:
                    yield self._ended()
                    return
            try:
                async with self.feed.listening(self.owner, self.job.image_id, floor if fresh else resumed) as listening:
                    async for heard in _heard(self.feed, listening):
                        found = await self._told(heard, fresh=fresh) if isinstance(heard, Delivery) else heard
                        if found is not None:
                            yield found
                        if found is not None and found.id == END:
                            return
                        if isinstance(heard, Alive) and await self._ended_unheard():
                            yield self._ended()
                            return
            except Lost:
                yield _notice(LiveEvent.RESET, _MISSED)
                floor, resumed = self.feed.feed.floor, None
                if not await self._looked():
                    return
            except (Crowded, DependencyUnavailable) as error:
                log.info("a stream of live progress ends", extra={"error": repr(error)})
                return
            else:
                return

    async def _told(self, told: Delivery, *, fresh: bool) -> ServerSentEvent | None:
        """Return the event a happening makes here; None for what the snapshot said, or is of an older run."""
        what, generation = told.what, int(self.job.job_id.rpartition(".")[2])
        if what.generation < generation or (fresh and self._said(told)):
            return None
        if what.generation == generation:
            return _event(told, END if what.ends else None)
        if what.deletes:
            return _event(told, END)
        newer = JobSuperseded(
            image_id=what.image_id, job_id=self.job.job_id, by=job_id_of(what.image_id, what.generation)
        )
        return _said(LiveEvent.SUPERSEDED, newer, END)

    def _said(self, told: Delivery) -> bool:
        """Say whether the snapshot has told this already, or knows better."""
        record = self.job.record
        if record is None:
            return False
        match told.what.data:
            case StageChanged() as change:
                known = record.stages.get(change.stage)
                return known is not None and known.finished_at is not None and change.at <= known.finished_at
            case ImageEnded() as ended:  # it failed once, and is being mended
                return record.updated_at is not None and ended.at < record.updated_at
            case _:
                return False

    async def _ended_unheard(self) -> bool:
        """Say whether the job has ended, which a quiet stream makes sure of now and then."""
        return await self._looked() and self.job.state is not ImageState.PROCESSING

    async def _looked(self) -> bool:
        try:
            self.job = await self.lookup.job(self.job.job_id, self.owner)
        except (Problem, DependencyUnavailable, TimeoutError) as error:  # asked again, the client hears the reason
            log.info("a stream of live progress has nothing to say", extra={"error": repr(error)})
            return False
        return True

    def _snapshot(self) -> ServerSentEvent:
        return _said(LiveEvent.SNAPSHOT, job_status(self.job, self.base), None)

    def _ended(self) -> ServerSentEvent:
        record = self.job.record
        ended = ImageEnded(
            image_id=self.job.image_id,
            job_id=self.job.job_id,
            status=self.job.state,
            reason=record.error_code if record else None,
            message=record.error_message if record else None,
            at=(record.finished_at or record.updated_at if record else None) or now(),
        )
        return _said(LiveEvent(self.job.state.value), ended, END)


async def _heard(feed: LogFeed, listening: Listening) -> AsyncIterator[Delivery | ServerSentEvent]:
    """Give what is heard, and when nothing is, signs of life that say where the stream stands."""
    loop = asyncio.get_running_loop()
    until = loop.time() + feed.settings.max_stream_s
    if here := listening.cursor():
        yield ServerSentEvent(id=here)
    try:
        while (left := until - loop.time()) > 0:
            told = await listening.next(min(left, feed.settings.heartbeat_s))
            if told is not None:
                yield told
            elif feed.feed.hung_up:
                return
            else:
                yield Alive(at=listening.cursor())
    except TooSlow:
        yield _notice(LiveEvent.CUT, _SLOW)
    except Unfinished:
        yield ServerSentEvent(id=listening.cursor())
        yield _notice(LiveEvent.CUT, _LONG)


def _event(told: Delivery, last: str | None = None) -> ServerSentEvent:
    return _said(told.what.name, told.what.data, last or told.cursor)


def _notice(name: LiveEvent, detail: str) -> ServerSentEvent:
    return _said(name, StreamNotice(detail=detail), None)


def _said(name: LiveEvent, data: Value, cursor: str | None) -> ServerSentEvent:
    return ServerSentEvent(data.model_dump_json(exclude_none=True), event=name.value, id=cursor)
