"""Health and metrics of a worker over HTTP: /health/live, /health/ready, /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from streams.process.bounded_http import ServerSettings, protocol_with
from streams.settings import WorkerSettings
from streams.telemetry.health_board import Condition, HealthBoard

OTHER_FILES = 1024  # beside connections of clients: spooled uploads, the store, Kafka, libraries


def health_app(board: HealthBoard) -> Starlette:
    """Return the app of a worker's health and metrics."""

    async def live(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        condition = board.condition()
        body = {"status": condition.value, "parts": board.snapshot()}
        return JSONResponse(body, status_code=503 if condition is Condition.UNREADY else 200)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", metrics)])


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int, settings: ServerSettings | None = None) -> AsyncIterator[int]:
    """Serve an app in this loop; yields the port. Signals stay with whoever owns the process."""
    settings = settings or ServerSettings()
    make_room(settings.max_connections)
    listener = socket.create_server((host, port), reuse_port=False, backlog=512)
    # asyncio sets this only on sockets made with an explicit protocol; without it each answer waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        http=protocol_with(settings),
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=settings.max_head_bytes,
        server_header=False,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn offers no event to wait for
            await asyncio.sleep(0.01)
        if task.done():
            await task
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def make_room(connections: int) -> None:
    """Let this process have open files for so many connections, as far as it may: many systems begin with 1 024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))


def serving_health(board: HealthBoard, settings: WorkerSettings) -> contextlib.AbstractAsyncContextManager[int]:
    """Serve a worker's health and metrics where its settings say."""
    return serving(health_app(board), settings.http_host, settings.http_port)
