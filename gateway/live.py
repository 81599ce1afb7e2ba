"""Live progress: server-sent events of one job until it has ended, and of everything an owner has.

Each event's `id` is where the log stands with it; whoever sends it back as `Last-Event-ID` goes on behind it, here or
at another gateway. A quiet stream says where it stands again and again. Where the log no longer holds a position, a
`reset` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.answers import job_status
from gateway.edge import base_url
from gateway.guard import Caller
from gateway.lookup import Job, Lookup
from gateway.problems import Problem, documented
from gateway.settings import GatewaySettings
from schemas.envelope import now
from schemas.http_api import ProblemCode, ProblemItem
from schemas.http_live import ImageEnded, JobSuperseded, LiveEvent, StageChanged, StreamNotice
from schemas.values import ImageState, Owner, Value, job_id_of
from streams.errors import DependencyAway
from streams.feed import Crowded, Lost, Told, TooSlow
from streams.feed_back import Unfinished
from streams.feed_log import Listening, LogFeed
from streams.positions import BadCursor, Positions, read_cursor

log = logging.getLogger(__name__)

END = "end"  # the id of a job's last event: whoever sends it back has seen everything

_MISSED = "Some of what happened since then is not in the log any more: read anew what you show."
_SLOW = "You take events more slowly than they happen. Go on from the last id."
_LONG = "You missed more than is read at once. Go on from the last id."
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events, one JSON object each; see the models in `schemas/http_live.py`",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": "id: AQIEBAwAAAA\r\nevent: stage\r\ndata: "
                '{"image_id":"01890a5d-ac96-774b-bcce-b302099a8057","job_id":"01890a5d-ac96-774b-bcce-b302099a8057.1",'
                '"stage":"resizer","state":"done","attempts":1,"duration_ms":41,"at":"2026-01-01T12:00:00.000Z"}'
                "\r\n\r\n",
            }
        },
    }
}

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=8192, description="go on behind this event")
]
LastEventIdQuery = Annotated[
    str | None,
    Query(alias="last_event_id", max_length=8192, description="the same, for clients that cannot send the header"),
]


class Alive(ServerSentEvent):
    """A sign of life on a quiet stream, with where it stands."""

    def __init__(self, *, at: str | None = None, retry: int | None = None) -> None:
        super().__init__(comment="alive", id=at, retry=retry)


class Stream(EventSourceResponse):
    """A stream of events with a heartbeat of its own; a client that takes nothing for long is let go."""

    def __init__(self, content: AsyncIterator[ServerSentEvent], *, send_timeout: float) -> None:
        super().__init__(content, ping=0, send_timeout=send_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(SendTimeoutError):  # the connection is closed; that a client is gone is no error of ours
            await super().__call__(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Live:
    """The endpoints of live progress."""

    settings: GatewaySettings
    lookup: Lookup
    feed: LogFeed | None

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/api/v1", tags=["query"])
        away = documented(
            ProblemCode.INVALID_FIELD,
            ProblemCode.DEPENDENCY_UNAVAILABLE,
            ProblemCode.LIVE_UNAVAILABLE,
            ProblemCode.TOO_MANY_LISTENERS,
        )
        router.add_api_route(
            "/images/jobs/{job_id}/events",
            self.of_job,
            summary="Live progress of a job",
            response_class=EventSourceResponse,
            responses={
                **_STREAM,
                204: {"description": "you have seen the end of this job: do not ask again"},
                **documented(ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.SUPERSEDED),
                **away,
            },
        )
        router.add_api_route(
            "/events",
            self.of_owner,
            summary="Live progress of all your images",
            response_class=EventSourceResponse,
            responses={**_STREAM, **away},
        )
        return router

    async def of_job(
        self,
        job_id: str,
        request: Request,
        owner: Caller,
        last_event_id: LastEventId = None,
        last_event_id_query: LastEventIdQuery = None,
    ) -> Response:
        """Begin with a `snapshot` (the job's status), end with `completed`, `rejected`, `failed` or `deleted`."""
        feed = self._feed()
        since = feed.feed.floor  # before the look: what happens after it is told
        job = await self.lookup.job(job_id, owner)
        last = last_event_id or last_event_id_query
        if last == END and job.state is not ImageState.PROCESSING:
            return Response(status_code=204)
        resumed = _position(last) if last and last != END else None
        if resumed is not None or job.state is ImageState.PROCESSING:
            await self._there(feed)
        if not since:  # nothing was read yet when this was asked
            since = feed.feed.floor
        progress = _JobProgress(self.lookup, feed, owner, base_url(request, self.settings), job)
        return Stream(progress.events(since, resumed), send_timeout=feed.settings.send_timeout_s)

    async def of_owner(
        self,
        owner: Caller,
        last_event_id: LastEventId = None,
        last_event_id_query: LastEventIdQuery = None,
    ) -> Response:
        """From now on, or from the event named; ends only when the server does, or after an hour: ask again."""
        feed = self._feed()
        last = last_event_id or last_event_id_query
        resumed = _position(last) if last else None
        await self._there(feed)
        return Stream(_owner_events(feed, owner, resumed), send_timeout=feed.settings.send_timeout_s)

    def _feed(self) -> LogFeed:
        if self.feed is None:
            raise Problem(ProblemCode.LIVE_UNAVAILABLE, "This gateway does not read the log: ask for the status.")
        if self.feed.feed.listeners >= self.feed.settings.max_listeners:
            retry = {"Retry-After": str(self.settings.retry_after_s)}
            raise Problem(ProblemCode.TOO_MANY_LISTENERS, "As many listen here as can.", headers=retry)
        return self.feed

    async def _there(self, feed: LogFeed) -> None:
        await feed.check()


async def _owner_events(feed: LogFeed, owner: Owner, since: Positions | None) -> AsyncIterator[ServerSentEvent]:
    yield Alive(retry=feed.settings.retry_ms)
    while True:
        try:
            async with feed.listening(owner, None, since) as listening:
                async for heard in _heard(feed, listening):
                    yield _event(heard) if isinstance(heard, Told) else heard
        except Lost:
            since = None
            yield _notice(LiveEvent.RESET, _MISSED)
        except (Crowded, DependencyAway) as error:
            log.info("a stream of live progress ends", extra={"error": repr(error)})
            return
        else:
            return


@dataclass(slots=True)
class _JobProgress:
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
                        found = await self._told(heard, fresh=fresh) if isinstance(heard, Told) else heard
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
            except (Crowded, DependencyAway) as error:
                log.info("a stream of live progress ends", extra={"error": repr(error)})
                return
            else:
                return

    async def _told(self, told: Told, *, fresh: bool) -> ServerSentEvent | None:
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

    def _said(self, told: Told) -> bool:
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
        except (Problem, DependencyAway, TimeoutError) as error:  # asked again, the client hears the reason
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


async def _heard(feed: LogFeed, listening: Listening) -> AsyncIterator[Told | ServerSentEvent]:
    """Give what is heard, and when nothing is, signs of life that say where the stream stands."""
    loop = asyncio.get_running_loop()
    until = loop.time() + feed.settings.max_stream_s
    if here := listening.here():
        yield ServerSentEvent(id=here)
    try:
        while (left := until - loop.time()) > 0:
            told = await listening.heard(min(left, feed.settings.heartbeat_s))
            if told is not None:
                yield told
            elif feed.feed.hung_up:
                return
            else:
                yield Alive(at=listening.here())
    except TooSlow:
        yield _notice(LiveEvent.CUT, _SLOW)
    except Unfinished:
        yield ServerSentEvent(id=listening.here())
        yield _notice(LiveEvent.CUT, _LONG)


def _event(told: Told, last: str | None = None) -> ServerSentEvent:
    return _said(told.what.name, told.what.data, last or told.cursor)


def _notice(name: LiveEvent, detail: str) -> ServerSentEvent:
    return _said(name, StreamNotice(detail=detail), None)


def _said(name: LiveEvent, data: Value, cursor: str | None) -> ServerSentEvent:
    return ServerSentEvent(data.model_dump_json(exclude_none=True), event=name.value, id=cursor)


def _position(cursor: str) -> Positions:
    """Return the position a client names. Refused: what never was a cursor of ours."""
    try:
        return read_cursor(cursor)[1]
    except BadCursor:
        detail = "This is no id of an event."
        item = ProblemItem(field="last_event_id", detail=detail)
        raise Problem(ProblemCode.INVALID_FIELD, detail, (item,)) from None
