"""An HTTP/1.1 connection with limits that uvicorn lacks: on client timeouts, head size, and number of connections.

A connection is aborted when the client takes longer than `head_s` for the whole head of a request or for the rest of
a body that was already answered, or longer than `read_s` to read its answer. The application limits bodies it reads.

A client that is still sending when it is refused gets `head_s` or `_LINGER_BYTES` more bytes to read the answer:
closing at once would reset the connection, and the answer could be lost.

Requests whose length is ambiguous are refused (streams.process.request_framing).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from typing import Annotated, Any, cast

import h11
from pydantic import AfterValidator, Field
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from schemas.http.problems import ProblemBody, ProblemCode
from streams.process.request_framing import StrictConnection
from streams.settings import Group

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5
_LINGER_BYTES = 8 << 20  # about what buffers on both sides contain
_MEDIA_TYPE = "application/problem+json"


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


Network = Annotated[str, AfterValidator(_network)]
"""An IP address or a network in CIDR notation."""


class ServerSettings(Group):
    """Limits on the connections of a gateway."""

    head_s: float = Field(
        10.0,
        gt=0,
        description="seconds a client may take to send a request's head, and the rest of a refused body",
    )
    keep_alive_s: int = Field(15, ge=1, description="seconds an idle connection stays open")
    read_s: float = Field(60.0, gt=0, description="seconds a client may take to read its answer")
    max_connections: int = Field(4096, ge=1, description="concurrent connections; further requests are answered 503")
    max_head_bytes: int = Field(32_768, ge=4096, description="bytes of a request's line and headers")
    max_headers: int = Field(100, ge=20, description="headers of a request")
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        description="addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are read, as a JSON "
        "list; those of other clients are ignored",
    )


class _Transport:
    """A transport whose close waits for a client that is still sending to read the answer."""

    def __init__(
        self, transport: asyncio.Transport, still_sends: Callable[[], bool], linger: Callable[[], None]
    ) -> None:
        self._transport, self._still_sends, self._linger = transport, still_sends, linger
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether writing is no longer possible."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Flush, then close; a second call closes at once."""
        if self.lingers or self._transport.is_closing() or not self._still_sends():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._linger()


class BoundedProtocol(H11Protocol):
    """A connection with the limits of ServerSettings."""

    settings = ServerSettings()
    transport: Any
    conn: StrictConnection

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = StrictConnection(self.settings.max_head_bytes)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._discarded = 0  # bytes received after the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head timer; above `max_connections` answer 503."""
        lingering = _Transport(transport, self._still_sends, self._linger)
        super().connection_made(cast(asyncio.Transport, lingering))
        if len(self.connections) > 2 * self.settings.max_connections:
            transport.abort()  # too many even to answer 503
        elif len(self.connections) > self.settings.max_connections:
            self.app = _overloaded
        else:
            self.app = _within(self.settings, self.app)
        self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        self._stop_waiting()
        for timer in (self._read_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or discard them after a refusal."""
        if self.transport.lingers:
            self._discarded += len(data)
            if self._discarded > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        self._wait_for_client()

    def on_response_complete(self) -> None:
        """Start the timer for the next head, or for the rest of this body."""
        super().on_response_complete()
        self._wait_for_client()

    def pause_writing(self) -> None:
        """Start the timer for the client to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.settings.read_s, self._abort, "read its answer too slowly")

    def resume_writing(self) -> None:
        """Cancel the timer: the client has read."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def shutdown(self) -> None:
        """Close the connection, after its request if one is in progress."""
        if self.transport.lingers:
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to bytes that are not an HTTP request, whose head is too long, or whose length is ambiguous."""
        body = _problem(ProblemCode.BAD_REQUEST, 400, "The request cannot be read", self.conn.refusal or msg)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # an answer is already in progress
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app gets no more of the body, and cannot answer as well
            self.cycle.message_event.set()
        headers = [("content-type", _MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _still_sends(self) -> bool:
        return self.conn.refusal is not None or self.conn.their_state in {h11.SEND_BODY, h11.ERROR}

    def _linger(self) -> None:
        self._linger_timer = self.loop.call_later(self.settings.head_s, self.transport.abort)

    def _wait_for_client(self) -> None:
        heading = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        answered = self.cycle is not None and self.cycle.response_complete
        rest = self.conn.their_state is h11.SEND_BODY and answered
        if self.transport.is_closing() or not (heading or rest):
            self._stop_waiting()
        elif self._head_timer is None:  # partial data does not restart the timer
            self._head_timer = self.loop.call_later(self.settings.head_s, self._abort, "sent its request too slowly")

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort(self, why: str) -> None:
        log.info("connection aborted: client %s", why)
        self.transport.abort()


def protocol_with(settings: ServerSettings) -> type[BoundedProtocol]:
    """Return a protocol class with these settings, which uvicorn instantiates per connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"settings": settings})


def _within(settings: ServerSettings, app: Any) -> ASGIApp:
    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in headers)
        if size <= settings.max_head_bytes and len(headers) <= settings.max_headers:
            await app(scope, receive, send)
            return
        detail = f"The limit is {settings.max_headers} headers and {settings.max_head_bytes} bytes."
        body = _problem(ProblemCode.HEADERS_TOO_LARGE, 431, "The request headers are too large", detail)
        await _send(send, 431, body)

    return bounded


async def _overloaded(_scope: Scope, _receive: Receive, send: Send) -> None:
    detail = "Too many connections. Nothing was accepted or changed; try again."
    body = _problem(ProblemCode.OVERLOADED, 503, "The server is overloaded", detail)
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
