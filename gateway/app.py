"""The embedded gateway: ingest, query and the docs on one address."""

from __future__ import annotations

from fastapi import FastAPI, Request

from gateway.edge import base_url, new_app, version
from gateway.ingest import ingest
from gateway.ports import EventSink, Readiness, Reconciling, TextEncoder
from gateway.query import query_routes
from gateway.readiness import health_routes
from gateway.settings import GatewaySettings
from streams.files import FileStore
from streams.vectors import ReadModel


def embedded_app(
    settings: GatewaySettings,
    *,
    files: FileStore,
    events: EventSink,
    vectors: ReadModel,
    encoder: TextEncoder | None,
    readiness: Readiness,
    reconciling: Reconciling | None = None,
) -> FastAPI:
    """Return ingest and query in one app. The parts are opened and closed by whoever composes the process."""
    app = new_app("gateway", "Darkroom", "An image goes in and comes out safe, resized, read and searchable.", settings)

    @app.get("/", summary="Where everything is", tags=["operation"])
    async def landing(request: Request) -> dict[str, str]:
        """Name the system and its ways in."""
        base = base_url(request, settings)
        return {
            "name": "darkroom",
            "version": version(),
            "upload": f"{base}/api/v1/images/upload",
            "fetch": f"{base}/api/v1/images/fetch",
            "search": f"{base}/api/v1/search?q=",
            "health": f"{base}/api/v1/health",
            "docs": f"{base}/docs",
            "openapi": f"{base}/openapi.json",
        }

    app.include_router(ingest(settings, files=files, events=events).routes())
    app.include_router(
        query_routes(settings, files=files, events=events, vectors=vectors, encoder=encoder, reconciling=reconciling)
    )
    app.include_router(health_routes(readiness, encoder))
    return app
