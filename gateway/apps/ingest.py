"""The ingest app: accepts images. Needs Kafka and the object store only."""

from __future__ import annotations

from fastapi import FastAPI

from gateway.access.routes import Routes
from gateway.apps.components import IngestComponents, QueryComponents
from gateway.apps.factory import new_app
from gateway.images.publishing import Publishing
from gateway.limits.usage import usage_routes
from gateway.operations.health import health_routes
from gateway.settings import GatewaySettings
from gateway.upload_sessions.tus_routes import tus_and_direct_routes
from gateway.uploads.acceptance import Acceptance
from gateway.uploads.batches import Batches
from gateway.uploads.lane_selection import Lanes
from gateway.uploads.routes import Ingest
from gateway.uploads.submission import Submission


def ingest_routes(settings: GatewaySettings, components: IngestComponents) -> list[Routes]:
    """Return every route of the ingest app but health."""
    files = components.files
    read_model = components.read_model if isinstance(components, QueryComponents) else None
    accepting = Acceptance(settings, files, Publishing(settings, files, components.events), components.quotas)
    lanes = Lanes(settings.interactive_per_minute)
    submitting = Submission.of(settings, files, read_model, accepting, lanes)
    return [
        Ingest(settings, submitting, components.limits).routes(),
        usage_routes(components.limits, components.quotas),
        submitting.duplicates.routes(),
        Batches(settings, submitting, components.limits).routes(),
        *tus_and_direct_routes(settings, files, submitting, components.limits),
    ]


def ingest_app(settings: GatewaySettings, components: IngestComponents) -> FastAPI:
    """Return the ingest app, for a separate process."""
    routes = [*ingest_routes(settings, components), health_routes(components.readiness, components.limits)]
    return new_app(
        "ingest", "Darkroom ingest", "Accepts images, uploaded or fetched from a URL.", settings, components, routes
    )
