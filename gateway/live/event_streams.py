"""Server-sent event streams of live progress: their events, order and end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sse_starlette import ServerSentEvent

from gateway.http.problems import Problem
from gateway.images.lookup import Job, Lookup
from gateway.images.views import job_status
from gateway.live.stream_access import StreamAccess
from schemas.events.envelope import now
from schemas.http.live import ImageEnded, JobSuperseded, LiveEvent, StageChanged, StreamNotice
from schemas.values import ImageState, Owner, Value, job_id_of
from streams.errors import DependencyUnavailable
from streams.live.broadcast import Delivery, Displaced, Lost, TooManyListeners, TooSlow
from streams.live.catch_up import CatchUpIncomplete
from streams.live.cursors import Positions
from streams.live.log_follower import LogFeed, Subscription

log = logging.getLogger(__name__)

END = "end"  # id of a job's last event: a client that sends it back has seen all events

_MISSED = "Some events since that id are no longer in the log. Fetch the current state again."
_SLOW = "The client reads events more slowly than they occur. Reconnect with the last id."
_DISPLACED = "All places are taken, and owners with fewer streams go first. Reconnect later with the last id."
_LONG = "There are more missed events than one stream delivers. Reconnect with the last id."


class Heartbeat(ServerSentEvent):
    """A comment on an idle stream, with the stream's position."""

    def __init__(self, *, at: str | None = None, retry: int | None = None) -> None:
        super().__init__(comment="alive", id=at, retry=retry)


async def owner_events(feed: LogFeed, access: StreamAccess, since: Positions | None) -> AsyncIterator[ServerSentEvent]:
    """Yield the events of all images of an owner, from a position or from now on."""
    yield Heartbeat(retry=feed.settings.retry_ms)
    while True:
        try:
            async with feed.subscribe(access.identity.owner, None, since) as subscription:
                async for item in _deliveries(feed, subscription, access):
                    yield _event(item) if isinstance(item, Delivery) else item
        except Lost:
            since = None
            yield _notice(LiveEvent.RESET, _MISSED)
        except (TooManyListeners, DependencyUnavailable) as error:
            log.info("live stream ended: feed unavailable", extra={"error": repr(error)})
            return
        else:
            return


@dataclass(slots=True)
class JobProgress:
    """The event stream of one job."""

    lookup: Lookup
    feed: LogFeed
    access: StreamAccess
    base: str
    job: Job

    @property
    def owner(self) -> Owner:
        """The owner of the job."""
        return self.access.identity.owner

    async def events(self, floor: Positions, resumed: Positions | None) -> AsyncIterator[ServerSentEvent]:
        """Yield the job's events until it ends: from the client's position, or after a snapshot.

        `floor` is a position from before the snapshot: it includes every event the snapshot may not contain.
        """
        yield Heartbeat(retry=self.feed.settings.retry_ms)
        while True:
            fresh = resumed is None
            if fresh:
                yield self._snapshot()
                if self.job.state is not ImageState.PROCESSING:
                    yield self._ended()
                    return
            try:
                async with self.feed.subscribe(
                    self.owner, self.job.image_id, floor if fresh else resumed
                ) as subscription:
                    async for item in _deliveries(self.feed, subscription, self.access):
                        found = self._event_of(item, fresh=fresh) if isinstance(item, Delivery) else item
                        if found is not None:
                            yield found
                        if found is not None and found.id == END:
                            return
                        if isinstance(item, Heartbeat) and await self._has_ended():
                            yield self._ended()
                            return
            except Lost:
                yield _notice(LiveEvent.RESET, _MISSED)
                floor, resumed = self.feed.feed.floor, None
                if not await self._refresh():
                    return
            except (TooManyListeners, DependencyUnavailable) as error:
                log.info("live stream ended: feed unavailable", extra={"error": repr(error)})
                return
            else:
                return

    def _event_of(self, delivery: Delivery, *, fresh: bool) -> ServerSentEvent | None:
        """Return the event of a delivery; None if the snapshot contains it, or it belongs to an older run."""
        what, generation = delivery.what, int(self.job.job_id.rpartition(".")[2])
        if what.generation < generation or (fresh and self._in_snapshot(delivery)):
            return None
        if what.generation == generation:
            return _event(delivery, END if what.ends else None)
        if what.deletes:
            return _event(delivery, END)
        newer = JobSuperseded(
            image_id=what.image_id, job_id=self.job.job_id, by=job_id_of(what.image_id, what.generation)
        )
        return _sse(LiveEvent.SUPERSEDED, newer, END)

    def _in_snapshot(self, delivery: Delivery) -> bool:
        """Return whether the snapshot contains this change, or a newer one."""
        record = self.job.record
        if record is None:
            return False
        match delivery.what.data:
            case StageChanged() as change:
                known = record.stages.get(change.stage)
                return known is not None and known.finished_at is not None and change.at <= known.finished_at
            case ImageEnded() as ended:  # an earlier failure, resumed since
                return record.updated_at is not None and ended.at < record.updated_at
            case _:
                return False

    async def _has_ended(self) -> bool:
        """Return whether the job has ended; checked at each heartbeat, in case the log missed it."""
        return await self._refresh() and self.job.state is not ImageState.PROCESSING

    async def _refresh(self) -> bool:
        """Load the job again; return whether that succeeded."""
        try:
            self.job = await self.lookup.job(self.job.job_id, self.owner)
        except (Problem, DependencyUnavailable, TimeoutError) as error:  # the client gets the reason when it reconnects
            log.info("live stream ended: job lookup failed", extra={"error": repr(error)})
            return False
        return True

    def _snapshot(self) -> ServerSentEvent:
        return _sse(LiveEvent.SNAPSHOT, job_status(self.job, self.base), None)

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
        return _sse(LiveEvent(self.job.state.value), ended, END)


async def _deliveries(
    feed: LogFeed, subscription: Subscription, access: StreamAccess
) -> AsyncIterator[Delivery | ServerSentEvent]:
    """Yield deliveries, and heartbeats with the stream's position while there are none.

    Ends when the credentials expire. They are checked at each heartbeat, and as often on a busy stream: nothing is
    delivered later than `heartbeat_s` after a check.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + min(feed.settings.max_stream_s, access.left_s())
    check_at = loop.time() + feed.settings.heartbeat_s
    if cursor := subscription.cursor():
        yield ServerSentEvent(id=cursor)
    try:
        while (left := until - loop.time()) > 0:
            delivery = await subscription.next(min(left, feed.settings.heartbeat_s))
            if loop.time() >= check_at:
                if not await access.is_valid():
                    return
                check_at = loop.time() + feed.settings.heartbeat_s
            if delivery is not None:
                yield delivery
            elif feed.feed.closed:
                return
            else:
                yield Heartbeat(at=subscription.cursor())
    except Displaced:
        yield _notice(LiveEvent.CUT, _DISPLACED)
    except TooSlow:
        yield _notice(LiveEvent.CUT, _SLOW)
    except CatchUpIncomplete:
        yield ServerSentEvent(id=subscription.cursor())
        yield _notice(LiveEvent.CUT, _LONG)


def _event(delivery: Delivery, last: str | None = None) -> ServerSentEvent:
    return _sse(delivery.what.name, delivery.what.data, last or delivery.cursor)


def _notice(name: LiveEvent, detail: str) -> ServerSentEvent:
    return _sse(name, StreamNotice(detail=detail), None)


def _sse(name: LiveEvent, data: Value, cursor: str | None) -> ServerSentEvent:
    return ServerSentEvent(data.model_dump_json(exclude_none=True), event=name.value, id=cursor)
