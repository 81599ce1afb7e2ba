"""Health and metrics of a worker over HTTP: /health/live, /health/ready, /metrics."""

from __future__ import annotations

import asyncio
import contextlib
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

from streams.health import Condition, HealthBoard
from streams.settings import WorkerSettings


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
async def serving(app: ASGIApp, host: str, port: int) -> AsyncIterator[int]:
    """Serve an app in this loop; yields the port. Signals stay with whoever owns the process."""
    listener = socket.create_server((host, port), reuse_port=False, backlog=512)
    # asyncio sets this only on sockets made with an explicit protocol; without it each answer waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5, server_header=False
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


def serving_health(board: HealthBoard, settings: WorkerSettings) -> contextlib.AbstractAsyncContextManager[int]:
    """Serve a worker's health and metrics where its settings say."""
    return serving(health_app(board), settings.http_host, settings.http_port)
