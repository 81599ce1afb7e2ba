"""Live progress: server-sent events of one job until it ends, or of all images of an owner.

Each event's `id` is its position in the log; a client that sends it as `Last-Event-ID` continues after it, at any
gateway. Heartbeats of an idle stream contain the current position. If the log no longer has a position, the stream
sends `reset`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.images.lookup import Lookup
from gateway.live.event_streams import END, JobProgress, owner_events
from gateway.live.stream_access import StreamAccess
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.values import ImageState, Owner
from streams.live.cursors import BadCursor, Positions, read_cursor
from streams.live.log_follower import LogFeed

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Server-sent events, the data of each one JSON object. `stage`: image_id, job_id, stage, state, attempts, "
            "duration_ms, reused, run, reason, message, at. `completed`, `rejected`, `failed`, `deleted`: image_id, "
            "job_id, status, reason, message, at. `deleting`, `annotated`: image_id, job_id, at. For a job also "
            "`snapshot`: its status, and `superseded`: image_id, job_id, by. About the stream: `reset`, some "
            "events are no longer available; `cut`, the client is too slow, reconnect; each with detail."
        ),
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
    str | None, Header(alias="Last-Event-ID", max_length=8192, description="continue after this event")
]
LastEventIdQuery = Annotated[
    str | None,
    Query(alias="last_event_id", max_length=8192, description="the same, for clients that cannot set the header"),
]


class Stream(EventSourceResponse):
    """An event stream without the library's pings, closed when the client reads nothing for `send_timeout` seconds."""

    def __init__(self, content: AsyncIterator[ServerSentEvent], *, send_timeout: float) -> None:
        super().__init__(content, ping=0, send_timeout=send_timeout)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        with suppress(SendTimeoutError):  # the connection is closed; not an error of the server
            await super().__call__(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Live:
    """The endpoints of live progress."""

    settings: GatewaySettings
    lookup: Lookup
    feed: LogFeed | None

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes("/api/v1", tags=["query"])
        unavailable = documented(
            ProblemCode.INVALID_FIELD,
            ProblemCode.DEPENDENCY_UNAVAILABLE,
            ProblemCode.LIVE_UNAVAILABLE,
            ProblemCode.TOO_MANY_LISTENERS,
        )
        routes.add_api_route(
            "/images/jobs/{job_id}/events",
            self.of_job,
            dependencies=[requires(Scope.READ)],
            summary="Stream a job's progress",
            response_class=EventSourceResponse,
            responses={
                **_STREAM,
                204: {"description": "the job's last event was already delivered: do not reconnect"},
                **documented(ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.SUPERSEDED),
                **unavailable,
            },
        )
        routes.add_api_route(
            "/events",
            self.of_owner,
            dependencies=[requires(Scope.READ)],
            summary="Stream the progress of all your images",
            response_class=EventSourceResponse,
            responses={**_STREAM, **unavailable},
        )
        return routes

    async def of_job(
        self,
        job_id: str,
        request: Request,
        identity: Who,
        last_event_id: LastEventId = None,
        last_event_id_query: LastEventIdQuery = None,
    ) -> Response:
        """Stream a `snapshot` (the job's status), then events up to `completed`, `rejected`, `failed` or `deleted`."""
        feed = self._feed(identity.owner)
        since = feed.feed.floor  # before the lookup, so that no event after it is missed
        job = await self.lookup.job(job_id, identity.owner)
        last = last_event_id or last_event_id_query
        if last == END and job.state is not ImageState.PROCESSING:
            return Response(status_code=204)
        resumed = _position(last) if last and last != END else None
        if resumed is not None or job.state is ImageState.PROCESSING:
            await feed.check()
        if not since:  # the feed had not read anything yet
            since = feed.feed.floor
        access = StreamAccess.of(request, identity)
        progress = JobProgress(self.lookup, feed, access, base_url(request, self.settings), job)
        return Stream(progress.events(since, resumed), send_timeout=feed.settings.send_timeout_s)

    async def of_owner(
        self,
        request: Request,
        identity: Who,
        last_event_id: LastEventId = None,
        last_event_id_query: LastEventIdQuery = None,
    ) -> Response:
        """Stream events from now on or after `Last-Event-ID`. Ends with the credentials, after an hour at most."""
        feed = self._feed(identity.owner)
        last = last_event_id or last_event_id_query
        resumed = _position(last) if last else None
        await feed.check()
        access = StreamAccess.of(request, identity)
        return Stream(owner_events(feed, access, resumed), send_timeout=feed.settings.send_timeout_s)

    def _feed(self, owner: Owner) -> LogFeed:
        if self.feed is None:
            raise Problem(ProblemCode.LIVE_UNAVAILABLE, "This gateway has no live feed. Poll the job's status.")
        if not self.feed.feed.has_room(owner):
            retry = {"Retry-After": str(self.settings.retry_after_s)}
            raise Problem(ProblemCode.TOO_MANY_LISTENERS, "The limit of open streams is reached.", headers=retry)
        return self.feed


def _position(cursor: str) -> Positions:
    """Return the position of an event id. Raises Problem (422) for an invalid id."""
    try:
        return read_cursor(cursor)[1]
    except BadCursor:
        detail = "Not a valid event id. Send the `id` of an event of this API."
        item = ProblemItem(field="last_event_id", detail=detail)
        raise Problem(ProblemCode.INVALID_FIELD, detail, (item,)) from None
