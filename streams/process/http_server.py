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

OTHER_FILES = 1024  # open files besides client connections: spooled uploads, the store, Kafka, libraries


def health_app(board: HealthBoard) -> Starlette:
    """Return the health and metrics app of a worker."""

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
    """Serve an app in this event loop; yields the port. Installs no signal handlers."""
    settings = settings or ServerSettings()
    raise_file_limit(settings.max_connections)
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
        # uvicorn's default trusts the headers of every client on 127.0.0.1.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        if task.done():
            await task
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def raise_file_limit(connections: int) -> None:
    """Raise the soft limit of open files (often 1 024) for that many connections, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def serving_health(board: HealthBoard, settings: WorkerSettings) -> contextlib.AbstractAsyncContextManager[int]:
    """Serve a worker's health and metrics at the address in its settings."""
    return serving(health_app(board), settings.http_host, settings.http_port)
