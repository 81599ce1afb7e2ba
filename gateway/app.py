"""The embedded gateway: ingest, query and the docs on one address."""

from __future__ import annotations

from fastapi import FastAPI, Request

from gateway.edge import base_url, new_app, version
from gateway.ingest import ingest_routes
from gateway.parts import QueryParts
from gateway.query import query_routes
from gateway.readiness import health_routes
from gateway.settings import GatewaySettings


def embedded_app(settings: GatewaySettings, parts: QueryParts) -> FastAPI:
    """Return ingest and query in one app."""
    about = "An image goes in and comes out safe, resized, read and searchable."
    app = new_app("gateway", "Darkroom", about, settings, parts)

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

    app.include_router(ingest_routes(settings, parts))
    app.include_router(query_routes(settings, parts))
    app.include_router(health_routes(parts))
    return app
