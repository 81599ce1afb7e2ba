"""The embedded app: ingest and query on one address."""

from __future__ import annotations

from fastapi import FastAPI, Request

from gateway.access.permissions import public
from gateway.access.routes import Routes
from gateway.apps.components import QueryComponents
from gateway.apps.factory import new_app
from gateway.apps.ingest import ingest_routes
from gateway.apps.query import query_routes
from gateway.http.request_context import base_url, version
from gateway.operations.health import health_routes
from gateway.settings import GatewaySettings
from schemas.http.health import Landing

_ENTRY_POINTS = {
    "upload": "POST /api/v1/images/upload",
    "upload in pieces (tus)": "POST /api/v1/uploads",
    "upload straight to the store": "POST /api/v1/uploads/direct",
    "have it fetched": "POST /api/v1/images/fetch",
    "follow": "GET /api/v1/images/jobs/{job_id}",
    "read": "GET /api/v1/images/jobs/{job_id}/result",
    "list": "GET /api/v1/images",
    "listen": "GET /api/v1/events",
    "search": "GET /api/v1/search",
    "health": "GET /api/v1/health",
}


def embedded_app(settings: GatewaySettings, components: QueryComponents) -> FastAPI:
    """Return ingest and query in one app."""
    about = "Images are uploaded, sanitized, resized, read by OCR and indexed for search."
    routes = [
        _landing_routes(settings),
        *ingest_routes(settings, components),
        *query_routes(settings, components),
        health_routes(components.readiness, components.limits, components.encoder),
    ]
    return new_app("gateway", "Darkroom", about, settings, components, routes)


def _landing_routes(settings: GatewaySettings) -> Routes:
    routes = Routes(tags=["operation"])

    @routes.get("/", summary="Entry points of the API", dependencies=[public()])
    async def landing(request: Request) -> Landing:
        """The system, its version and its main endpoints."""
        base = base_url(request, settings)
        return Landing(
            name="darkroom",
            version=version(),
            docs=f"{base}/docs",
            openapi=f"{base}/openapi.json",
            ways_in=_ENTRY_POINTS,
        )

    return routes
