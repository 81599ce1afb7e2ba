"""Ingest: images come in. Needs Kafka and the object store, nothing else."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from gateway.apps.components import IngestParts
from gateway.apps.factory import new_app
from gateway.limits.usage import usage_routes
from gateway.operations.health import health_routes
from gateway.settings import GatewaySettings
from gateway.upload_sessions.tus_routes import tus_and_direct_routes
from gateway.uploads.acceptance import Accepting
from gateway.uploads.batches import Batches
from gateway.uploads.lane_selection import Lanes
from gateway.uploads.routes import Ingest
from gateway.uploads.submission import Submitting


def ingest_routes(settings: GatewaySettings, parts: IngestParts) -> APIRouter:
    """Return every route of the ingest app but health."""
    accepting = Accepting(settings, parts.files, parts.events, parts.quotas)
    lanes = Lanes(settings.interactive_per_minute)
    submitting = Submitting.of(settings, parts, accepting, lanes)
    router = APIRouter()
    router.include_router(Ingest(settings, submitting, parts.limits).routes())
    router.include_router(usage_routes(parts.limits, parts.quotas))
    router.include_router(submitting.duplicates.routes())
    router.include_router(Batches(settings, submitting, parts.limits).routes())
    router.include_router(tus_and_direct_routes(settings, parts.files, submitting, parts.limits))
    return router


def ingest_app(settings: GatewaySettings, parts: IngestParts) -> FastAPI:
    """Return the ingest app, for a deployment of its own."""
    app = new_app("ingest", "Darkroom ingest", "Images in: by upload or by URL.", settings, parts)
    app.include_router(ingest_routes(settings, parts))
    app.include_router(health_routes(parts))
    return app
