"""One HTTP connection, with bounds that uvicorn has not: on the client's time, on what it sends, on how many there are.

A connection on which we wait for the client is cut after a while: for the whole head of a request, however slowly it
trickles; for the rest of a body that was answered before its end; for the client to read what it was sent. A body
that is read is bounded by whoever reads it.

A client that is refused while it still sends is given that while, or some more bytes, to read why: closing at once
would reset the connection, and the answer could be lost with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import h11
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from schemas.http.problems import ProblemBody, ProblemCode
from streams.settings import Group

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5
_LINGER_BYTES = 8 << 20  # what may be under way in buffers on both sides, and not much more
_MEDIA_TYPE = "application/problem+json"


class ServerSettings(Group):
    """What bounds the connections of a gateway."""

    head_s: float = Field(
        10.0,
        gt=0,
        description="seconds a client may take for a request's head, and for the rest of a refused body",
    )
    keep_alive_s: int = Field(15, ge=1, description="seconds a connection is kept without a request")
    read_s: float = Field(60.0, gt=0, description="seconds a client may leave unread what it was sent")
    max_connections: int = Field(4096, ge=1, description="connections at once; beyond it requests are answered 503")
    max_head_bytes: int = Field(32_768, ge=4096, description="bytes of a request's line and headers together")
    max_headers: int = Field(100, ge=20, description="headers of a request")


class _Transport:
    """A transport that is closed when the client, which still sends, has read what it was answered."""

    def __init__(
        self, transport: asyncio.Transport, still_sends: Callable[[], bool], linger: Callable[[], None]
    ) -> None:
        self._transport, self._still_sends, self._linger = transport, still_sends, linger
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Say whether nothing more can be written."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Send what is left to be sent, then close; twice closes now."""
        if self.lingers or self._transport.is_closing() or not self._still_sends():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._linger()


class BoundedProtocol(H11Protocol):
    """A connection under ServerSettings. Made anew for each connection by `protocol_with`."""

    settings = ServerSettings()
    transport: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._dropped = 0  # bytes that came after the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head; of one connection too many, answer its request 503."""
        lingering = _Transport(transport, self._still_sends, self._linger)
        super().connection_made(cast(asyncio.Transport, lingering))
        if len(self.connections) > 2 * self.settings.max_connections:
            transport.abort()  # so many that even telling them would be too much
        elif len(self.connections) > self.settings.max_connections:
            self.app = _overloaded
        else:
            self.app = _within(self.settings, self.app)
        self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        for timer in (self._read_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on if it was not all."""
        if self.transport.lingers:
            self._dropped += len(data)
            if self._dropped > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        self._wait_for_client()

    def on_response_complete(self) -> None:
        """Go on to the next request, or wait for the rest of the body of this one."""
        super().on_response_complete()
        self._wait_for_client()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.settings.read_s, self._cut, "did not read its answer")

    def resume_writing(self) -> None:
        """It has read."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def shutdown(self) -> None:
        """End the connection, or let its request end it."""
        if self.transport.lingers:
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, or has too long a head."""
        body = _problem(ProblemCode.BAD_REQUEST, 400, "The request cannot be read", msg)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # in the middle of an answer
            return
        headers = [("content-type", _MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _still_sends(self) -> bool:
        return self.conn.their_state in {h11.SEND_BODY, h11.ERROR}

    def _linger(self) -> None:
        self._linger_timer = self.loop.call_later(self.settings.head_s, self.transport.abort)

    def _wait_for_client(self) -> None:
        heading = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        answered = self.cycle is not None and self.cycle.response_complete
        rest = self.conn.their_state is h11.SEND_BODY and answered
        if self.transport.is_closing() or not (heading or rest):
            self._stop_waiting()
        elif self._head_timer is None:  # what trickles in does not begin the time anew
            self._head_timer = self.loop.call_later(self.settings.head_s, self._cut, "did not send its request in time")

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self, why: str) -> None:
        log.info("a connection was cut: its client %s", why)
        self.transport.abort()


def protocol_with(settings: ServerSettings) -> type[BoundedProtocol]:
    """Return the protocol class of a server with these settings: uvicorn makes its objects itself."""
    return type("BoundedProtocol", (BoundedProtocol,), {"settings": settings})


def _within(settings: ServerSettings, app: Any) -> ASGIApp:
    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in headers)
        if size <= settings.max_head_bytes and len(headers) <= settings.max_headers:
            await app(scope, receive, send)
            return
        detail = f"At most {settings.max_headers} headers of {settings.max_head_bytes} bytes together."
        body = _problem(ProblemCode.HEADERS_TOO_LARGE, 431, "The head of the request is too large", detail)
        await _send(send, 431, body)

    return bounded


async def _overloaded(_scope: Scope, _receive: Receive, send: Send) -> None:
    detail = "There are too many connections at this moment. Nothing was accepted or changed; try again."
    body = _problem(ProblemCode.OVERLOADED, 503, "Too much is asked at this moment", detail)
    await _send(send, 503, body, retry=True)


async def _send(send: Send, status: int, body: bytes, *, retry: bool = False) -> None:
    headers = [(b"content-type", _MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), (b"cache-control", b"no-store")]
    headers += [(b"retry-after", str(_RETRY_AFTER_S).encode())] if retry else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _problem(code: ProblemCode, status: int, title: str, detail: str) -> bytes:
    kind = f"urn:darkroom:problem:{code}"
    problem = ProblemBody(type=kind, code=code, title=title, status=status, detail=detail, instance="/")
    return problem.model_dump_json(exclude_none=True, exclude={"errors"}).encode()
